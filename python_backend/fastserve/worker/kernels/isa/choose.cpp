#include <cstdlib>
#include <cstring>

#include "kernels.h"

namespace fastserve {

#if defined(FASTSERVE_X86)
namespace {

bool runs_avx2() { return __builtin_cpu_supports("avx2") && __builtin_cpu_supports("fma") && __builtin_cpu_supports("f16c"); }

bool runs_avx512() {
  return runs_avx2() && __builtin_cpu_supports("avx512f") && __builtin_cpu_supports("avx512bw") &&
         __builtin_cpu_supports("avx512vl") && __builtin_cpu_supports("avx512dq");
}

}  // namespace

const Kernels& choose_kernels() {
  const char* wanted = std::getenv("FASTSERVE_ISA");
  const bool generic = wanted != nullptr && std::strcmp(wanted, "generic") == 0;
  const bool avx2 = wanted != nullptr && std::strcmp(wanted, "avx2") == 0;
  if (generic || !runs_avx2()) return kGenericKernels;
  return avx2 || !runs_avx512() ? kAvx2Kernels : kAvx512Kernels;
}
#else
const Kernels& choose_kernels() { return kGenericKernels; }
#endif

}  // namespace fastserve
