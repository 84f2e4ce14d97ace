// The kernels for: portable. build.py gives this file its compiler flags; on other processors it is empty.
#include "table.h"

#if 1
#include "isa/portable.h"
// The vector words must stand before the kernels.
#include "all_kernels.h"

namespace edged {
const Kernels* portable_kernels() {
  static const Kernels table = EDGED_TABLE("portable");
  return &table;
}
}  // namespace edged
#else
namespace edged {
const Kernels* portable_kernels() { return nullptr; }
}  // namespace edged
#endif
