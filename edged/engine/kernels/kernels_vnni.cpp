// The kernels for: vnni. build.py gives this file its compiler flags; on other processors it is empty.
#include "table.h"

#if defined(__x86_64__)
#define EDGED_VNNI
#include "isa/avx2.h"
// The vector words must stand before the kernels.
#include "all_kernels.h"

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
