// Chooses the kernels that this processor runs, at run time.
#include <cstring>

#include "kernels.h"
#if defined(__aarch64__) && defined(__linux__)
#include <sys/auxv.h>
#endif

namespace edged {
namespace {

bool runs(const Kernels* table) {
  if (!table) return false;
#if defined(__x86_64__)
  if (table == avx2_kernels() || table == vnni_kernels()) {
    __builtin_cpu_init();
    if (!__builtin_cpu_supports("avx2") || !__builtin_cpu_supports("fma") || !__builtin_cpu_supports("f16c"))
      return false;
    if (table == vnni_kernels())
      return __builtin_cpu_supports("avx512vnni") && __builtin_cpu_supports("avx512vl");
  }
#elif defined(__aarch64__) && defined(__linux__)
  constexpr unsigned long kDotProduct = 1ul << 20;  // HWCAP_ASIMDDP
  if (table == dotprod_kernels()) return (getauxval(AT_HWCAP) & kDotProduct) != 0;
#endif
  return true;
}

}  // namespace

const Kernels* choose_kernels(const char* name) {
  const Kernels* const best_first[] = {vnni_kernels(), avx2_kernels(), dotprod_kernels(), neon_kernels(),
                                       portable_kernels()};
  const bool any = !name || !*name || !strcmp(name, "auto");
  for (const Kernels* table : best_first)
    if (runs(table) && (any || !strcmp(name, table->name))) return table;
  return nullptr;
}

}  // namespace edged
