// Everything of a layer that is neither a matrix product nor attention. Included once by each instruction
// set's file.
#pragma once
#include "kernels.h"

namespace {
using namespace edged;

// 2^f for |f| ≤ ½, exactly 1 for 0: the polynomial of degree 5 with the least relative error, 1e-7, among
// those that begin with 1 (fitted by reweighted least squares).
inline F8 exp2_of_fraction(F8 f) {
  F8 p = splat(1.3264727e-3f);
  p = fma(p, f, splat(9.6715127e-3f));
  p = fma(p, f, splat(5.5507337e-2f));
  p = fma(p, f, splat(2.4022242e-1f));
  p = fma(p, f, splat(6.9314698e-1f));
  return fma(p, f, splat(1.f));
}

// 2^x for x ≤ 127 (2^−126 below −126): 2^n · 2^f, n the nearest whole number.
inline F8 exp2(F8 x) {
  const F8 low = max(x, splat(-126.f)), n = nearest(min(low, splat(127.f)));
  return mul(exp2_of_fraction(sub(low, n)), power_of_two(n));
}

// The same for x ≤ 0, and NaN for NaN.
inline F8 exp2_below(F8 x) {
  const F8 low = max(splat(-126.f), x), n = nearest(low);
  return mul(exp2_of_fraction(sub(low, n)), power_of_two(n));
}

// The sum of squares runs in 4 × 8 lanes, then lane by lane: its order depends on n alone.
void rms_norm(const float* x, const float* weight, int n, float epsilon, float* out) {
  F8 sum[4] = {zero(), zero(), zero(), zero()};
  int i = 0;
  for (; i + 32 <= n; i += 32)
    for (int j = 0; j < 4; j++) {
      const F8 v = load(x + i + j * 8);
      sum[j] = fma(v, v, sum[j]);
    }
  for (; i + 8 <= n; i += 8) {
    const F8 v = load(x + i);
    sum[0] = fma(v, v, sum[0]);
  }
  float total = sum_lanes(add(add(sum[0], sum[1]), add(sum[2], sum[3])));
  for (; i < n; i++) total += x[i] * x[i];
  const float factor = 1.f / __builtin_sqrtf(total / (float)n + epsilon);
  const F8 factors = splat(factor);
  for (i = 0; i + 8 <= n; i += 8) store(out + i, mul(mul(load(x + i), factors), load(weight + i)));
  for (; i < n; i++) out[i] = x[i] * factor * weight[i];
}

void quantize(const float* x, int k, int stride, const CodedRow& out) {
  int8_t* codes = out.codes;
  for (int g = 0; g < stride / kActivationGroup; g++, x += 32, codes += 32) {
    float tail[32];
    const float* from = x;
    const int left = k - g * kActivationGroup;
    if (left < 32) {
      for (int i = 0; i < 32; i++) tail[i] = i < left ? x[i] : 0.f;
      from = tail;
    }
    F8 v[4], top = zero();
    for (int j = 0; j < 4; j++) {
      v[j] = load(from + j * 8);
      top = larger_magnitude(top, v[j]);
    }
    const float most = max_magnitude(top);  // NaN where a value is NaN: then the scale carries it on
    const F8 inverse = splat(most > 0 ? 127.f / most : 0.f);
    I8 code[4];
    for (int j = 0; j < 4; j++) {
      code[j] = to_int(mul(v[j], inverse));
      store_int8(codes + j * 8, code[j]);
    }
    out.scale[g] = most / 127.f;
    uint32_t sum = 0;  // unsigned: what is not finite may overflow
    for (int half = 0; half < 2; half++) {
      const auto of_half = (uint32_t)sum_lanes(add(code[2 * half], code[2 * half + 1]));
      sum += of_half;
      out.half_offset8[2 * g + half] = (int32_t)(0u - of_half * 8u);
      out.half_sum[2 * g + half] = out.scale[g] * (float)(int32_t)of_half;
    }
    out.offset8[g] = (int32_t)(0u - sum * 8u);
    out.sum[g] = out.scale[g] * (float)(int32_t)sum;
  }
}

void apply_rope(float* x, const float* cosine, const float* sine, int half) {
  int i = 0;
  for (; i + 8 <= half; i += 8) {
    const F8 a = load(x + i), b = load(x + half + i), c = load(cosine + i), s = load(sine + i);
    store(x + i, sub(mul(a, c), mul(b, s)));
    store(x + half + i, fma(a, s, mul(b, c)));
  }
  for (; i < half; i++) {
    const float a = x[i], b = x[half + i];
    x[i] = a * cosine[i] - b * sine[i];
    x[half + i] = a * sine[i] + b * cosine[i];
  }
}

inline F8 silu(F8 x) { return divide(x, add(splat(1.f), exp2(mul(x, splat(-(float)kLog2e))))); }

// n is a multiple of 8.
void swiglu(const float* gate, const float* up, int n, float* out) {
  for (int i = 0; i < n; i += 8) store(out + i, mul(silu(load(gate + i)), load(up + i)));
}

// n is a multiple of 8 (buffers are padded).
void add_to(float* x, const float* y, int n) {
  for (int i = 0; i < n; i += 8) store(x + i, add(load(x + i), load(y + i)));
}

void scale_by(float* x, float factor, int n) {
  for (int i = 0; i < n; i++) x[i] *= factor;
}

// fp16 with a limit: an infinity in the cache would turn masked tokens into NaN.
inline F8 within_half(F8 x) { return max(min(x, splat(65504.f)), splat(-65504.f)); }

void write_kv(const float* key, const float* value, int dim, uint16_t* block, int slot) {
  uint16_t half[8];
  for (int i = 0; i < dim; i += 8) {
    store_f16(half, within_half(load(key + i)));
    for (int j = 0; j < 8; j++) block[(size_t)(i + j) * kBlockTokens + slot] = half[j];
  }
  uint16_t* values = block + (size_t)dim * kBlockTokens + (size_t)slot * dim;
  for (int i = 0; i < dim; i += 8) store_f16(values + i, within_half(load(value + i)));
}

bool all_finite(const float* x, int n) {
  F8 sum = zero();
  int i = 0;
  for (; i + 8 <= n; i += 8) {
    const F8 v = load(x + i);
    sum = fma(v, zero(), sum);  // NaN and infinity times 0 are NaN
  }
  float total = sum_lanes(sum);
  for (; i < n; i++) total += x[i] * 0.f;
  return total == 0.f;
}

}  // namespace
