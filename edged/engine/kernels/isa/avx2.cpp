// The table of kernels for avx2; empty on other families of processors. build.py gives this file its compiler
// flags.
#include "kernels.h"

#if defined(__x86_64__)
#include "isa/avx2.h"
// After the vector operations, which the kernels use.
#include "ops/all_ops.h"

namespace edged {
const Kernels* avx2_kernels() {
  static const Kernels table = EDGED_TABLE("avx2");
  return &table;
}
}  // namespace edged
#else
namespace edged {
const Kernels* avx2_kernels() { return nullptr; }
}  // namespace edged
#endif
