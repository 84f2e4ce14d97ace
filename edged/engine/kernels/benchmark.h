// The memory's read speed, and single products for tests and measurements.
#pragma once
#include "api.h"
#include "kernels.h"

namespace edged {

void time_matmul(const EdgedTensor& w, const float* x, int m, float* y, int threads, int repeats, int copies,
                 int64_t copy_stride, double* seconds, const Kernels& kernels);
double read_bandwidth(const void* data, int64_t bytes, int threads, int repeats);

}  // namespace edged
