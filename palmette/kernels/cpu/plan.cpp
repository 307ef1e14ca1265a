// A slot holds one token behind one unique prefix, so two rows whose chunks end in the same slot share that chunk and
// all before it; nobody needs to have declared it. Rows are sorted by the slots that end their chunks, which makes
// neighbours of those who share, at every depth.
#include "plan.h"

#include <algorithm>
#include <numeric>

static int length(const Row& row) { return row.start + row.num_tokens; }

static int32_t chunk_end(const Row& row, int chunk) { return row.table[std::min(length(row), (chunk + 1) * CHUNK) - 1]; }

static bool before(const Row& a, const Row& b) {
    const int chunks_a = (length(a) + CHUNK - 1) / CHUNK, chunks_b = (length(b) + CHUNK - 1) / CHUNK;
    for (int c = 0; c < std::min(chunks_a, chunks_b); c++) {
        const int32_t slot_a = chunk_end(a, c), slot_b = chunk_end(b, c);
        if (slot_a != slot_b) return slot_a < slot_b;
    }
    return chunks_a < chunks_b;
}

static int oldest_index(const Step& step, const Row& row, int token, int window) {
    if (window == 0) return 0;
    const int oldest = std::max(0, step.positions[token] - window + 1);
    return row.prefix_len >= 0 ? std::min(oldest, row.prefix_len) : oldest;  // behind a tree's prefix, indices are no positions
}

Plan PlanMemory::make(const Step& step, int window) {
    order.resize(step.num_rows);
    std::iota(order.begin(), order.end(), 0);
    std::stable_sort(order.begin(), order.end(), [&](int a, int b) { return before(step.rows[a], step.rows[b]); });

    partials.resize(step.num_tokens);
    std::vector<int32_t> first_span(step.num_tokens);
    int num_partials = 0, num_spans = 0;
    for (int r = 0; r < step.num_rows; r++) {
        const Row& row = step.rows[r];
        for (int i = 0; i < row.num_tokens; i++) {
            const int token = row.first_token + i;
            first_span[token] = oldest_index(step, row, token, window) / SPAN;
            const int last = (row.start + i) / SPAN;
            partials[token] = {num_partials, last - first_span[token] + 1};
            num_partials += partials[token].count;
            num_spans = std::max(num_spans, last + 1);
        }
    }

    items.clear();
    queries.clear();
    for (int span = 0; span < num_spans; span++) {
        const Row* leader = nullptr;
        for (const int32_t r : order) {
            const Row& row = step.rows[r];
            if (length(row) <= span * SPAN) continue;
            const int chunk = span * (SPAN / CHUNK);
            const bool shares = leader != nullptr && chunk_end(row, chunk) == chunk_end(*leader, chunk);
            bool open = shares;  // does the last item take more of this row's queries?
            for (int i = std::max(0, span * SPAN - row.start); i < row.num_tokens; i++) {
                const int token = row.first_token + i;
                if (first_span[token] > span) break;
                if (!open || items.back().count == MAX_TILE) {
                    items.push_back({span, (int32_t)queries.size(), 0});
                    open = true;
                    leader = &row;
                }
                queries.push_back({token, r, row.start + i, partials[token].first + span - first_span[token]});
                items.back().count++;
            }
        }
    }
    return {items.data(), queries.data(), partials.data(), (int32_t)items.size(), num_partials};
}
