// Kernels of layers with a recurrent state. Included once by each instruction set's file. Plain loops: the
// compiler vectorizes them, and each value's order of operations is that of the source.
#pragma once
#include "kernels.h"

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

}  // namespace
