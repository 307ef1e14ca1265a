// Logits to tokens and to norms, a row by one thread. palmette/runtime/sampler.py is the specification.
#pragma once

#include "core.h"
#include "phases.h"
#include "simd.h"

namespace {

constexpr int SUM_BLOCK = 256;  // weights that are added up at once when the cumulative distribution is searched

inline uint16_t bits_of_tile(const uint32_t* mask, int words, int tile) {
    return tile / 2 < words ? (uint16_t)(mask[tile / 2] >> (16 * (tile % 2))) : 0;
}

// Sixteen logits of a choice, minus infinity where a token may not come and behind the end.
inline F allowed(const Choice& c, int vocab, int64_t tile) {
    const int64_t at = tile * LANES;
    const F never = set(-__builtin_inff());
    F x = never;
    if (at + LANES <= vocab) {
        x = load(c.logits + at);
    } else if (at < vocab) {
        float last[LANES];
        for (int i = 0; i < LANES; i++) last[i] = at + i < vocab ? c.logits[at + i] : -__builtin_inff();
        x = load(last);
    }
    return c.mask == nullptr ? x : choose(bits_of_tile(c.mask, c.mask_words, (int)tile), x, never);
}

inline void choose_token(Choice& c, int vocab, int64_t padded, float* weights) {
    const int64_t tiles = padded / LANES;
    F most = set(-__builtin_inff());
    for (int64_t tile = 0; tile < tiles; tile++) most = max(most, allowed(c, vocab, tile));
    const float best = largest(most);
    if (c.temperature <= 0) {
        int64_t tile = 0;
        while (tile + 1 < tiles && largest(allowed(c, vocab, tile)) < best) tile++;
        float lanes[LANES];
        store(lanes, allowed(c, vocab, tile));
        int lane = 0;
        while (lane + 1 < LANES && lanes[lane] < best) lane++;
        c.token = (int32_t)(tile * LANES + lane);
        return;
    }
    const F temperature = set(c.temperature), shift = set(best / c.temperature);
    for (int64_t t = 0; t < tiles; t++) store(weights + t * LANES, exp(allowed(c, vocab, t) / temperature - shift));
    float threshold = c.min_p, by_k = 0;
    if (c.top_k > 0 && c.top_k < vocab) by_k = kth_largest(weights, vocab, c.top_k, weights + padded);
    threshold = threshold > by_k ? threshold : by_k;
    if (c.top_p < 1) {
        const float by_p = top_p_threshold(weights, vocab, by_k, c.top_p, weights + padded);
        threshold = threshold > by_p ? threshold : by_p;
    }
    double* ends = (double*)(weights + padded);
    double total = 0;
    for (int64_t b = 0; b < padded / SUM_BLOCK; b++) {
        F sums = set(0.0f);
        for (int64_t i = b * SUM_BLOCK; i < (b + 1) * SUM_BLOCK; i += LANES) {
            const F x = zero_below(load(weights + i), load(weights + i), threshold);
            store(weights + i, x);
            sums = sums + x;
        }
        float lanes[LANES];
        store(lanes, sums);
        for (float lane : lanes) total += lane;
        ends[b] = total;
    }
    const double target = c.at * total;
    int64_t block = 0;
    while (block + 1 < padded / SUM_BLOCK && ends[block] <= target) block++;
    double passed = block == 0 ? 0 : ends[block - 1];
    c.token = -1;
    for (int64_t i = block * SUM_BLOCK; i < padded; i++) {  // beyond the block only where rounding moved its end
        if (weights[i] <= 0) continue;
        c.token = (int32_t)i;
        passed += weights[i];
        if (passed > target) return;
    }
    for (int64_t i = padded - 1; i >= 0 && c.token < 0; i--) c.token = weights[i] > 0 ? (int32_t)i : -1;
}

inline void choose_tokens(const ChoiceRun& run, int thread) {
    Phases phases{run.work, thread, run.num_threads, 0};
    float* weights = run.weights + 2 * run.padded * thread;
    phases.each(run.count, [&](int i) { choose_token(run.choices[i], run.vocab, run.padded, weights); });
}

inline void survey(const SurveyRun& run, int thread) {
    Phases phases{run.work, thread, run.num_threads, 0};
    phases.each(run.count, [&](int row) {
        const float* x = run.logits + (int64_t)row * run.vocab;
        const int64_t whole = run.vocab / LANES * LANES;
        F best = set(-__builtin_inff()), check = set(0.0f);
        for (int64_t i = 0; i < whole; i += LANES) {
            const F v = load(x + i);
            best = max(best, v);
            check = check + max(set(-1e30f), v) * set(0.0f);  // in this order NaN stays, as plus infinity does
        }
        float most = largest(best), odd = sum(check);
        for (int64_t i = whole; i < run.vocab; i++) {
            most = x[i] > most ? x[i] : most;
            odd += (x[i] > -1e30f || x[i] != x[i] ? x[i] : 0) * 0;
        }
        if (run.largest_only) {
            run.norms[row] = odd == 0 ? most : __builtin_nan("");
            return;
        }
        double total = 0;
        for (int64_t i = 0; i < whole;) {
            F sums = set(0.0f);
            for (int n = 0; n < SUM_BLOCK / LANES && i < whole; n++, i += LANES) sums = sums + exp(load(x + i) - set(most));
            total += sum(sums);
        }
        for (int64_t i = whole; i < run.vocab; i++) {
            float lanes[LANES];
            store(lanes, exp(set(x[i] - most)));
            total += lanes[0];
        }
        run.norms[row] = odd == 0 ? most + __builtin_log(total) : __builtin_nan("");
    });
}

}  // namespace
