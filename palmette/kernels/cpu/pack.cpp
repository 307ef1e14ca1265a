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
#include <atomic>
#include <cmath>
#include <memory>
#include <system_error>
#include <vector>

#include "core.h"
#include "half.h"
#include "threads.h"

static constexpr int64_t BLOCK = 32, LANES = 16, SCALES = 4 * LANES;
static constexpr int64_t TILES_AT_ONCE = 32;  // that a thread takes

static uint16_t half_at(const uint8_t* p) {
    uint16_t h;
    std::memcpy(&h, p, 2);
    return h;
}

static void put_half(uint8_t* tile, int64_t place, float x) {
    const uint16_t h = to_half(x);
    std::memcpy(tile + 2 * place, &h, 2);
}

static bool is_finite(uint16_t h) { return (h & 0x7C00) != 0x7C00; }

// Tiles [begin, end) block by block, so that a block's 16 rows are written together. `row_bytes` are those of a row in
// p.data, `part(from, b, tile, lane)` fills the tile from block b of the row at `from` and says whether it is finite.
template <class Part>
static bool each_block(const Packing& p, int64_t begin, int64_t end, int64_t row_bytes, int64_t tile_bytes, Part part) {
    const int64_t blocks = p.cols / BLOCK;
    bool finite = true;
    for (int64_t t = begin; t < end; t++) {
        const int64_t lanes = std::min(LANES, p.rows - t * LANES);
        const uint8_t* rows[LANES];
        for (int64_t i = 0; i < lanes; i++) {
            const int64_t r = t * LANES + i;
            rows[i] = (const uint8_t*)p.data + (p.order == nullptr ? r : p.order[r]) * row_bytes;
        }
        for (int64_t b = 0; b < blocks; b++) {
            uint8_t* tile = p.out + (t * blocks + b) * tile_bytes;
            for (int64_t i = 0; i < lanes; i++) finite &= part(rows[i], b, tile, i);
        }
    }
    return finite;
}

template <bool HAS_MIN>
static bool from_q4(const Packing& p, int64_t begin, int64_t end) {
    constexpr int64_t size = HAS_MIN ? 20 : 18, tile_bytes = SCALES + 16 * LANES;
    const auto part = [](const uint8_t* row, int64_t b, uint8_t* tile, int64_t lane) {
        const uint8_t* block = row + b * size;
        std::memcpy(tile + 2 * lane, block, 2);
        if constexpr (HAS_MIN) std::memcpy(tile + 32 + 2 * lane, block + 2, 2);
        else put_half(tile + 32, lane, -8 * from_half(half_at(block)));
        for (int64_t j = 0; j < 4; j++) std::memcpy(tile + SCALES + 64 * j + 4 * lane, block + size - 16 + 4 * j, 4);
        return is_finite(half_at(block)) && (!HAS_MIN || is_finite(half_at(block + 2)));
    };
    return each_block(p, begin, end, p.cols / BLOCK * size, tile_bytes, part);
}

static bool from_q8(const Packing& p, int64_t begin, int64_t end) {
    constexpr int64_t size = 34, tile_bytes = SCALES + 32 * LANES;
    const auto part = [](const uint8_t* row, int64_t b, uint8_t* tile, int64_t lane) {
        const uint8_t* block = row + b * size;
        std::memcpy(tile + 2 * lane, block, 2);
        put_half(tile + 32, lane, -128 * from_half(half_at(block)));
        for (int64_t j = 0; j < 8; j++) {
            uint32_t four;
            std::memcpy(&four, block + 2 + 4 * j, 4);
            four ^= 0x80808080u;
            std::memcpy(tile + SCALES + 64 * j + 4 * lane, &four, 4);
        }
        return is_finite(half_at(block));
    };
    return each_block(p, begin, end, p.cols / BLOCK * size, tile_bytes, part);
}

static bool floats(const Packing& p, int64_t begin, int64_t end) {
    for (int64_t r = begin * LANES; r < std::min<int64_t>(end * LANES, p.rows); r++) {
        const float* row = (const float*)p.data + r * p.cols;
        float* tile = (float*)p.out + r / LANES * p.cols * LANES + r % LANES;
        for (int64_t k = 0; k < p.cols; k++) tile[k * LANES] = row[k];
    }
    return true;
}

// In each block the 256 steps span its smallest and largest number (and a block of one value is exact).
static bool rounded(const Packing& p, int64_t begin, int64_t end) {
    const auto part = [](const uint8_t* row, int64_t b, uint8_t* tile, int64_t lane) {
        const float* x = (const float*)row + b * BLOCK;
        const auto ends = std::minmax_element(x, x + BLOCK);
        const float m = from_half(to_half(*ends.first));
        const float d = from_half(to_half((*ends.second - m) / 255));
        put_half(tile, lane, d), put_half(tile + 32, lane, m);
        for (int64_t k = 0; k < BLOCK; k++) {
            const float u = d > 0 ? std::nearbyint((x[k] - m) / d) : 0;
            tile[SCALES + k / 4 * 64 + 4 * lane + k % 4] = (uint8_t)std::min(255.0f, std::max(0.0f, u));
        }
        return true;
    };
    return each_block(p, begin, end, 4 * p.cols, SCALES + 32 * LANES, part);
}

static bool lay_out(const Packing& p, int64_t begin, int64_t end) {
    switch (p.source) {
        case FLOATS: return floats(p, begin, end);
        case ROUNDED: return rounded(p, begin, end);
        case FROM_Q4_0: return from_q4<false>(p, begin, end);
        case FROM_Q4_1: return from_q4<true>(p, begin, end);
        default: return from_q8(p, begin, end);
    }
}

// Tiles of one matrix that a thread takes at once.
struct Share {
    int64_t matrix, begin, end;
};

extern "C" {

#define EXPORT __attribute__((visibility("default")))

// Lay out matrices, whatever their sizes, on that many threads; on one where no others can be started.
EXPORT void palmette_pack(Packing* all, int64_t count, int32_t threads) {
    std::vector<Share> shares;
    for (int64_t m = 0; m < count; m++) {
        const int64_t tiles = (all[m].rows + LANES - 1) / LANES;
        for (int64_t t = 0; t < tiles; t += TILES_AT_ONCE) shares.push_back({m, t, std::min(t + TILES_AT_ONCE, tiles)});
    }
    std::vector<uint8_t> finite(shares.size());
    std::atomic<size_t> next{0};
    const auto work = [&] {
        for (size_t i; (i = next.fetch_add(1)) < shares.size();)
            finite[i] = lay_out(all[shares[i].matrix], shares[i].begin, shares[i].end);
    };
    std::unique_ptr<Threads> team;
    try {
        team = std::make_unique<Threads>((int)std::min<size_t>(threads, shares.size()));
    } catch (const std::system_error&) {
        team = std::make_unique<Threads>(1);
    }
    team->run([](const void* argument, int) { (*(const decltype(work)*)argument)(); }, &work);
    for (int64_t m = 0; m < count; m++) all[m].finite = 1;
    for (size_t i = 0; i < shares.size(); i++) all[shares[i].matrix].finite &= finite[i];
}

}  // extern "C"
