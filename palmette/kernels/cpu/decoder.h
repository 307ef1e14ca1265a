// One step of the decoder, run by all threads together.
//
//     norm | q, k, v, rotation, store | attention | merge | out | norm | gate, up, activation | down        (per layer)
//
// Sums run over a row in one fixed order, so a token's result depends on its own history alone.
#pragma once

#include "attention.h"
#include "matmul.h"
#include "phases.h"
#include "sampling.h"

namespace {

inline int round_up(int n, int to) { return (n + to - 1) / to * to; }

inline float root_mean_square(const float* x, int64_t n, float eps) {
    F squares = set(0.0f);
    for (int64_t i = 0; i < n; i += LANES) squares = fma(load(x + i), load(x + i), squares);
    return 1.0f / __builtin_sqrtf(sum(squares) / (float)n + eps);
}

// out = x / rms(x) * weight; n is a multiple of 16. Zhang & Sennrich 2019, arXiv 1910.07467, eq. 4.
inline void rms_norm(const float* x, const float* weight, int64_t n, float eps, float* out) {
    const F scale = set(root_mean_square(x, n, eps));
    for (int64_t i = 0; i < n; i += LANES) store(out + i, load(x + i) * scale * load(weight + i));
}

inline bool wants_codes(const Matrix& a) { return a.format != F32; }

// What the next matrices read of a token: `row` as codes where one of them is quantised, as floats where one is not.
inline void set_input(const Workspace& w, int64_t token, int64_t cols, const float* row, bool codes, bool floats) {
    const int64_t blocks = cols / BLOCK;
    if (codes) quantize_row(row, cols, w.codes + token * cols, w.scales + token * blocks, w.sums + token * blocks);
    if (!floats) return;
    for (int64_t i = 0; i < cols; i += LANES) store(w.x + token * cols + i, load(row + i));
}

inline Input input_x(const Workspace& w, int64_t cols) { return {w.x, w.codes, w.scales, w.sums, cols}; }

// Rotate one head in place. Su et al. 2021, arXiv 2104.09864, section 3.4.2, half-split.
inline void rotate(float* head, int dim, const float* angles) {
    const int half = dim / 2;
    for (int i = 0; i < half; i++) {
        const float first = head[i], second = head[half + i], cosine = angles[i], sine = angles[half + i];
        head[i] = first * cosine - second * sine;
        head[half + i] = second * cosine + first * sine;
    }
}

template <bool HALF>
inline void store_kv(void* pool, int64_t at, const float* from, int64_t n) {
    for (int64_t d = 0; d < n; d += LANES) {
        if (HALF) store_half((uint16_t*)pool + at + d, load(from + d));
        else store((float*)pool + at + d, load(from + d));
    }
}

// One head of q, k or v for rows [row, row + rows).
template <bool HALF>
inline void project_head(const Run& run, const Layer& layer, int unit, int row, int rows, float* scratch) {
    const Model& m = *run.model;
    const Step& step = *run.step;
    const int64_t dim = m.head_dim;
    const bool is_q = unit < m.heads, is_v = unit >= m.heads + m.kv_heads;
    const int head = is_q ? unit : (unit - m.heads) % m.kv_heads;
    const Matrix& w = is_q ? layer.q : is_v ? layer.v : layer.k;
    const int tiles = (int)(dim / LANES);
    product(w, head * tiles, tiles, input_x(run.work, m.hidden), row, rows, scratch, dim);
    const float* norm = is_q ? layer.q_norm : layer.k_norm;
    const Rope& rope = m.ropes[layer.rope];
    for (int i = 0; i < rows; i++) {
        float* out = scratch + i * dim;
        const int64_t token = row + i;
        if (is_v) {
            store_kv<HALF>(layer.values, ((int64_t)step.slots[token] * m.kv_heads + head) * dim, out, dim);
            continue;
        }
        if (norm != nullptr) rms_norm(out, norm, dim, m.eps, out);
        rotate(out, rope.dim, run.work.angles + ((int64_t)layer.rope * step.num_tokens + token) * dim);
        if (is_q) {
            float* q = run.work.q + (token * m.heads + head) * dim;
            for (int64_t d = 0; d < dim; d += LANES) store(q + d, load(out + d) * set(m.score_scale));
        } else {
            store_kv<HALF>(layer.keys, ((int64_t)step.slots[token] * m.kv_heads + head) * dim, out, dim);
        }
    }
}

// 32 inner activations of rows [row, row + rows): act(gate) * up, into the MLP's second input.
inline void gate_up(const Run& run, const Layer& layer, int unit, int row, int rows, float* scratch) {
    const Model& m = *run.model;
    const Workspace& w = run.work;
    float *gate = scratch, *up = scratch + ROWS * BLOCK;
    product(layer.gate, 2 * unit, 2, input_x(w, m.hidden), row, rows, gate, BLOCK);
    product(layer.up, 2 * unit, 2, input_x(w, m.hidden), row, rows, up, BLOCK);
    const int64_t blocks = m.inner / BLOCK;
    for (int i = 0; i < rows; i++) {
        const int64_t block = (int64_t)(row + i) * blocks + unit;
        float* out = wants_codes(layer.down) ? gate + i * BLOCK : w.x2 + block * BLOCK;
        for (int d = 0; d < BLOCK; d += LANES) {
            const F g = load(gate + i * BLOCK + d), u = load(up + i * BLOCK + d);
            F activated;
            if (m.gelu) {  // Hendrycks & Gimpel 2016, arXiv 1606.08415, section 2, the tanh form
                const F inner = set(0.7978845608028654f) * fma(set(0.044715f) * g, g * g, g);
                activated = set(0.5f) * g * (set(1.0f) + tanh(inner));
            } else {
                activated = g / (set(1.0f) + exp(set(0.0f) - g));
            }
            store(out + d, activated * u);
        }
        if (wants_codes(layer.down)) quantize_row(out, BLOCK, w.codes2 + block * BLOCK, w.scales2 + block, w.sums2 + block);
    }
}

template <bool HALF>
inline void forward_as(const Run& run, int thread) {
    const Model& m = *run.model;
    const Step& step = *run.step;
    const Workspace& w = run.work;
    const int tokens = step.num_tokens, row_tiles = (tokens + ROWS - 1) / ROWS;
    const int64_t hidden = m.hidden, attended = (int64_t)m.heads * m.head_dim;
    float* scratch = w.scratch + thread * w.scratch_floats;
    Phases phases{w, thread, run.num_threads, 0};

    // A unit with all rows of the step: its weights stay in the nearest cache while the rows pass by.
    const auto by_rows = [&](auto unit) {
        for (int t = 0; t < row_tiles; t++) {
            const int row = t * ROWS;
            unit(row, tokens - row < ROWS ? tokens - row : ROWS);
        }
    };
    // residual += branch (normalised first where the family does), then the input of the next matrices.
    const auto enter = [&](int token, const float* post_norm, const float* norm, bool codes, bool floats) {
        float *residual = w.residual + token * hidden, *branch = w.branch + token * hidden;
        if (post_norm != nullptr) rms_norm(branch, post_norm, hidden, m.eps, branch);
        for (int64_t i = 0; i < hidden; i += LANES) store(residual + i, load(residual + i) + load(branch + i));
        if (norm == nullptr) return;
        rms_norm(residual, norm, hidden, m.eps, scratch);
        set_input(w, token, hidden, scratch, codes, floats);
    };

    phases.each(tokens, [&](int token) {
        float* residual = w.residual + token * hidden;
        read_row(m.embedding, step.ids[token], residual);
        for (int64_t i = 0; i < hidden; i += LANES) {
            store(residual + i, load(residual + i) * set(m.embedding_scale));
            store(w.branch + token * hidden + i, set(0.0f));
        }
    });
    for (int l = 0; l < m.num_layers; l++) {
        const Layer& layer = m.layers[l];
        const Plan& plan = run.plans[run.plan_of_layer[l]];
        const float* post_mlp = l == 0 ? nullptr : m.layers[l - 1].post_mlp_norm;
        const bool qkv_codes = wants_codes(layer.q) || wants_codes(layer.k) || wants_codes(layer.v);
        const bool qkv_floats = !wants_codes(layer.q) || !wants_codes(layer.k) || !wants_codes(layer.v);
        phases.each(tokens, [&](int t) { enter(t, post_mlp, layer.attention_norm, qkv_codes, qkv_floats); });
        phases.each(m.heads + 2 * m.kv_heads, [&](int head) {
            by_rows([&](int row, int rows) { project_head<HALF>(run, layer, head, row, rows, scratch); });
        });
        const int attention_units = plan.num_items * m.kv_heads;
        phases.each(attention_units, [&](int unit) {
            const int next = unit + 1;
            if (next < attention_units) prefetch_item(run, layer, plan, plan.items[next / m.kv_heads], next % m.kv_heads);
            attend_item<HALF>(run, layer, plan, plan.items[unit / m.kv_heads], unit % m.kv_heads, scratch);
        });
        phases.each(tokens, [&](int token) {
            merge(run, plan, token, scratch);
            set_input(w, token, attended, scratch, wants_codes(layer.out), !wants_codes(layer.out));
        });
        phases.each(m.hidden / BLOCK, [&](int unit) {
            by_rows([&](int row, int rows) {
                product(layer.out, 2 * unit, 2, input_x(w, attended), row, rows, w.branch + row * hidden + unit * BLOCK, hidden);
            });
        });
        const bool mlp_codes = wants_codes(layer.gate) || wants_codes(layer.up);
        const bool mlp_floats = !wants_codes(layer.gate) || !wants_codes(layer.up);
        phases.each(tokens, [&](int t) { enter(t, layer.post_attention_norm, layer.mlp_norm, mlp_codes, mlp_floats); });
        phases.each(m.inner / BLOCK, [&](int unit) {
            by_rows([&](int row, int rows) { gate_up(run, layer, unit, row, rows, scratch); });
        });
        const Input inner{w.x2, w.codes2, w.scales2, w.sums2, m.inner};
        phases.each(m.hidden / BLOCK, [&](int unit) {
            by_rows([&](int row, int rows) {
                product(layer.down, 2 * unit, 2, inner, row, rows, w.branch + row * hidden + unit * BLOCK, hidden);
            });
        });
    }
    phases.each(step.num_wanted, [&](int i) {
        const int token = step.wanted[i];
        enter(token, m.layers[m.num_layers - 1].post_mlp_norm, nullptr, false, false);
        rms_norm(w.residual + token * hidden, m.final_norm, hidden, m.eps, step.hidden + i * hidden);
    });
}

inline void forward(const Run& run, int thread) {
    if (run.model->kv_half) forward_as<true>(run, thread);
    else forward_as<false>(run, thread);
}

inline bool is_wanted(const HeadRun& run, int row, int tile) {
    const uint32_t* mask = run.masks == nullptr ? nullptr : run.masks[row];
    return mask == nullptr || bits_of_tile(mask, run.mask_words, tile) != 0;
}

// The logits of one row and tile, from what the product left at `x`.
inline void put_logits(const HeadRun& run, int row, int tile, float* x) {
    const Model& m = *run.model;
    float* logits = run.logits + (int64_t)row * m.vocab + tile * LANES;
    const bool wanted = is_wanted(run, row, tile);
    F value = wanted ? load(x) : set(-__builtin_inff());
    if (wanted && m.logit_cap != 0) value = set(m.logit_cap) * tanh(value * set(1.0f / m.logit_cap));
    const int width = m.vocab - tile * LANES;
    if (width >= LANES) {
        store(logits, value);
        return;
    }
    store(x, value);
    for (int d = 0; d < width; d++) logits[d] = x[d];
}

// Logits. Of a row with a mask, tiles that the mask leaves out are minus infinity and are not computed.
inline void head(const HeadRun& run, int thread) {
    const Model& m = *run.model;
    const Workspace& w = run.work;
    const bool codes = wants_codes(m.head);
    Phases phases{w, thread, run.num_threads, 0};
    phases.each(run.count, [&](int i) {
        if (codes) {
            const int64_t blocks = m.hidden / BLOCK;
            quantize_row(run.hidden + (int64_t)i * m.hidden, m.hidden, w.codes + (int64_t)i * m.hidden, w.scales + i * blocks, w.sums + i * blocks);
        }
    });
    const Input in{run.hidden, w.codes, w.scales, w.sums, m.hidden};
    const int tiles = round_up(m.vocab, LANES) / LANES;
    phases.each(round_up(tiles, 2) / 2, [&](int unit) {
        const int tile = 2 * unit, sides = tile + 1 < tiles ? 2 : 1;
        for (int row = 0; row < run.count; row += ROWS) {
            const int rows = run.count - row < ROWS ? run.count - row : ROWS;
            bool wanted[2] = {false, false};
            for (int i = 0; i < rows; i++)
                for (int s = 0; s < sides; s++) wanted[s] |= is_wanted(run, row + i, tile + s);
            float out[ROWS * 2 * LANES];
            if (wanted[0] && wanted[1]) product(m.head, tile, 2, in, row, rows, out, 2 * LANES);
            else if (wanted[0]) product(m.head, tile, 1, in, row, rows, out, 2 * LANES);
            else if (wanted[1]) product(m.head, tile + 1, 1, in, row, rows, out + LANES, 2 * LANES);
            for (int i = 0; i < rows; i++)
                for (int s = 0; s < sides; s++) put_logits(run, row + i, tile + s, out + (2 * i + s) * LANES);
        }
    });
}

inline int64_t scratch_floats(const Model& m) {
    const int64_t projection = ROWS * (int64_t)(m.head_dim > 2 * BLOCK ? m.head_dim : 2 * BLOCK);
    const int64_t attended = (int64_t)m.heads * m.head_dim, row = attended > m.hidden ? attended : m.hidden;
    const int64_t attention = attention_scratch_floats(m), most = projection > attention ? projection : attention;
    return (row > most ? row : most) + 16;
}

}  // namespace
