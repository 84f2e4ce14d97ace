// The table of kernels for dotprod; empty on other families of processors. build.py gives this file its
// compiler flags.
#include "kernels.h"

#if defined(__aarch64__)
#define EDGED_DOTPROD
#include "isa/neon.h"
// After the vector operations, which the kernels use.
#include "ops/all_ops.h"

namespace edged {
const Kernels* dotprod_kernels() {
  static const Kernels table = EDGED_TABLE("dotprod");
  return &table;
}
}  // namespace edged
#else
namespace edged {
const Kernels* dotprod_kernels() { return nullptr; }
}  // namespace edged
#endif
