// Who reads which keys in a step: spans of the page table, each with the queries that share its beginning.
#pragma once

#include <vector>

#include "core.h"

struct PlanMemory {
    std::vector<Item> items;
    std::vector<Query> queries;
    std::vector<Partials> partials;
    std::vector<int32_t> order;

    // Plan a step for layers with this window (0 = none).
    Plan make(const Step& step, int window);
};
