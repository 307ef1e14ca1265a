// Products of activations with a matrix: out = x W^T, sixteen rows of W at a time.
//
// Quantised: w = d u + m within a block of 32 columns, and x = s c with c an int8, so a block adds
//
//     d s (sum u c)  +  m (s sum c)                        (Jacob et al. 2018, arXiv 1712.05877, section 2.3)
//
// where the first sum is exact in int32 and the last one is kept beside the codes of x. Scales of x belong to one row
// and one block, so a row's result depends on that row alone: not on its batch, nor on how many rows one call computes.
#pragma once

#include "core.h"
#include "simd.h"

namespace {

constexpr int BLOCK = 32;
constexpr int TILE_BYTES[3] = {BLOCK * LANES * 4, 64 + BLOCK * LANES / 2, 64 + BLOCK * LANES};  // of a block, by Format

constexpr int AHEAD = 4096;  // bytes: how far weights are asked for ahead of their use

// Rows of activations, as the format of the matrix wants them; `cols` apart.
struct Input {
    const float* x;
    const int8_t* codes;
    const float *scales, *sums;  // cols / 32 apart
    int64_t cols;
};

inline int64_t tile_bytes(const Matrix& w) { return (int64_t)(w.cols / BLOCK) * TILE_BYTES[w.format]; }

// Quantise one row. An all-zero block has scale 0; one that holds NaN or infinity has scale NaN, so that it shows.
inline void quantize_row(const float* x, int64_t cols, int8_t* codes, float* scales, float* sums) {
    for (int64_t b = 0; b < cols / BLOCK; b++, x += BLOCK, codes += BLOCK) {
        const F first = load(x), second = load(x + LANES);
        const float most = largest(max(abs(first), abs(second)));
        const F inverse = set(most > 0 ? 127.0f / most : 0.0f);
        const I low = round_to_int(first * inverse), high = round_to_int(second * inverse);
        store_int8(codes, low), store_int8(codes + LANES, high);
        scales[b] = most * (1.0f / 127.0f) + sum((first - first) + (second - second));
        sums[b] = scales[b] * (float)(sum(low) + sum(high));
    }
}

// M rows of activations, from `row` on, with one tile: result[i] holds the 16 outputs of row i.
template <int FORMAT, int M>
inline void tile_product(const uint8_t* w, const Input& in, int64_t row, F* result) {
    F acc[M];
    for (int i = 0; i < M; i++) acc[i] = set(0.0f);
    const int64_t blocks = in.cols / BLOCK;
    if (FORMAT == F32) {
        const float* x = in.x + row * in.cols;
        const float* tile = (const float*)w;
        for (int64_t k = 0; k < in.cols; k++) {
            const F column = load(tile + k * LANES);
            for (int i = 0; i < M; i++) acc[i] = fma(column, set(x[i * in.cols + k]), acc[i]);
        }
    } else {
        const int8_t* codes = in.codes + row * in.cols;
        const float *scales = in.scales + row * blocks, *sums = in.sums + row * blocks;
        for (int64_t b = 0; b < blocks; b++, w += TILE_BYTES[FORMAT], codes += BLOCK) {
            const F d = load_half((const uint16_t*)w), m = load_half((const uint16_t*)(w + 32));
            Codes u[8];
            for (int j = 0; j < (FORMAT == U4 ? 4 : 8); j++) {
                const Codes c = load_codes(w + 64 + 64 * j);
                if (FORMAT == U4) u[j] = low_nibbles(c), u[j + 4] = high_nibbles(c);
                else u[j] = c;
            }
            for (int j = 0; j < TILE_BYTES[FORMAT]; j += 64) __builtin_prefetch(w + AHEAD + j);
            for (int i = 0; i < M; i++) {
                const int8_t* row_codes = codes + i * in.cols;
                I even = zero_int(), odd = zero_int();
                for (int j = 0; j < 8; j += 2) {
                    even = FORMAT == U4 ? dot4(even, u[j], row_codes + 4 * j) : dot4_wide(even, u[j], row_codes + 4 * j);
                    odd = FORMAT == U4 ? dot4(odd, u[j + 1], row_codes + 4 * j + 4)
                                       : dot4_wide(odd, u[j + 1], row_codes + 4 * j + 4);
                }
                acc[i] = fma(d * set(scales[i * blocks + b]), to_float(add(even, odd)), acc[i]);
                acc[i] = fma(m, set(sums[i * blocks + b]), acc[i]);
            }
        }
    }
    for (int i = 0; i < M; i++) result[i] = acc[i];
}

// The same for two neighbouring tiles of floats, so that a number of x is read once for both.
template <int M>
inline void tile_pair_product(const uint8_t* w, const Input& in, int64_t row, F* result, F* next_result) {
    F acc[M], next_acc[M];
    for (int i = 0; i < M; i++) acc[i] = next_acc[i] = set(0.0f);
    const float* x = in.x + row * in.cols;
    const float *tile = (const float*)w, *next = tile + in.cols * LANES;
    for (int64_t k = 0; k < in.cols; k++) {
        const F column = load(tile + k * LANES), next_column = load(next + k * LANES);
        for (int i = 0; i < M; i++) {
            const F value = set(x[i * in.cols + k]);
            acc[i] = fma(column, value, acc[i]), next_acc[i] = fma(next_column, value, next_acc[i]);
        }
    }
    for (int i = 0; i < M; i++) result[i] = acc[i], next_result[i] = next_acc[i];
}

#if defined(__AVX512VNNI__)
constexpr int ROWS = 8;  // of activations at once: what the registers hold
constexpr bool PAIRS = true;  // ... also of two tiles of floats
#else
constexpr int ROWS = 4;
constexpr bool PAIRS = false;
#endif

template <int FORMAT, int M>
inline void one_or_two(int sides, const uint8_t* w, const Input& in, int64_t row, int i, F (*result)[ROWS]) {
    if (FORMAT == F32 && sides == 2) tile_pair_product<M>(w, in, row + i, result[0] + i, result[1] + i);
    else tile_product<FORMAT, M>(w, in, row + i, result[0] + i);
}

// `rows` <= ROWS rows of activations with `tiles` tiles from `tile` on; out[i * stride + 16 t ...].
template <int FORMAT>
inline void product_of(const Matrix& w, int tile, int tiles, const Input& in, int64_t row, int rows, float* out, int64_t stride) {
    F result[2][ROWS];
    for (int t = 0, sides; t < tiles; t += sides) {
        sides = PAIRS && FORMAT == F32 && t + 1 < tiles ? 2 : 1;
        const uint8_t* data = w.data + (tile + t) * tile_bytes(w);
        for (int i = 0; i < rows;) {
            const int left = rows - i;
            if (ROWS >= 8 && left >= 8) one_or_two<FORMAT, 8>(sides, data, in, row, i, result), i += 8;
            else if (left >= 4) one_or_two<FORMAT, 4>(sides, data, in, row, i, result), i += 4;
            else if (left >= 2) one_or_two<FORMAT, 2>(sides, data, in, row, i, result), i += 2;
            else one_or_two<FORMAT, 1>(sides, data, in, row, i, result), i += 1;
        }
        for (int s = 0; s < sides; s++) {
            const int64_t first = (int64_t)(t + s) * LANES;
            if (w.bias != nullptr) {  // padded to whole tiles
                const F bias = load(w.bias + (int64_t)tile * LANES + first);
                for (int i = 0; i < rows; i++) result[s][i] = result[s][i] + bias;
            }
            for (int i = 0; i < rows; i++) store(out + i * stride + first, result[s][i]);
        }
    }
}

inline void product(const Matrix& w, int tile, int tiles, const Input& in, int64_t row, int rows, float* out, int64_t stride) {
    if (w.format == F32) product_of<F32>(w, tile, tiles, in, row, rows, out, stride);
    else if (w.format == U4) product_of<U4>(w, tile, tiles, in, row, rows, out, stride);
    else product_of<U8>(w, tile, tiles, in, row, rows, out, stride);
}

// One row of the matrix as floats: an embedding.
inline void read_row(const Matrix& w, int64_t row, float* out) {
    const uint8_t* data = w.data + row / LANES * tile_bytes(w);
    const int lane = (int)(row % LANES);
    if (w.format == F32) {
        for (int64_t k = 0; k < w.cols; k++) out[k] = ((const float*)data)[k * LANES + lane];
        return;
    }
    for (int64_t b = 0; b < w.cols / BLOCK; b++, data += TILE_BYTES[w.format]) {
        float d[LANES], m[LANES];
        store(d, load_half((const uint16_t*)data)), store(m, load_half((const uint16_t*)(data + 32)));
        for (int k = 0; k < BLOCK; k++) {
            const int j = w.format == U4 ? k % 16 : k;
            const uint8_t byte = data[64 + j / 4 * 64 + lane * 4 + j % 4];
            const int u = w.format == U8 ? byte : k < 16 ? byte & 15 : byte >> 4;
            out[b * BLOCK + k] = d[lane] * (float)u + m[lane];
        }
    }
}

}  // namespace
