// Sixteen lanes at a time, written once for each instruction set: AVX-512, AVX2 (two halves), and the compiler's own
// vectors anywhere else. Everything that includes this lives in an anonymous namespace, because the same functions are
// compiled several times with different instructions.
//
// FP operations round as written (-ffp-contract=off), so a result depends on neither the caller nor the inlining.
#pragma once

#include <cstdint>
#include <cstring>

#include "half.h"

#if defined(__AVX512VNNI__) || defined(__AVX2__)
#include <immintrin.h>
#endif

namespace {

constexpr int LANES = 16;

#if defined(__AVX512VNNI__)

struct F { __m512 v; };
struct I { __m512i v; };
struct Codes { __m512i v; };  // 64 unsigned bytes: 16 lanes of 4

inline F load(const float* p) { return {_mm512_loadu_ps(p)}; }
inline void store(float* p, F a) { _mm512_storeu_ps(p, a.v); }
inline F set(float x) { return {_mm512_set1_ps(x)}; }
inline F operator+(F a, F b) { return {_mm512_add_ps(a.v, b.v)}; }
inline F operator-(F a, F b) { return {_mm512_sub_ps(a.v, b.v)}; }
inline F operator*(F a, F b) { return {_mm512_mul_ps(a.v, b.v)}; }
inline F operator/(F a, F b) { return {_mm512_div_ps(a.v, b.v)}; }
inline F fma(F a, F b, F c) { return {_mm512_fmadd_ps(a.v, b.v, c.v)}; }
inline F max(F a, F b) { return {_mm512_max_ps(a.v, b.v)}; }
inline F min(F a, F b) { return {_mm512_min_ps(a.v, b.v)}; }
inline F abs(F a) { return {_mm512_abs_ps(a.v)}; }
inline F zero_below(F a, F x, float bound) {  // x < bound ? 0 : a; NaN is not below
    return {_mm512_maskz_mov_ps(_mm512_cmp_ps_mask(x.v, _mm512_set1_ps(bound), _CMP_NLT_UQ), a.v)};
}
inline F choose(uint16_t bits, F a, F b) { return {_mm512_mask_blend_ps(bits, b.v, a.v)}; }  // by lane: bit ? a : b
inline I round_to_int(F a) { return {_mm512_cvtps_epi32(a.v)}; }
inline F to_float(I a) { return {_mm512_cvtepi32_ps(a.v)}; }
inline I zero_int() { return {_mm512_setzero_si512()}; }
inline F power_of_two(I n) {  // 2^n, -126 <= n <= 127
    return {_mm512_castsi512_ps(_mm512_slli_epi32(_mm512_add_epi32(n.v, _mm512_set1_epi32(127)), 23))};
}
inline I add(I a, I b) { return {_mm512_add_epi32(a.v, b.v)}; }
inline void store_int8(int8_t* p, I a) { _mm_storeu_si128((__m128i*)p, _mm512_cvtepi32_epi8(a.v)); }
inline int sum(I a) { return _mm512_reduce_add_epi32(a.v); }
inline F load_half(const uint16_t* p) { return {_mm512_cvtph_ps(_mm256_loadu_si256((const __m256i*)p))}; }
inline void store_half(uint16_t* p, F a) {
    _mm256_storeu_si256((__m256i*)p, _mm512_cvtps_ph(a.v, _MM_FROUND_TO_NEAREST_INT | _MM_FROUND_NO_EXC));
}
inline Codes load_codes(const uint8_t* p) { return {_mm512_loadu_si512(p)}; }
inline Codes low_nibbles(Codes c) { return {_mm512_and_si512(c.v, _mm512_set1_epi8(15))}; }
inline Codes high_nibbles(Codes c) { return {_mm512_and_si512(_mm512_srli_epi16(c.v, 4), _mm512_set1_epi8(15))}; }
// Adds to each lane its four codes times the four signed bytes at p. Codes up to 15 for `dot4`, 255 for `dot4_wide`.
inline I dot4(I acc, Codes c, const int8_t* p) {
    int32_t four;
    std::memcpy(&four, p, 4);
    return {_mm512_dpbusd_epi32(acc.v, c.v, _mm512_set1_epi32(four))};
}
inline I dot4_wide(I acc, Codes c, const int8_t* p) { return dot4(acc, c, p); }
inline void transpose(const F* rows, float* out, int64_t out_stride) {  // 16 x 16
    __m512 r[16], s[16];
    for (int i = 0; i < 16; i++) r[i] = rows[i].v;
    for (int i = 0; i < 16; i += 4) {  // 4 x 4 inside each quarter of a register
        const __m512 a = _mm512_unpacklo_ps(r[i], r[i + 1]), b = _mm512_unpackhi_ps(r[i], r[i + 1]);
        const __m512 c = _mm512_unpacklo_ps(r[i + 2], r[i + 3]), d = _mm512_unpackhi_ps(r[i + 2], r[i + 3]);
        s[i] = _mm512_shuffle_ps(a, c, 0x44), s[i + 1] = _mm512_shuffle_ps(a, c, 0xEE);
        s[i + 2] = _mm512_shuffle_ps(b, d, 0x44), s[i + 3] = _mm512_shuffle_ps(b, d, 0xEE);
    }
    for (int i = 0; i < 4; i++) {  // then the quarters
        const __m512 a = _mm512_shuffle_f32x4(s[i], s[i + 4], 0x88), b = _mm512_shuffle_f32x4(s[i], s[i + 4], 0xDD);
        const __m512 c = _mm512_shuffle_f32x4(s[i + 8], s[i + 12], 0x88), d = _mm512_shuffle_f32x4(s[i + 8], s[i + 12], 0xDD);
        _mm512_storeu_ps(out + i * out_stride, _mm512_shuffle_f32x4(a, c, 0x88));
        _mm512_storeu_ps(out + (i + 8) * out_stride, _mm512_shuffle_f32x4(a, c, 0xDD));
        _mm512_storeu_ps(out + (i + 4) * out_stride, _mm512_shuffle_f32x4(b, d, 0x88));
        _mm512_storeu_ps(out + (i + 12) * out_stride, _mm512_shuffle_f32x4(b, d, 0xDD));
    }
}
inline float sum(F a) { return _mm512_reduce_add_ps(a.v); }
inline float largest(F a) { return _mm512_reduce_max_ps(a.v); }

#elif defined(__AVX2__)

struct F { __m256 a, b; };
struct I { __m256i a, b; };
struct Codes { __m256i a, b; };

inline F load(const float* p) { return {_mm256_loadu_ps(p), _mm256_loadu_ps(p + 8)}; }
inline void store(float* p, F x) { _mm256_storeu_ps(p, x.a), _mm256_storeu_ps(p + 8, x.b); }
inline F set(float x) { return {_mm256_set1_ps(x), _mm256_set1_ps(x)}; }
inline F operator+(F x, F y) { return {_mm256_add_ps(x.a, y.a), _mm256_add_ps(x.b, y.b)}; }
inline F operator-(F x, F y) { return {_mm256_sub_ps(x.a, y.a), _mm256_sub_ps(x.b, y.b)}; }
inline F operator*(F x, F y) { return {_mm256_mul_ps(x.a, y.a), _mm256_mul_ps(x.b, y.b)}; }
inline F operator/(F x, F y) { return {_mm256_div_ps(x.a, y.a), _mm256_div_ps(x.b, y.b)}; }
inline F fma(F x, F y, F z) { return {_mm256_fmadd_ps(x.a, y.a, z.a), _mm256_fmadd_ps(x.b, y.b, z.b)}; }
inline F max(F x, F y) { return {_mm256_max_ps(x.a, y.a), _mm256_max_ps(x.b, y.b)}; }
inline F min(F x, F y) { return {_mm256_min_ps(x.a, y.a), _mm256_min_ps(x.b, y.b)}; }
inline F abs(F x) {
    const __m256 sign = _mm256_set1_ps(-0.0f);
    return {_mm256_andnot_ps(sign, x.a), _mm256_andnot_ps(sign, x.b)};
}
inline F zero_below(F v, F x, float bound) {
    const __m256 b = _mm256_set1_ps(bound);
    return {_mm256_and_ps(v.a, _mm256_cmp_ps(x.a, b, _CMP_NLT_UQ)), _mm256_and_ps(v.b, _mm256_cmp_ps(x.b, b, _CMP_NLT_UQ))};
}
inline __m256 lanes_of(int bits) {
    const __m256i each = _mm256_setr_epi32(1, 2, 4, 8, 16, 32, 64, 128);
    return _mm256_castsi256_ps(_mm256_cmpeq_epi32(_mm256_and_si256(_mm256_set1_epi32(bits), each), each));
}
inline F choose(uint16_t bits, F x, F y) {
    return {_mm256_blendv_ps(y.a, x.a, lanes_of(bits & 255)), _mm256_blendv_ps(y.b, x.b, lanes_of(bits >> 8))};
}
inline I round_to_int(F x) { return {_mm256_cvtps_epi32(x.a), _mm256_cvtps_epi32(x.b)}; }
inline F to_float(I x) { return {_mm256_cvtepi32_ps(x.a), _mm256_cvtepi32_ps(x.b)}; }
inline I zero_int() { return {_mm256_setzero_si256(), _mm256_setzero_si256()}; }
inline F power_of_two(I n) {
    const __m256i bias = _mm256_set1_epi32(127);
    return {_mm256_castsi256_ps(_mm256_slli_epi32(_mm256_add_epi32(n.a, bias), 23)),
            _mm256_castsi256_ps(_mm256_slli_epi32(_mm256_add_epi32(n.b, bias), 23))};
}
inline I add(I x, I y) { return {_mm256_add_epi32(x.a, y.a), _mm256_add_epi32(x.b, y.b)}; }
inline void store_int8(int8_t* p, I x) {
    const __m256i words = _mm256_permute4x64_epi64(_mm256_packs_epi32(x.a, x.b), 0xD8);
    const __m128i bytes = _mm_packs_epi16(_mm256_castsi256_si128(words), _mm256_extracti128_si256(words, 1));
    _mm_storeu_si128((__m128i*)p, bytes);
}
inline int sum(I x) {
    alignas(32) int32_t lanes[8];
    _mm256_store_si256((__m256i*)lanes, _mm256_add_epi32(x.a, x.b));
    int total = 0;
    for (int lane : lanes) total += lane;
    return total;
}
inline F load_half(const uint16_t* p) {
    return {_mm256_cvtph_ps(_mm_loadu_si128((const __m128i*)p)), _mm256_cvtph_ps(_mm_loadu_si128((const __m128i*)(p + 8)))};
}
inline void store_half(uint16_t* p, F x) {
    _mm_storeu_si128((__m128i*)p, _mm256_cvtps_ph(x.a, _MM_FROUND_TO_NEAREST_INT | _MM_FROUND_NO_EXC));
    _mm_storeu_si128((__m128i*)(p + 8), _mm256_cvtps_ph(x.b, _MM_FROUND_TO_NEAREST_INT | _MM_FROUND_NO_EXC));
}
inline Codes load_codes(const uint8_t* p) {
    return {_mm256_loadu_si256((const __m256i*)p), _mm256_loadu_si256((const __m256i*)(p + 32))};
}
inline Codes low_nibbles(Codes c) {
    const __m256i mask = _mm256_set1_epi8(15);
    return {_mm256_and_si256(c.a, mask), _mm256_and_si256(c.b, mask)};
}
inline Codes high_nibbles(Codes c) {
    return low_nibbles({_mm256_srli_epi16(c.a, 4), _mm256_srli_epi16(c.b, 4)});
}
inline I dot4(I acc, Codes c, const int8_t* p) {  // pairs stay below 2^15: 2 * 15 * 128
    int32_t four;
    std::memcpy(&four, p, 4);
    const __m256i s = _mm256_set1_epi32(four), ones = _mm256_set1_epi16(1);
    return {_mm256_add_epi32(acc.a, _mm256_madd_epi16(_mm256_maddubs_epi16(c.a, s), ones)),
            _mm256_add_epi32(acc.b, _mm256_madd_epi16(_mm256_maddubs_epi16(c.b, s), ones))};
}
inline I dot4_wide(I acc, Codes c, const int8_t* p) {  // pairs of whole bytes would saturate
    const I high = dot4(zero_int(), high_nibbles(c), p);
    acc = {_mm256_add_epi32(acc.a, _mm256_slli_epi32(high.a, 4)), _mm256_add_epi32(acc.b, _mm256_slli_epi32(high.b, 4))};
    return dot4(acc, low_nibbles(c), p);
}
inline void transpose(const F* rows, float* out, int64_t out_stride) {  // 16 x 16, by 4 x 4
    const float* in = (const float*)rows;
    for (int i = 0; i < 16; i += 4) {
        for (int j = 0; j < 16; j += 4) {
            const float* from = in + 16 * i + j;
            __m128 a = _mm_loadu_ps(from), b = _mm_loadu_ps(from + 16);
            __m128 c = _mm_loadu_ps(from + 32), d = _mm_loadu_ps(from + 48);
            _MM_TRANSPOSE4_PS(a, b, c, d);
            float* to = out + j * out_stride + i;
            _mm_storeu_ps(to, a), _mm_storeu_ps(to + out_stride, b);
            _mm_storeu_ps(to + 2 * out_stride, c), _mm_storeu_ps(to + 3 * out_stride, d);
        }
    }
}
inline float sum(F x) {
    alignas(32) float lanes[8];
    _mm256_store_ps(lanes, _mm256_add_ps(x.a, x.b));
    return ((lanes[0] + lanes[4]) + (lanes[2] + lanes[6])) + ((lanes[1] + lanes[5]) + (lanes[3] + lanes[7]));
}
inline float largest(F x) {
    alignas(32) float lanes[8];
    _mm256_store_ps(lanes, _mm256_max_ps(x.a, x.b));
    float best = lanes[0];
    for (float lane : lanes) best = lane > best ? lane : best;
    return best;
}

#else

// Four of the compiler's vectors of 16 bytes, which every target has (or takes apart well).
typedef float Floats __attribute__((vector_size(16)));
typedef int32_t Ints __attribute__((vector_size(16)));
typedef uint16_t Shorts __attribute__((vector_size(16)));
struct F { Floats v[4]; };
struct I { Ints v[4]; };
struct Codes { Shorts v[4]; };  // two bytes each

template <class To, class Quarter>
inline To quarters(Quarter quarter) {
    To result;
    for (int i = 0; i < 4; i++) result.v[i] = quarter(i);
    return result;
}
template <class To, class From>
inline To bits_of(From from) {
    static_assert(sizeof(To) == sizeof(From), "bits are only read in another way");
    To to;
    std::memcpy(&to, &from, sizeof to);
    return to;
}
inline Floats four(float x) { return Floats{x, x, x, x}; }

inline F load(const float* p) { F a; std::memcpy(&a, p, 64); return a; }
inline void store(float* p, F a) { std::memcpy(p, &a, 64); }
inline F set(float x) { return quarters<F>([&](int) { return four(x); }); }
inline F operator+(F a, F b) { return quarters<F>([&](int i) { return a.v[i] + b.v[i]; }); }
inline F operator-(F a, F b) { return quarters<F>([&](int i) { return a.v[i] - b.v[i]; }); }
inline F operator*(F a, F b) { return quarters<F>([&](int i) { return a.v[i] * b.v[i]; }); }
inline F operator/(F a, F b) { return quarters<F>([&](int i) { return a.v[i] / b.v[i]; }); }
inline F fma(F a, F b, F c) { return quarters<F>([&](int i) { return a.v[i] * b.v[i] + c.v[i]; }); }
inline F max(F a, F b) { return quarters<F>([&](int i) { return a.v[i] > b.v[i] ? a.v[i] : b.v[i]; }); }
inline F min(F a, F b) { return quarters<F>([&](int i) { return a.v[i] < b.v[i] ? a.v[i] : b.v[i]; }); }
inline F abs(F a) { return quarters<F>([&](int i) { return a.v[i] < 0 ? -a.v[i] : a.v[i]; }); }
inline F zero_below(F a, F x, float bound) { return quarters<F>([&](int i) { return x.v[i] < bound ? four(0) : a.v[i]; }); }
inline F choose(uint16_t bits, F a, F b) {
    F r;
    for (int i = 0; i < LANES; i++) r.v[i / 4][i % 4] = bits >> i & 1 ? a.v[i / 4][i % 4] : b.v[i / 4][i % 4];
    return r;
}
inline F to_float(I a) { return quarters<F>([&](int i) { return __builtin_convertvector(a.v[i], Floats); }); }
inline I round_to_int(F a) {  // adding 1.5 * 2^23 leaves the nearest even integer in the low bits, |a| < 2^22
    const Floats magic = four(12582912.0f);
    return quarters<I>([&](int i) { return bits_of<Ints>(a.v[i] + magic) - bits_of<Ints>(magic); });
}
inline I zero_int() { return quarters<I>([](int) { return Ints{}; }); }
inline F power_of_two(I n) { return quarters<F>([&](int i) { return bits_of<Floats>((n.v[i] + 127) << 23); }); }
inline I add(I a, I b) { return quarters<I>([&](int i) { return a.v[i] + b.v[i]; }); }
inline void store_int8(int8_t* p, I a) {
    for (int i = 0; i < LANES; i++) p[i] = (int8_t)a.v[i / 4][i % 4];
}
inline int sum(I a) {
    const Ints s = (a.v[0] + a.v[1]) + (a.v[2] + a.v[3]);
    return s[0] + s[1] + s[2] + s[3];
}
inline F load_half(const uint16_t* p) { return quarters<F>([&](int i) {
    return Floats{from_half(p[4 * i]), from_half(p[4 * i + 1]), from_half(p[4 * i + 2]), from_half(p[4 * i + 3])};
}); }
inline void store_half(uint16_t* p, F a) {
    for (int i = 0; i < LANES; i++) p[i] = to_half(a.v[i / 4][i % 4]);
}
inline Codes load_codes(const uint8_t* p) { Codes c; std::memcpy(&c, p, 64); return c; }
inline Codes low_nibbles(Codes c) { return quarters<Codes>([&](int i) { return c.v[i] & 0x0F0F; }); }
inline Codes high_nibbles(Codes c) { return quarters<Codes>([&](int i) { return c.v[i] >> 4 & 0x0F0F; }); }
inline Ints sum_pairs(Shorts products) {  // of neighbouring signed 16-bit numbers
    const Ints x = bits_of<Ints>(products);
    return ((x << 16) >> 16) + (x >> 16);
}
inline I dot4(I acc, Codes c, const int8_t* p) {  // a product of bytes fits into 16 bits: 255 * 127
    const uint16_t a = (uint16_t)p[0], b = (uint16_t)p[1], x = (uint16_t)p[2], y = (uint16_t)p[3];
    const Shorts even{a, x, a, x, a, x, a, x}, odd{b, y, b, y, b, y, b, y};
    return quarters<I>([&](int i) {
        return acc.v[i] + sum_pairs((c.v[i] & 0x00FF) * even) + sum_pairs((c.v[i] >> 8) * odd);
    });
}
inline I dot4_wide(I acc, Codes c, const int8_t* p) { return dot4(acc, c, p); }
inline void transpose(const F* rows, float* out, int64_t out_stride) {  // 16 x 16
    for (int i = 0; i < 16; i++) {
        for (int j = 0; j < 16; j++) out[j * out_stride + i] = rows[i].v[j / 4][j % 4];
    }
}
inline float sum(F a) {
    const Floats s = (a.v[0] + a.v[1]) + (a.v[2] + a.v[3]);
    return (s[0] + s[1]) + (s[2] + s[3]);
}
inline float largest(F a) {
    float best = a.v[0][0];
    for (int i = 1; i < LANES; i++) best = a.v[i / 4][i % 4] > best ? a.v[i / 4][i % 4] : best;
    return best;
}

#endif

// e^x for x <= 88, exactly 0 below -87 (minus infinity included). Range reduction by ln 2 in two parts, then a
// polynomial for 2^f - 1 of Cephes' degree (Moshier, Methods and Programs for Mathematical Functions, 1989).
inline F exp(F x) {
    const F clamped = min(set(88.0f), max(set(-87.0f), x));  // in this order NaN stays NaN
    const I n = round_to_int(clamped * set(1.44269504088896341f));
    const F nf = to_float(n);
    F r = fma(nf, set(-0.693359375f), clamped);
    r = fma(nf, set(2.12194440e-4f), r);
    F p = set(1.9875691500e-4f);
    p = fma(p, r, set(1.3981999507e-3f));
    p = fma(p, r, set(8.3334519073e-3f));
    p = fma(p, r, set(4.1665795894e-2f));
    p = fma(p, r, set(1.6666665459e-1f));
    p = fma(p, r, set(5.0000001201e-1f));
    p = fma(p, r * r, r) + set(1.0f);
    return zero_below(p * power_of_two(n), x, -87.0f);
}

inline F tanh(F x) {  // 1 - 2 / (e^2x + 1)
    return set(1.0f) - set(2.0f) / (exp(min(x + x, set(80.0f))) + set(1.0f));
}

}  // namespace
