// Attention of a step's queries over the paged pool, by plan: spans of keys, each with the queries that share its
// beginning, and a merge of the spans' partial results in position order.
//
//     for each chunk of the span:   s = q K^T,  m' = max(m, max s),  p = e^(s - m')
//                                   l = l e^(m - m') + sum p,  o = o e^(m - m') + p V
//     out = o / l                                          (Dao et al. 2022, arXiv 2205.14135, algorithm 1)
//
// Chunks and spans are cut at absolute page-table indices and always merge from left to right, so who shares a load
// with whom never shows in a result.
#pragma once

#include "core.h"
#include "simd.h"

namespace {

constexpr float NOTHING = -1e30f;  // the maximum of a query that has seen no key

template <bool HALF>
inline F load_kv(const void* pool, int64_t at) {
    return HALF ? load_half((const uint16_t*)pool + at) : load((const float*)pool + at);
}

// Keys [begin, begin + n) of a row, n <= CHUNK: keys transposed to (dim, CHUNK), values as (n, dim), both padded with
// zeros to a multiple of 16 keys.
template <bool HALF>
inline void gather(
    const Model& m, const Layer& layer, const int32_t* table, int begin, int n, int head, float* keys, float* values
) {
    const int64_t dim = m.head_dim, stride = (int64_t)m.kv_heads * dim;
    for (int first = 0; first < n; first += LANES) {
        const int real = n - first < LANES ? n - first : LANES;
        int64_t at[LANES];
        for (int j = 0; j < real; j++) at[j] = table[begin + first + j] * stride + head * dim;
        for (int64_t d = 0; d < dim; d += LANES) {
            F rows[LANES];
            for (int j = 0; j < LANES; j++) rows[j] = j < real ? load_kv<HALF>(layer.keys, at[j] + d) : set(0.0f);
            transpose(rows, keys + d * CHUNK + first, CHUNK);
        }
        for (int j = 0; j < LANES; j++) {
            float* v = values + (first + j) * dim;
            for (int64_t d = 0; d < dim; d += LANES) store(v + d, j < real ? load_kv<HALF>(layer.values, at[j] + d) : set(0.0f));
        }
    }
}

// Ask for keys and values before they are needed. Inlined by force: GCC takes a function that only prefetches for one
// without effect, and drops the call.
__attribute__((always_inline)) inline void prefetch(const Model& m, const Layer& layer, const int32_t* table, int begin, int end, int head) {
    const int64_t bytes = (int64_t)m.head_dim * (m.kv_half ? 2 : 4);
    for (int i = begin; i < end; i++) {
        const int64_t at = ((int64_t)table[i] * m.kv_heads + head) * bytes;
        for (int64_t b = 0; b < bytes; b += 64) {
            __builtin_prefetch((const char*)layer.keys + at + b);
            __builtin_prefetch((const char*)layer.values + at + b);
        }
    }
}

// scores (R, CHUNK) of R query heads with W * 16 keys from block `b` on.
template <int R, int W>
inline void score_blocks(const float* const* q, const float* keys, int64_t dim, int b, float* scores) {
    F acc[R][W];
    for (int i = 0; i < R; i++) {
        for (int w = 0; w < W; w++) acc[i][w] = set(0.0f);
    }
    for (int64_t d = 0; d < dim; d++) {
        F key[W];
        for (int w = 0; w < W; w++) key[w] = load(keys + d * CHUNK + (b + w) * LANES);
        for (int i = 0; i < R; i++) {
            const F x = set(q[i][d]);
            for (int w = 0; w < W; w++) acc[i][w] = fma(x, key[w], acc[i][w]);
        }
    }
    for (int i = 0; i < R; i++) {
        for (int w = 0; w < W; w++) store(scores + i * CHUNK + (b + w) * LANES, acc[i][w]);
    }
}

#if defined(__AVX512VNNI__)
constexpr int HEADS_AT_ONCE = 8, ACCUMULATORS = 24;
#else
constexpr int HEADS_AT_ONCE = 4, ACCUMULATORS = 8;
#endif

// Blocks of 16 lanes that R heads do at once.
constexpr int width(int heads) { return 4 * heads <= ACCUMULATORS ? 4 : 2 * heads <= ACCUMULATORS ? 2 : 1; }

template <int R>
inline void score(const float* const* q, const float* keys, int64_t dim, int blocks, float* scores) {
    constexpr int W = width(R);
    int b = 0;
    for (; b + W <= blocks; b += W) score_blocks<R, W>(q, keys, dim, b, scores);
    for (; b < blocks; b++) score_blocks<R, 1>(q, keys, dim, b, scores);
}

// o = o * decay + p V for R query heads and `n` keys, dimensions [d, d + 16 W).
template <int R, int W>
inline void weigh_blocks(float* const* o, const float* decay, const float* p, const float* values, int64_t dim, int64_t d, int n) {
    F acc[R][W];
    for (int i = 0; i < R; i++) {
        for (int w = 0; w < W; w++) acc[i][w] = load(o[i] + d + w * LANES) * set(decay[i]);
    }
    for (int j = 0; j < n; j++) {
        F value[W];
        for (int w = 0; w < W; w++) value[w] = load(values + j * dim + d + w * LANES);
        for (int i = 0; i < R; i++) {
            const F x = set(p[i * CHUNK + j]);
            for (int w = 0; w < W; w++) acc[i][w] = fma(x, value[w], acc[i][w]);
        }
    }
    for (int i = 0; i < R; i++) {
        for (int w = 0; w < W; w++) store(o[i] + d + w * LANES, acc[i][w]);
    }
}

template <int R>
inline void weigh(float* const* o, const float* decay, const float* p, const float* values, int64_t dim, int n) {
    constexpr int W = width(R);
    int64_t d = 0;
    for (; d + W * LANES <= dim; d += W * LANES) weigh_blocks<R, W>(o, decay, p, values, dim, d, n);
    for (; d < dim; d += LANES) weigh_blocks<R, 1>(o, decay, p, values, dim, d, n);
}

// What keys [begin, begin + CHUNK) a query sees: writes minus infinity over the scores of the others.
inline void hide(const Run& run, const Layer& layer, const Query& query, int begin, int padded, float* scores) {
    const Row& row = run.step->rows[query.row];
    const float hidden = -__builtin_inff();
    if (row.prefix_len >= 0) {
        const int position = run.step->positions[query.token];
        const uint8_t* visible = row.visible + (int64_t)(query.token - row.first_token) * row.num_nodes;
        for (int j = 0; j < padded; j++) {
            const int index = begin + j, node = index - row.prefix_len;
            const bool seen = node < 0 || (node < row.num_nodes && visible[node]);
            const int key_position = node < 0 ? index : node < row.num_nodes ? row.node_positions[node] : 0;
            if (!seen || (layer.window && key_position <= position - layer.window)) scores[j] = hidden;
        }
        return;
    }
    for (int j = query.index + 1 - begin > 0 ? query.index + 1 - begin : 0; j < padded; j++) scores[j] = hidden;
    if (layer.window) {
        const int seen_from = query.index - layer.window + 1 - begin;
        for (int j = 0; j < padded && j < seen_from; j++) scores[j] = hidden;
    }
}

template <int R>
inline void attend_heads(
    const Run& run, const Layer& layer, const Query* const* queries, const float* const* q, float* const* states, int begin,
    int n, const float* keys, const float* values, bool masked, float* scores
) {
    const Model& m = *run.model;
    const int blocks = (n + LANES - 1) / LANES;
    score<R>(q, keys, m.head_dim, blocks, scores);
    float decay[R];
    float* o[R];
    for (int i = 0; i < R; i++) {
        float* s = scores + i * CHUNK;
        if (m.attention_cap != 0) {
            for (int b = 0; b < blocks; b++) {
                store(s + b * LANES, set(m.attention_cap) * tanh(load(s + b * LANES) * set(1.0f / m.attention_cap)));
            }
        }
        if (masked) hide(run, layer, *queries[i], begin, blocks * LANES, s);
        F best = load(s);
        for (int b = 1; b < blocks; b++) best = max(best, load(s + b * LANES));
        const float old_max = states[i][0];
        float new_max = largest(best);
        new_max = new_max > old_max ? new_max : old_max;
        decay[i] = 1.0f;
        if (new_max != old_max) {
            float lanes[LANES];
            store(lanes, exp(set(old_max - new_max)));
            decay[i] = lanes[0];
        }
        F total = set(0.0f);
        for (int b = 0; b < blocks; b++) {
            const F p = exp(load(s + b * LANES) - set(new_max));
            store(s + b * LANES, p);
            total = total + p;
        }
        states[i][0] = new_max;
        states[i][1] = states[i][1] * decay[i] + sum(total);
        o[i] = states[i] + 2;
    }
    weigh<R>(o, decay, scores, values, m.head_dim, blocks * LANES);
}

inline int64_t attention_scratch_floats(const Model& m) {
    return 2 * (int64_t)CHUNK * m.head_dim + HEADS_AT_ONCE * CHUNK + 64;
}

template <int N>
struct Count {
    static constexpr int value = N;
};

__attribute__((always_inline)) inline void prefetch_item(const Run& run, const Layer& layer, const Plan& plan, const Item& item, int kv_head) {
    const Row& row = run.step->rows[plan.queries[item.first].row];
    const int begin = item.span * SPAN, len = row.start + row.num_tokens;
    prefetch(*run.model, layer, row.table, begin, len < begin + CHUNK ? len : begin + CHUNK, kv_head);
}

// One item and one KV head.
template <bool HALF>
inline void attend_item(const Run& run, const Layer& layer, const Plan& plan, const Item& item, int kv_head, float* scratch) {
    const Model& m = *run.model;
    const Step& step = *run.step;
    const int group = m.heads / m.kv_heads;
    const int64_t dim = m.head_dim, state_floats = dim + 2;
    float *keys = scratch, *values = keys + CHUNK * dim, *scores = values + CHUNK * dim;
    const Query* queries = plan.queries + item.first;

    for (int i = 0; i < item.count; i++) {
        float* state = run.work.partials + ((int64_t)queries[i].partial * m.heads + kv_head * group) * state_floats;
        for (int h = 0; h < group; h++, state += state_floats) {
            state[0] = NOTHING;
            for (int64_t d = 1; d < state_floats; d++) state[d] = 0.0f;
        }
    }
    for (int chunk = 0; chunk < SPAN / CHUNK; chunk++) {
        const int begin = item.span * SPAN + chunk * CHUNK;
        for (int first = 0; first < item.count;) {
            if (queries[first].index < begin) {
                first++;
                continue;
            }
            // A run of queries that share the chunk: rows whose chunk ends in the same slot.
            const Row& leader = step.rows[queries[first].row];
            const int leader_len = leader.start + leader.num_tokens;
            const int end = leader_len < begin + CHUNK ? leader_len : begin + CHUNK;
            int last = first, furthest = 0;
            bool masked = false;
            for (; last < item.count; last++) {
                const Query& query = queries[last];
                const Row& row = step.rows[query.row];
                if (query.row != queries[first].row) {
                    const int len = row.start + row.num_tokens;
                    const int row_end = len < begin + CHUNK ? len : begin + CHUNK;
                    if (row_end != end || row.table[end - 1] != leader.table[end - 1]) break;
                }
                if (query.index < begin) break;
                furthest = query.index > furthest ? query.index : furthest;
                masked |= query.index < end - 1 || (row.prefix_len >= 0 && end > row.prefix_len) || layer.window != 0;
            }
            const int seen = (furthest + 1 < end ? furthest + 1 : end) - begin;
            gather<HALF>(m, layer, leader.table, begin, seen, kv_head, keys, values);
            masked |= seen % LANES != 0;
            const int next = begin + CHUNK, next_end = leader_len < next + CHUNK ? leader_len : next + CHUNK;
            if (chunk + 1 < SPAN / CHUNK && furthest >= next) prefetch(m, layer, leader.table, next, next_end, kv_head);
            const int heads = (last - first) * group;
            for (int h = 0; h < heads;) {
                const int left = heads - h < HEADS_AT_ONCE ? heads - h : HEADS_AT_ONCE;
                const int many = left >= 8 ? 8 : left >= 6 ? 6 : left;
                const Query* of[HEADS_AT_ONCE];
                const float* q[HEADS_AT_ONCE];
                float* states[HEADS_AT_ONCE];
                for (int i = 0; i < many; i++) {
                    const Query& query = queries[first + (h + i) / group];
                    const int head = kv_head * group + (h + i) % group;
                    of[i] = &query;
                    q[i] = run.work.q + ((int64_t)query.token * m.heads + head) * dim;
                    states[i] = run.work.partials + ((int64_t)query.partial * m.heads + head) * state_floats;
                }
                const auto attend = [&](auto count) {
                    attend_heads<count.value>(run, layer, of, q, states, begin, seen, keys, values, masked, scores);
                };
                switch (many) {
#if defined(__AVX512VNNI__)
                    case 8: attend(Count<8>()); break;
                    case 6: attend(Count<6>()); break;
                    case 5: attend(Count<5>()); break;
#endif
                    case 4: attend(Count<4>()); break;
                    case 3: attend(Count<3>()); break;
                    case 2: attend(Count<2>()); break;
                    default: attend(Count<1>());
                }
                h += many;
            }
            first = last;
        }
    }
}

// The partial results of a token, merged into `out`, (heads * head_dim,).
inline void merge(const Run& run, const Plan& plan, int token, float* out) {
    const Model& m = *run.model;
    const int64_t dim = m.head_dim, state_floats = dim + 2;
    const Partials& mine = plan.partials[token];
    for (int h = 0; h < m.heads; h++, out += dim) {
        float *total = run.work.partials + ((int64_t)mine.first * m.heads + h) * state_floats;
        for (int p = 1; p < mine.count; p++) {
            const float* other = total + (int64_t)p * m.heads * state_floats;
            const float most = total[0] > other[0] ? total[0] : other[0];
            float keep[LANES], add[LANES];
            store(keep, exp(set(total[0] - most))), store(add, exp(set(other[0] - most)));
            total[0] = most;
            total[1] = total[1] * keep[0] + other[1] * add[0];
            for (int64_t d = 2; d < state_floats; d += LANES) {
                store(total + d, fma(load(total + d), set(keep[0]), load(other + d) * set(add[0])));
            }
        }
        const F inverse = set(1.0f / total[1]);
        for (int64_t d = 0; d < dim; d += LANES) store(out + d, load(total + 2 + d) * inverse);
    }
}

}  // namespace
