// The kernels for: avx2. build.py gives this file its compiler flags; on other processors it is empty.
#include "table.h"

#if defined(__x86_64__)
#include "isa/avx2.h"
// The vector words must stand before the kernels.
#include "all_kernels.h"

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
