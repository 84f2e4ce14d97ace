// The kernels for: dotprod. build.py gives this file its compiler flags; on other processors it is empty.
#include "table.h"

#if defined(__aarch64__)
#define EDGED_DOTPROD
#include "isa/neon.h"
// The vector words must stand before the kernels.
#include "all_kernels.h"

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
