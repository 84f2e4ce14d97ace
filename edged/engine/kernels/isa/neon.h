// The vector operations of aarch64 NEON; with EDGED_DOTPROD the int8 products use SDOT (Cortex-A76, A78AE),
// without it widening multiplies (Cortex-A72). Half precision is converted by the base instruction set
// (FCVTL, FCVTN).
#pragma once
#include <arm_neon.h>

#include <cstdint>
#include <cstring>

namespace {

struct F8 {
  float32x4_t a, b;
};
inline F8 load(const float* p) { return {vld1q_f32(p), vld1q_f32(p + 4)}; }
inline void store(float* p, F8 x) {
  vst1q_f32(p, x.a);
  vst1q_f32(p + 4, x.b);
}
inline F8 splat(float x) { return {vdupq_n_f32(x), vdupq_n_f32(x)}; }
inline F8 zero() { return splat(0); }
inline F8 add(F8 x, F8 y) { return {vaddq_f32(x.a, y.a), vaddq_f32(x.b, y.b)}; }
inline F8 sub(F8 x, F8 y) { return {vsubq_f32(x.a, y.a), vsubq_f32(x.b, y.b)}; }
inline F8 mul(F8 x, F8 y) { return {vmulq_f32(x.a, y.a), vmulq_f32(x.b, y.b)}; }
inline F8 divide(F8 x, F8 y) { return {vdivq_f32(x.a, y.a), vdivq_f32(x.b, y.b)}; }
inline F8 fma(F8 x, F8 y, F8 c) { return {vfmaq_f32(c.a, x.a, y.a), vfmaq_f32(c.b, x.b, y.b)}; }
inline F8 max(F8 x, F8 y) { return {vmaxq_f32(x.a, y.a), vmaxq_f32(x.b, y.b)}; }
inline F8 min(F8 x, F8 y) { return {vminq_f32(x.a, y.a), vminq_f32(x.b, y.b)}; }
inline F8 abs(F8 x) { return {vabsq_f32(x.a), vabsq_f32(x.b)}; }
inline F8 nearest(F8 x) { return {vrndnq_f32(x.a), vrndnq_f32(x.b)}; }
inline float32x4_t power_of_two(float32x4_t x) {
  return vreinterpretq_f32_s32(vshlq_n_s32(vaddq_s32(vcvtq_s32_f32(x), vdupq_n_s32(127)), 23));
}
inline F8 power_of_two(F8 x) { return {power_of_two(x.a), power_of_two(x.b)}; }
inline F8 load_f16(const uint16_t* p) {
  const float16x8_t h = vreinterpretq_f16_u16(vld1q_u16(p));
  return {vcvt_f32_f16(vget_low_f16(h)), vcvt_high_f32_f16(h)};
}
inline void store_f16(uint16_t* p, F8 x) {
  vst1q_u16(p, vreinterpretq_u16_f16(vcvt_high_f16_f32(vcvt_f16_f32(x.a), x.b)));
}
inline F8 load_bf16(const uint16_t* p) {
  const uint16x8_t h = vld1q_u16(p);
  return {vreinterpretq_f32_u32(vshll_n_u16(vget_low_u16(h), 16)),
          vreinterpretq_f32_u32(vshll_high_n_u16(h, 16))};
}
inline F8 load_int8(const uint8_t* p) {
  const int16x8_t wide = vmovl_s8(vreinterpret_s8_u8(vld1_u8(p)));
  return {vcvtq_f32_s32(vmovl_s16(vget_low_s16(wide))), vcvtq_f32_s32(vmovl_high_s16(wide))};
}
// The low and the high halves of 8 bytes.
inline F8 from_bytes(uint8x8_t bytes) {
  const uint16x8_t wide = vmovl_u8(bytes);
  return {vcvtq_f32_u32(vmovl_u16(vget_low_u16(wide))), vcvtq_f32_u32(vmovl_high_u16(wide))};
}
inline F8 load_low_nibbles(const uint8_t* p) { return from_bytes(vand_u8(vld1_u8(p), vdup_n_u8(15))); }
inline F8 load_high_nibbles(const uint8_t* p) { return from_bytes(vshr_n_u8(vld1_u8(p), 4)); }
inline float sum_lanes(F8 x) {
  const float32x4_t s = vaddq_f32(x.a, x.b);
  const float32x2_t t = vadd_f32(vget_low_f32(s), vget_high_f32(s));
  return vget_lane_f32(t, 0) + vget_lane_f32(t, 1);
}
inline float max_lanes(F8 x) { return vmaxvq_f32(vmaxq_f32(x.a, x.b)); }

// The larger magnitude, lane by lane; NaN stays.
inline F8 larger_magnitude(F8 top, F8 x) { return max(top, abs(x)); }
inline float max_magnitude(F8 x) { return max_lanes(x); }

struct I8 {
  int32x4_t a, b;
};
inline I8 splat_int(int32_t x) { return {vdupq_n_s32(x), vdupq_n_s32(x)}; }
inline I8 add(I8 x, I8 y) { return {vaddq_s32(x.a, y.a), vaddq_s32(x.b, y.b)}; }
inline I8 sub(I8 x, I8 y) { return {vsubq_s32(x.a, y.a), vsubq_s32(x.b, y.b)}; }
inline F8 to_float(I8 x) { return {vcvtq_f32_s32(x.a), vcvtq_f32_s32(x.b)}; }
inline I8 to_int(F8 x) { return {vcvtnq_s32_f32(x.a), vcvtnq_s32_f32(x.b)}; }
inline int32_t sum_lanes(I8 x) { return vaddvq_s32(vaddq_s32(x.a, x.b)); }
inline void store_int8(int8_t* p, I8 x) {
  vst1_s8(p, vqmovn_s16(vcombine_s16(vqmovn_s32(x.a), vqmovn_s32(x.b))));
}

// 32 weights: rows 0–3 in `a`, rows 4–7 in `b`, 4 consecutive k each.
struct W32 {
  int8x16_t a, b;
};
inline W32 load_w(const uint8_t* p) {
  return {vreinterpretq_s8_u8(vld1q_u8(p)), vreinterpretq_s8_u8(vld1q_u8(p + 16))};
}
inline void store_w(uint8_t* p, W32 w) {
  vst1q_s8((int8_t*)p, w.a);
  vst1q_s8((int8_t*)p + 16, w.b);
}
// `bits` bits of every byte, moved from bit `from` to bit `to`.
template <int from, int bits, int to>
inline int8x16_t field(int8x16_t w) {
  uint8x16_t moved = vreinterpretq_u8_s8(w);
  if constexpr (from > to) moved = vshrq_n_u8(moved, from - to);
  if constexpr (from < to) moved = vshlq_n_u8(moved, to - from);
  if constexpr (to != 0 || from + bits != 8)  // else a shift has removed all others
    moved = vandq_u8(moved, vdupq_n_u8((uint8_t)(((1 << bits) - 1) << to)));
  return vreinterpretq_s8_u8(moved);
}
template <int from, int bits, int to>
inline W32 field(W32 w) {
  return {field<from, bits, to>(w.a), field<from, bits, to>(w.b)};
}
inline W32 combine(W32 x, W32 y) { return {vorrq_s8(x.a, y.a), vorrq_s8(x.b, y.b)}; }
// The entries of a table that the codes 0 … 15 select.
inline W32 look_up(const int8_t (&table)[16], W32 w) {
  const int8x16_t entries = vld1q_s8(table);
  return {vqtbl1q_s8(entries, vreinterpretq_u8_s8(w.a)), vqtbl1q_s8(entries, vreinterpretq_u8_s8(w.b))};
}

constexpr int kStrips = 1;  // several streams at once were never measured on Arm
// Rows of activations beside two tiles' sums: with 4 they leave the 32 registers (llvm-mca, cycles a row,
// tile and group of 32 k: A72 56 with 4 and 38 with 2, A76 22 and 14).
constexpr int kRegisterRows = 2;
constexpr int kConvertOnLoadLanes = 7;  // attention lanes up to which float16 is converted as it is loaded
// Of values for a single lane, two registers each; with 8 GCC 12 spills.
constexpr int kSingleLaneVectors = 4;
constexpr int kBias8 = 0;
inline W32 prepare8(W32 w) { return w; }
#ifdef EDGED_DOTPROD
// sdot takes 4 activations out of a register of 16, so nothing is spread; `lane` is known when the loop over
// k is unrolled.
struct A4 {
  int8x16_t v;
  int lane;
};
inline A4 load_a(const int8_t* group, int k) { return {vld1q_s8(group + k / 16 * 16), k / 4 % 4}; }
inline int32x4_t dot_lane(int32x4_t s, int8x16_t w, A4 a) {
  switch (a.lane) {
    case 0: return vdotq_laneq_s32(s, w, a.v, 0);
    case 1: return vdotq_laneq_s32(s, w, a.v, 1);
    case 2: return vdotq_laneq_s32(s, w, a.v, 2);
    default: return vdotq_laneq_s32(s, w, a.v, 3);
  }
}
constexpr int kLargestSum4 = 1 << 30;  // of codes that one lane of Sum4 multiplies with activations of 127
using Sum4 = I8;
using Sum8 = I8;
inline Sum4 start4(int32_t offset) { return splat_int(offset); }
inline Sum8 no_sum8() { return splat_int(0); }
inline Sum8 dot8(Sum8 s, W32 w, A4 a) { return {dot_lane(s.a, w.a, a), dot_lane(s.b, w.b, a)}; }
inline Sum4 dot4(Sum4 s, W32 w, A4 a) { return dot8(s, w, a); }
inline I8 rows4(Sum4 s, int32_t) { return s; }
inline I8 rows8(Sum8 s) { return s; }
#else
using A4 = int8x16_t;
inline A4 load_a(const int8_t* group, int k) {
  int32_t word;
  memcpy(&word, group + k, 4);
  return vreinterpretq_s8_s32(vdupq_n_s32(word));
}
// Each register: 2 rows × 4 k products. 258 × 127 = 32,766 fits int16: sums of 4 and 5 bits are widened once
// in 32 k, those of 6 bits once in 16; 8-bit products are added pairwise into int32 at once.
constexpr int kLargestSum4 = 258;
struct Sum4 {
  int16x8_t v[4];
};
struct Sum8 {
  int32x4_t v[4];
};
inline Sum4 start4(int32_t) { return {{vdupq_n_s16(0), vdupq_n_s16(0), vdupq_n_s16(0), vdupq_n_s16(0)}}; }
inline Sum8 no_sum8() { return {{vdupq_n_s32(0), vdupq_n_s32(0), vdupq_n_s32(0), vdupq_n_s32(0)}}; }
inline Sum4 dot4(Sum4 s, W32 w, A4 a) {
  s.v[0] = vmlal_s8(s.v[0], vget_low_s8(w.a), vget_low_s8(a));
  s.v[1] = vmlal_high_s8(s.v[1], w.a, a);
  s.v[2] = vmlal_s8(s.v[2], vget_low_s8(w.b), vget_low_s8(a));
  s.v[3] = vmlal_high_s8(s.v[3], w.b, a);
  return s;
}
inline Sum8 dot8(Sum8 s, W32 w, A4 a) {
  s.v[0] = vpadalq_s16(s.v[0], vmull_s8(vget_low_s8(w.a), vget_low_s8(a)));
  s.v[1] = vpadalq_s16(s.v[1], vmull_high_s8(w.a, a));
  s.v[2] = vpadalq_s16(s.v[2], vmull_s8(vget_low_s8(w.b), vget_low_s8(a)));
  s.v[3] = vpadalq_s16(s.v[3], vmull_high_s8(w.b, a));
  return s;
}
inline I8 rows8(Sum8 s) { return {vpaddq_s32(s.v[0], s.v[1]), vpaddq_s32(s.v[2], s.v[3])}; }
inline I8 rows4(Sum4 s, int32_t offset) {
  const I8 sum =
      rows8({{vpaddlq_s16(s.v[0]), vpaddlq_s16(s.v[1]), vpaddlq_s16(s.v[2]), vpaddlq_s16(s.v[3])}});
  return add(sum, splat_int(offset));
}
#endif

inline void prefetch(const void* p) { __builtin_prefetch(p); }
// Into the second-level cache.
inline void prefetch_next(const void* p) { __builtin_prefetch(p, 0, 2); }

}  // namespace
