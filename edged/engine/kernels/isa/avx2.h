// The vector operations of x86-64 with AVX2, FMA and F16C; with EDGED_VNNI the int8 products use AVX-512 VNNI
// on 256-bit registers. Everything is in the including file's anonymous namespace, so that no function
// compiled for this ISA can leak into another.
#pragma once
#include <immintrin.h>

#include <cstdint>
#include <cstring>

#include "kernels.h"

namespace {

// Eight float32 lanes.
struct F8 {
  __m256 v;
};
inline F8 load(const float* p) { return {_mm256_loadu_ps(p)}; }
inline void store(float* p, F8 a) { _mm256_storeu_ps(p, a.v); }
inline F8 splat(float a) { return {_mm256_set1_ps(a)}; }
inline F8 zero() { return {_mm256_setzero_ps()}; }
inline F8 add(F8 a, F8 b) { return {_mm256_add_ps(a.v, b.v)}; }
inline F8 sub(F8 a, F8 b) { return {_mm256_sub_ps(a.v, b.v)}; }
inline F8 mul(F8 a, F8 b) { return {_mm256_mul_ps(a.v, b.v)}; }
inline F8 divide(F8 a, F8 b) { return {_mm256_div_ps(a.v, b.v)}; }
inline F8 fma(F8 a, F8 b, F8 c) { return {_mm256_fmadd_ps(a.v, b.v, c.v)}; }
inline F8 max(F8 a, F8 b) { return {_mm256_max_ps(a.v, b.v)}; }
inline F8 min(F8 a, F8 b) { return {_mm256_min_ps(a.v, b.v)}; }
inline F8 abs(F8 a) { return {_mm256_andnot_ps(_mm256_set1_ps(-0.0f), a.v)}; }
inline F8 nearest(F8 a) { return {_mm256_round_ps(a.v, _MM_FROUND_TO_NEAREST_INT | _MM_FROUND_NO_EXC)}; }
// 2^a for whole a in −126…127.
inline F8 power_of_two(F8 a) {
  return {_mm256_castsi256_ps(
      _mm256_slli_epi32(_mm256_add_epi32(_mm256_cvtps_epi32(a.v), _mm256_set1_epi32(127)), 23))};
}
inline F8 load_f16(const uint16_t* p) { return {_mm256_cvtph_ps(_mm_loadu_si128((const __m128i*)p))}; }
inline void store_f16(uint16_t* p, F8 a) { _mm_storeu_si128((__m128i*)p, _mm256_cvtps_ph(a.v, 0)); }
inline F8 load_bf16(const uint16_t* p) {
  return {
      _mm256_castsi256_ps(_mm256_slli_epi32(_mm256_cvtepu16_epi32(_mm_loadu_si128((const __m128i*)p)), 16))};
}
inline F8 load_int8(const uint8_t* p) {
  return {_mm256_cvtepi32_ps(_mm256_cvtepi8_epi32(_mm_loadl_epi64((const __m128i*)p)))};
}
// The low and the high halves of 8 bytes.
inline F8 load_low_nibbles(const uint8_t* p) {
  const __m256i bytes = _mm256_cvtepu8_epi32(_mm_loadl_epi64((const __m128i*)p));
  return {_mm256_cvtepi32_ps(_mm256_and_si256(bytes, _mm256_set1_epi32(15)))};
}
inline F8 load_high_nibbles(const uint8_t* p) {
  const __m256i bytes = _mm256_cvtepu8_epi32(_mm_loadl_epi64((const __m128i*)p));
  return {_mm256_cvtepi32_ps(_mm256_srli_epi32(bytes, 4))};
}
// Sums and maxima over the lanes, always in this order: (0+4, 1+5, …), then (0+2, 1+3), then 0+1.
inline float sum_lanes(F8 a) {
  __m128 x = _mm_add_ps(_mm256_castps256_ps128(a.v), _mm256_extractf128_ps(a.v, 1));
  x = _mm_add_ps(x, _mm_movehl_ps(x, x));
  return _mm_cvtss_f32(_mm_add_ss(x, _mm_movehdup_ps(x)));
}
inline float max_lanes(F8 a) {
  __m128 x = _mm_max_ps(_mm256_castps256_ps128(a.v), _mm256_extractf128_ps(a.v, 1));
  x = _mm_max_ps(x, _mm_movehl_ps(x, x));
  return _mm_cvtss_f32(_mm_max_ss(x, _mm_movehdup_ps(x)));
}

// The larger magnitude, lane by lane; `top` is not negative. Bits of positive floats order like integers, NaN
// above all, so it stays.
inline F8 larger_magnitude(F8 top, F8 a) {
  return {_mm256_castsi256_ps(_mm256_max_epi32(_mm256_castps_si256(top.v), _mm256_castps_si256(abs(a).v)))};
}
inline float max_magnitude(F8 a) {
  const __m256i bits = _mm256_castps_si256(a.v);
  __m128i x = _mm_max_epi32(_mm256_castsi256_si128(bits), _mm256_extracti128_si256(bits, 1));
  x = _mm_max_epi32(x, _mm_shuffle_epi32(x, 0x4e));
  x = _mm_max_epi32(x, _mm_shuffle_epi32(x, 0xb1));
  return _mm_cvtss_f32(_mm_castsi128_ps(x));
}

// Eight int32 lanes.
struct I8 {
  __m256i v;
};
inline I8 splat_int(int32_t a) { return {_mm256_set1_epi32(a)}; }
inline I8 add(I8 a, I8 b) { return {_mm256_add_epi32(a.v, b.v)}; }
inline I8 sub(I8 a, I8 b) { return {_mm256_sub_epi32(a.v, b.v)}; }
inline F8 to_float(I8 a) { return {_mm256_cvtepi32_ps(a.v)}; }
inline I8 to_int(F8 a) { return {_mm256_cvtps_epi32(a.v)}; }
inline int32_t sum_lanes(I8 a) {
  __m128i x = _mm_add_epi32(_mm256_castsi256_si128(a.v), _mm256_extracti128_si256(a.v, 1));
  x = _mm_add_epi32(x, _mm_shuffle_epi32(x, 0x4e));
  return _mm_cvtsi128_si32(_mm_add_epi32(x, _mm_shuffle_epi32(x, 0xb1)));
}
// The lanes as int8, saturated.
inline void store_int8(int8_t* p, I8 a) {
  __m128i x = _mm_packs_epi32(_mm256_castsi256_si128(a.v), _mm256_extracti128_si256(a.v, 1));
  _mm_storel_epi64((__m128i*)p, _mm_packs_epi16(x, x));
}

// 32 int8 weights: 8 rows of 4 consecutive k each; and 4 activations of a group of 32, k … k + 3, repeated
// for every row.
using W32 = __m256i;
using A4 = __m256i;
inline W32 load_w(const uint8_t* p) {
  W32 w = _mm256_loadu_si256((const __m256i*)p);
#if defined(__GNUC__)
  asm(""
      : "+x"(w));  // one load: GCC loaded twice, for low and for high nibbles: 48 loads for a group of four
                   // tiles in place of 32
#endif
  return w;
}
inline void store_w(uint8_t* p, W32 w) { _mm256_storeu_si256((__m256i*)p, w); }
// `bits` bits of every byte, moved from bit `from` to bit `to`.
template <int from, int bits, int to>
inline W32 field(W32 w) {
  const __m256i moved = from > to ? _mm256_srli_epi16(w, from > to ? from - to : 0)
                                  : _mm256_slli_epi16(w, to > from ? to - from : 0);
  return _mm256_and_si256(moved, _mm256_set1_epi8((char)(((1 << bits) - 1) << to)));
}
inline W32 combine(W32 a, W32 b) { return _mm256_or_si256(a, b); }
// The entries of a table that the codes 0 … 15 select.
inline W32 look_up(const int8_t (&table)[16], W32 w) {
  return _mm256_shuffle_epi8(_mm256_broadcastsi128_si256(_mm_loadu_si128((const __m128i*)table)), w);
}
inline A4 load_a(const int8_t* group, int k) {
  int32_t word;
  memcpy(&word, group + k, 4);
  return _mm256_set1_epi32(word);
}

constexpr int kStrips = 4;  // AVX2: 2 and 3 were slower, 6 and 8 no faster; VNNI: other counts not measured
// Attention lanes up to which float16 is converted as it is loaded: always, a float32 load costs as much.
constexpr int kConvertOnLoadLanes = edged::kMaxLanes;
constexpr int kSingleLaneVectors = 8;  // of values for a single lane: with 4 its sums wait for each other
constexpr int kRegisterRows = 4;       // of activations, beside two tiles in registers; 3 to 6 within 5 %

// Dot products of codes from 0 on (to 15 … 63) and of 8-bit codes with int8 activations, 8 rows at once.
#ifdef EDGED_VNNI
constexpr int kLargestSum4 = 1 << 30;  // of codes that one lane of Sum4 multiplies with activations of 127
constexpr int kBias8 = 128;            // 8-bit weights are multiplied as unsigned: code + 128
inline W32 prepare8(W32 w) { return _mm256_xor_si256(w, _mm256_set1_epi8((char)0x80)); }
using Sum4 = __m256i;
using Sum8 = __m256i;
inline Sum4 start4(int32_t) { return _mm256_setzero_si256(); }  // starting at the offset was 5 % slower
inline Sum8 no_sum8() { return _mm256_setzero_si256(); }
inline Sum4 dot4(Sum4 s, W32 w, A4 a) { return _mm256_dpbusd_epi32(s, w, a); }
inline Sum8 dot8(Sum8 s, W32 w, A4 a) { return _mm256_dpbusd_epi32(s, w, a); }
inline I8 rows4(Sum4 s, int32_t offset) { return add(I8{s}, splat_int(offset)); }
inline I8 rows8(Sum8 s) { return {s}; }
#else
constexpr int kBias8 = 0;
inline W32 prepare8(W32 w) { return w; }
// 129 × 2 × 127 = 32,766 fits an int16 lane: sums of 4 bits are widened once in 32 k, of more bits earlier.
constexpr int kLargestSum4 = 129;
using Sum4 = __m256i;
using Sum8 = __m256i;
inline Sum4 start4(int32_t) { return _mm256_setzero_si256(); }
inline Sum8 no_sum8() { return _mm256_setzero_si256(); }
// Sums grow one product after another. Without this GCC rebalances the additions into a tree, keeps a group's
// 32 products at once and spills them: 47 of 171 instructions for four rows.
inline __m256i in_order(__m256i sum) {
#if defined(__GNUC__)
  asm("" : "+x"(sum));
#endif
  return sum;
}
inline Sum4 dot4(Sum4 s, W32 w, A4 a) { return in_order(_mm256_add_epi16(s, _mm256_maddubs_epi16(w, a))); }
// |w| is unsigned, w's sign goes to a; 2 × 128 × 127 = 32,512 fits.
inline Sum8 dot8(Sum8 s, W32 w, A4 a) {
  const __m256i pairs = _mm256_maddubs_epi16(_mm256_abs_epi8(w), _mm256_sign_epi8(a, w));
  return in_order(_mm256_add_epi32(s, _mm256_madd_epi16(pairs, _mm256_set1_epi16(1))));
}
inline I8 rows4(Sum4 s, int32_t offset) {
  return add(I8{_mm256_madd_epi16(s, _mm256_set1_epi16(1))}, splat_int(offset));
}
inline I8 rows8(Sum8 s) { return {s}; }
#endif

inline void prefetch(const void* p) { _mm_prefetch((const char*)p, _MM_HINT_T0); }
// Into the second-level cache: data that is needed a few microseconds later must not occupy the first level's
// few miss buffers.
inline void prefetch_next(const void* p) { _mm_prefetch((const char*)p, _MM_HINT_T1); }

}  // namespace
