// Kernels of layers with a recurrent state. Included once by each instruction set's file. Plain loops: the
// compiler vectorizes them, and each value's order of operations is that of the source.
#pragma once
#include "kernels.h"
// The exponential of elementwise.h serves gates.
#include "ops/elementwise.h"

namespace {
using namespace edged;

void multiply_by(float* x, const float* y, int n) {
  for (int i = 0; i < n; i++) x[i] *= y[i];
}

void convolve(const float* const* rows, const float* weight, size_t stride, int taps, int n, float* out) {
  for (int i = 0; i < n; i++) out[i] = 0.f;
  for (int k = 0; k < taps; k++, weight += stride) {
    const float* x = rows[k];
    if (!x) continue;
    for (int i = 0; i < n; i++) out[i] += weight[i] * x[i];
  }
}

void silu_of(float* x, int n) {
  for (int i = 0; i < n; i += 8) store(x + i, silu(load(x + i)));
}

void gate_by(const float* x, const float* gate, int n, float* out) {
  for (int i = 0; i < n; i += 8)
    store(out + i,
          divide(load(x + i), add(splat(1.f), exp2(mul(load(gate + i), splat(-(float)kLog2e))))));
}

// Columns beyond those of the matrix are computed as well, and their results are dropped.
void delta_rule(const DeltaTask& work) {
  constexpr int n = kDeltaColumns;
  for (int t = 0; t < work.tokens; t++) {
    const float *query = work.query + t * work.stride, *key = work.key + t * work.stride;
    const float *value = work.value + t * work.stride, decay = work.decay[t], beta = work.beta[t];
    float read[n] = {}, out[n] = {};
    for (int k = 0; k < work.key_dim; k++) {
      const float* row = work.state + k * n;
      for (int i = 0; i < n; i++) read[i] += key[k] * row[i];
    }
    for (int i = 0; i < n; i++) read[i] = i < work.columns ? (value[i] - decay * read[i]) * beta : 0.f;
    for (int k = 0; k < work.key_dim; k++) {
      float* row = work.state + k * n;
      for (int i = 0; i < n; i++) {
        row[i] = decay * row[i] + key[k] * read[i];
        out[i] += query[k] * row[i];
      }
    }
    for (int i = 0; i < work.columns; i++) work.out[t * work.out_stride + i] = out[i];
  }
}

}  // namespace
