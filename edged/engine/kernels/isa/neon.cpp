// The table of kernels for neon; empty on other families of processors. build.py gives this file its compiler
// flags.
#include "kernels.h"

#if defined(__aarch64__)
#include "isa/neon.h"
// After the vector operations, which the kernels use.
#include "ops/all_ops.h"

namespace edged {
const Kernels* neon_kernels() {
  static const Kernels table = EDGED_TABLE("neon");
  return &table;
}
}  // namespace edged
#else
namespace edged {
const Kernels* neon_kernels() { return nullptr; }
}  // namespace edged
#endif
