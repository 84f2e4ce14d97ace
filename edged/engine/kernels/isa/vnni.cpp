// The table of kernels for vnni; empty on other families of processors. build.py gives this file its compiler
// flags.
#include "kernels.h"

#if defined(__x86_64__)
#define EDGED_VNNI
#include "isa/avx2.h"
// After the vector operations, which the kernels use.
#include "ops/all_ops.h"

namespace edged {
const Kernels* vnni_kernels() {
  static const Kernels table = EDGED_TABLE("vnni");
  return &table;
}
}  // namespace edged
#else
namespace edged {
const Kernels* vnni_kernels() { return nullptr; }
}  // namespace edged
#endif
