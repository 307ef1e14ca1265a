// The parts of sampling that sort; see sampling.h. Weights are relative to the likeliest token's, which weighs 1.
#include <algorithm>
#include <functional>

#include "core.h"

// The k-th largest of `count` weights, 1 <= k <= count.
float kth_largest(const float* weights, int32_t count, int32_t k, float* memory) {
    int32_t found = 0;
    for (const float least : {1e-2f, 1e-4f, 1e-7f, 0.0f}) {  // few weigh much: look at the rest only if it takes that
        found = 0;
        for (int32_t i = 0; i < count; i++) {
            memory[found] = weights[i];
            found += weights[i] >= least;
        }
        if (found >= k) break;
    }
    std::nth_element(memory, memory + k - 1, memory + found, std::greater<float>());
    return memory[k - 1];
}

// The weight of the last of the likeliest tokens that together hold top_p of the weights of at least `least`. All that
// weigh less than (1 - top_p) / count of the whole hold less than 1 - top_p together: the last one is not among them.
float top_p_threshold(const float* weights, int32_t count, float least, double top_p, float* memory) {
    double total = 0;
    int32_t kept = 0;
    for (int32_t i = 0; i < count; i++) {
        if (weights[i] >= least) total += weights[i], kept++;
    }
    const double cut = total * ((1.0 - top_p) / (2.0 * kept));
    int32_t found = 0;
    for (int32_t i = 0; i < count; i++) {
        memory[found] = weights[i];
        found += weights[i] >= least && weights[i] >= cut;
    }
    std::sort(memory, memory + found, std::greater<float>());
    double passed = 0;
    for (int32_t i = 0; i < found; i++) {
        passed += memory[i];
        if (passed >= top_p * total) return memory[i];
    }
    return memory[found - 1];
}
