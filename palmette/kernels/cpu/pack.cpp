// From the files' layouts to tiles of 16 rows, so that one load brings the same columns of 16 outputs.
//
//     F32   column by column, 16 floats
//     U4    per block of 32 columns: d (16 halves), m (16 halves), then 4 x 64 bytes; byte 4 r + i of the j-th 64 holds
//           columns 4 j + i (low half) and 16 + 4 j + i (high half) of row r
//     U8    the same with 8 x 64 bytes, a byte for each column 4 j + i
//
// ggml's Q4_0, Q4_1 and Q8_0 keep their numbers exactly: w = d u + m, where Q4_0 has m = -8 d, and Q8_0 has u = q + 128
// and m = -128 d.
#include <algorithm>
#include <cmath>

#include "core.h"
#include "half.h"

static constexpr int64_t BLOCK = 32, LANES = 16;

static uint16_t half_at(const uint8_t* p) {
    uint16_t h;
    std::memcpy(&h, p, 2);
    return h;
}

static void put_half(uint8_t* tile, int64_t place, float x) {
    const uint16_t h = to_half(x);
    std::memcpy(tile + 2 * place, &h, 2);
}

template <class Row>
static void each_block(int64_t rows, int64_t cols, int64_t block_bytes, uint8_t* out, Row row) {
    const int64_t blocks = cols / BLOCK;
    for (int64_t r = 0; r < rows; r++) {
        for (int64_t b = 0; b < blocks; b++) row(r, b, out + ((r / LANES) * blocks + b) * block_bytes, r % LANES);
    }
}

static const uint8_t* row_of(const uint8_t* data, const int64_t* order, int64_t r, int64_t row_bytes) {
    return data + (order == nullptr ? r : order[r]) * row_bytes;
}

extern "C" {

#define EXPORT __attribute__((visibility("default")))

// `order`: the file's row for each row, or null. `out` is zeroed memory of whole tiles.

EXPORT void palmette_pack_q4(const uint8_t* data, const int64_t* order, int64_t rows, int64_t cols, int32_t has_min, uint8_t* out) {
    const int64_t size = has_min ? 20 : 18, blocks = cols / BLOCK;
    each_block(rows, cols, 64 + 16 * LANES, out, [&](int64_t r, int64_t b, uint8_t* tile, int64_t lane) {
        const uint8_t* block = row_of(data, order, r, blocks * size) + b * size;
        const float d = from_half(half_at(block));
        std::memcpy(tile + 2 * lane, block, 2);
        if (has_min) std::memcpy(tile + 32 + 2 * lane, block + 2, 2);
        else put_half(tile + 32, lane, -8 * d);
        for (int64_t j = 0; j < 4; j++) std::memcpy(tile + 64 + 64 * j + 4 * lane, block + size - 16 + 4 * j, 4);
    });
}

EXPORT void palmette_pack_q8(const uint8_t* data, const int64_t* order, int64_t rows, int64_t cols, uint8_t* out) {
    const int64_t size = 34, blocks = cols / BLOCK;
    each_block(rows, cols, 64 + 32 * LANES, out, [&](int64_t r, int64_t b, uint8_t* tile, int64_t lane) {
        const uint8_t* block = row_of(data, order, r, blocks * size) + b * size;
        std::memcpy(tile + 2 * lane, block, 2);
        put_half(tile + 32, lane, -128 * from_half(half_at(block)));
        for (int64_t k = 0; k < BLOCK; k++) tile[64 + k / 4 * 64 + 4 * lane + k % 4] = (uint8_t)(block[2 + k] ^ 0x80);
    });
}

EXPORT void palmette_pack_f32(const float* data, int64_t rows, int64_t cols, float* out) {
    for (int64_t r = 0; r < rows; r++) {
        float* tile = out + r / LANES * cols * LANES + r % LANES;
        for (int64_t k = 0; k < cols; k++) tile[k * LANES] = data[r * cols + k];
    }
}

// Floats to U8: in each block the 256 steps span its smallest and largest number (and a block of one value is exact).
EXPORT void palmette_quantize(const float* data, int64_t rows, int64_t cols, uint8_t* out) {
    each_block(rows, cols, 64 + 32 * LANES, out, [&](int64_t r, int64_t b, uint8_t* tile, int64_t lane) {
        const float* x = data + r * cols + b * BLOCK;
        const auto ends = std::minmax_element(x, x + BLOCK);
        const float m = from_half(to_half(*ends.first));
        const float d = from_half(to_half((*ends.second - m) / 255));
        put_half(tile, lane, d), put_half(tile + 32, lane, m);
        for (int64_t k = 0; k < BLOCK; k++) {
            const float u = d > 0 ? std::nearbyint((x[k] - m) / d) : 0;
            tile[64 + k / 4 * 64 + 4 * lane + k % 4] = (uint8_t)std::min(255.0f, std::max(0.0f, u));
        }
    });
}

}  // extern "C"
