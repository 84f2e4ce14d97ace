// Sampling's passes over a whole vocabulary: the largest logit, then each token's weight. Included once by
// each instruction set's file.
#pragma once
#include <cfloat>
#include <cmath>

#include "ops/elementwise.h"

namespace {
using namespace edged;

// Up to 8 values; minus infinity beyond.
inline F8 load_some(const float* x, int count) {
  float lanes[8];
  for (int i = 0; i < 8; i++) lanes[i] = i < count ? x[i] : -INFINITY;
  return load(lanes);
}

// The largest of n values; NaN where one is NaN or infinite (minus infinity counts as a number: masked tokens
// have it).
float max_logit(const float* x, int n) {
  F8 top = splat(-INFINITY), check = zero();
  for (int i = 0; i < n; i += 8) {
    const F8 v = n - i >= 8 ? load(x + i) : load_some(x + i, n - i);
    top = max(v, top);
    check = fma(max(splat(-FLT_MAX), v), zero(), check);  // max gives its second where one is NaN
  }
  return sum_lanes(check) == 0.f ? max_lanes(top) : NAN;
}

// out = 2^((x − best) · factor) for n values that are at most `best`, exactly 0 for minus infinity; their
// sum, in 8 lanes.
float softmax_weights(const float* x, int n, float best, float factor, float* out) {
  const F8 from = splat(best), factors = splat(factor),
           least = splat(1.17549435e-38f);  // exp2 never gives less than 2⁻¹²⁶
  F8 sum = zero();
  for (int i = 0; i < n; i += 8) {
    const bool whole = n - i >= 8;
    const F8 v = whole ? load(x + i) : load_some(x + i, n - i);
    const F8 weight = max(sub(exp2(mul(sub(v, from), factors)), least), zero());
    sum = add(sum, weight);
    if (whole) {
      store(out + i, weight);
      continue;
    }
    float lanes[8];
    store(lanes, weight);
    for (int j = 0; j < n - i; j++) out[i + j] = lanes[j];
  }
  return sum_lanes(sum);
}

}  // namespace
