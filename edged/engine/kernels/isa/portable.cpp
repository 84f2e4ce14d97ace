// The table of kernels for portable, which every processor runs.
#include "kernels.h"

#include "isa/portable.h"
// After the vector operations, which the kernels use.
#include "ops/all_ops.h"

namespace edged {
const Kernels* portable_kernels() {
  static const Kernels table = EDGED_TABLE("portable");
  return &table;
}
}  // namespace edged
