// The vector operations in plain C++, for processors without a kernel of their own. Same layout, same order
// of sums, no intrinsics.
#pragma once
#include <cmath>
#include <cstdint>
#include <cstring>

#include "isa/half.h"

namespace {
using edged::float_to_half;
using edged::half_to_float;

struct F8 {
  float v[8];
};
#define EDGED_LANES for (int i = 0; i < 8; i++)
inline F8 load(const float* p) {
  F8 r;
  memcpy(r.v, p, sizeof r.v);
  return r;
}
inline void store(float* p, F8 a) { memcpy(p, a.v, sizeof a.v); }
inline F8 splat(float a) {
  F8 r;
  EDGED_LANES r.v[i] = a;
  return r;
}
inline F8 zero() { return splat(0); }
#define EDGED_BINARY(name, expression) \
  inline F8 name(F8 a, F8 b) {         \
    F8 r;                              \
    EDGED_LANES r.v[i] = expression;   \
    return r;                          \
  }
EDGED_BINARY(add, a.v[i] + b.v[i])
EDGED_BINARY(sub, a.v[i] - b.v[i])
EDGED_BINARY(mul, a.v[i] * b.v[i])
EDGED_BINARY(divide, a.v[i] / b.v[i])
EDGED_BINARY(max, a.v[i] > b.v[i] ? a.v[i] : b.v[i])
EDGED_BINARY(min, a.v[i] < b.v[i] ? a.v[i] : b.v[i])
#undef EDGED_BINARY
inline F8 fma(F8 a, F8 b, F8 c) { return add(mul(a, b), c); }
inline F8 abs(F8 a) {
  EDGED_LANES a.v[i] = std::fabs(a.v[i]);
  return a;
}
inline F8 nearest(F8 a) {
  EDGED_LANES a.v[i] = nearbyintf(a.v[i]);
  return a;
}
inline F8 power_of_two(F8 a) {
  EDGED_LANES {
    const int32_t bits = ((std::isnan(a.v[i]) ? 0 : (int32_t)a.v[i]) + 127) << 23;
    memcpy(&a.v[i], &bits, 4);
  }
  return a;
}
inline F8 load_f16(const uint16_t* p) {
  F8 r;
  EDGED_LANES r.v[i] = half_to_float(p[i]);
  return r;
}
inline void store_f16(uint16_t* p, F8 a) { EDGED_LANES p[i] = float_to_half(a.v[i]); }
inline F8 load_bf16(const uint16_t* p) {
  F8 r;
  EDGED_LANES {
    const uint32_t bits = (uint32_t)p[i] << 16;
    memcpy(&r.v[i], &bits, 4);
  }
  return r;
}
inline F8 load_int8(const uint8_t* p) {
  F8 r;
  EDGED_LANES r.v[i] = (float)(int8_t)p[i];
  return r;
}
// The low and the high halves of 8 bytes.
inline F8 load_low_nibbles(const uint8_t* p) {
  F8 r;
  EDGED_LANES r.v[i] = (float)(p[i] & 15);
  return r;
}
inline F8 load_high_nibbles(const uint8_t* p) {
  F8 r;
  EDGED_LANES r.v[i] = (float)(p[i] >> 4);
  return r;
}
inline float sum_lanes(F8 a) {
  return ((a.v[0] + a.v[4]) + (a.v[2] + a.v[6])) + ((a.v[1] + a.v[5]) + (a.v[3] + a.v[7]));
}
inline float max_lanes(F8 a) {
  float top = a.v[0];
  EDGED_LANES top = a.v[i] > top ? a.v[i] : top;
  return top;
}

// The larger magnitude, lane by lane; NaN stays.
inline F8 larger_magnitude(F8 top, F8 a) {
  EDGED_LANES {
    const float m = std::fabs(a.v[i]);
    if (!(m <= top.v[i]) && top.v[i] == top.v[i]) top.v[i] = m;
  }
  return top;
}
inline float max_magnitude(F8 a) {
  float top = 0;
  EDGED_LANES if (!(a.v[i] <= top) && top == top) top = a.v[i];
  return top;
}

struct I8 {
  int32_t v[8];
};
inline I8 splat_int(int32_t a) {
  I8 r;
  EDGED_LANES r.v[i] = a;
  return r;
}
inline I8 add(I8 a, I8 b) {
  EDGED_LANES a.v[i] += b.v[i];
  return a;
}
inline I8 sub(I8 a, I8 b) {
  EDGED_LANES a.v[i] -= b.v[i];
  return a;
}
inline F8 to_float(I8 a) {
  F8 r;
  EDGED_LANES r.v[i] = (float)a.v[i];
  return r;
}
inline I8 to_int(F8 a) {
  I8 r;
  // A NaN or an infinity must not be converted (undefined); it becomes 0 here and is found in the scale.
  EDGED_LANES r.v[i] = std::fabs(a.v[i]) < 2e9f ? (int32_t)nearbyintf(a.v[i]) : 0;
  return r;
}
inline int32_t sum_lanes(I8 a) {
  int32_t s = 0;
  EDGED_LANES s += a.v[i];
  return s;
}
inline void store_int8(int8_t* p, I8 a) {
  EDGED_LANES p[i] = (int8_t)(a.v[i] > 127 ? 127 : a.v[i] < -128 ? -128 : a.v[i]);
}

struct W32 {
  uint8_t v[32];
};
struct A4 {
  int8_t v[4];
};
inline W32 load_w(const uint8_t* p) {
  W32 r;
  memcpy(r.v, p, 32);
  return r;
}
inline void store_w(uint8_t* p, W32 w) { memcpy(p, w.v, 32); }
// `bits` bits of every byte, moved from bit `from` to bit `to`.
template <int from, int bits, int to>
inline W32 field(W32 w) {
  for (auto& x : w.v) x = (uint8_t)((x >> from & ((1 << bits) - 1)) << to);
  return w;
}
inline W32 combine(W32 a, W32 b) {
  for (int i = 0; i < 32; i++) a.v[i] |= b.v[i];
  return a;
}
// The entries of a table that the codes 0 … 15 select.
inline W32 look_up(const int8_t (&table)[16], W32 w) {
  for (auto& x : w.v) x = (uint8_t)table[x & 15];
  return w;
}
inline A4 load_a(const int8_t* group, int k) {
  return {{group[k], group[k + 1], group[k + 2], group[k + 3]}};
}

constexpr int kStrips = 1;              // one stream from memory
constexpr int kConvertOnLoadLanes = 7;  // attention lanes up to which float16 is converted as it is loaded
constexpr int kSingleLaneVectors = 4;   // of values for a single lane
constexpr int kRegisterRows = 4;        // rows of activations beside two tiles' sums in registers
constexpr int kLargestSum4 = 1 << 30;   // of codes that one lane of Sum4 multiplies
constexpr int kBias8 = 0;
inline W32 prepare8(W32 w) { return w; }
using Sum4 = I8;
using Sum8 = I8;
inline Sum4 start4(int32_t) { return splat_int(0); }
inline Sum8 no_sum8() { return splat_int(0); }
inline I8 dot8(I8 s, W32 w, A4 a) {
  EDGED_LANES for (int j = 0; j < 4; j++) s.v[i] += (int8_t)w.v[i * 4 + j] * a.v[j];
  return s;
}
inline I8 dot4(I8 s, W32 w, A4 a) { return dot8(s, w, a); }
inline I8 rows4(I8 s, int32_t offset) { return add(s, splat_int(offset)); }
inline I8 rows8(I8 s) { return s; }
inline void prefetch(const void*) {}
inline void prefetch_next(const void*) {}
#undef EDGED_LANES

}  // namespace
