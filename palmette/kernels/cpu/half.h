// IEEE half precision, one number at a time, for CPUs and places without instructions for it.
#pragma once

#include <cstdint>
#include <cstring>

namespace {

inline float from_half(uint16_t h) {
    const uint32_t sign = (uint32_t)(h & 0x8000) << 16, rest = h & 0x7FFF;
    uint32_t bits = sign | ((rest << 13) + (112u << 23));
    if (rest >= 0x7C00) bits = sign | 0x7F800000u | (rest & 0x3FF) << 13;
    float x;
    if (rest < 0x400) {  // subnormal: a multiple of 2^-24
        x = (float)rest * 5.9604644775390625e-8f;
        return sign ? -x : x;
    }
    std::memcpy(&x, &bits, 4);
    return x;
}
inline uint16_t to_half(float x) {  // to the nearest, ties to even
    uint32_t bits;
    std::memcpy(&bits, &x, 4);
    const uint16_t sign = (uint16_t)(bits >> 16 & 0x8000);
    bits &= 0x7FFFFFFF;
    if (bits >= 0x7F800000u) return sign | 0x7C00 | (bits > 0x7F800000u ? 0x200 : 0);
    if (bits >= 0x477FF000u) return sign | 0x7C00;
    if (bits < 0x38800000u) {  // subnormal: let the FPU round at 2^-24
        float y;
        std::memcpy(&y, &bits, 4);
        y += 0.5f;
        std::memcpy(&bits, &y, 4);
        return sign | (uint16_t)(bits - 0x3F000000u);
    }
    return sign | (uint16_t)((bits - 0x38000000u + 0xFFF + (bits >> 13 & 1)) >> 13);
}

}  // namespace
