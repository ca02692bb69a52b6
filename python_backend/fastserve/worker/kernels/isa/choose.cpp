#include <cstdlib>
#include <cstring>

#include "kernels.h"
#include "prepacked_kernels.h"
#include "quantized_kernels.h"
#include "row_kernels.h"

#if defined(FASTSERVE_X86)
#include <cpuid.h>
#endif
#if defined(FASTSERVE_AMX)
#include <sys/syscall.h>
#include <unistd.h>
#endif

namespace fastserve {

#if defined(FASTSERVE_X86)
namespace {

// From the least to the best.
enum Isa { kGeneric, kAvx2, kAvxVnni, kAvx512, kAvx512Vnni, kAmx, kIsaCount };
constexpr const char* kIsaNames[kIsaCount] = {"generic", "avx2", "avxvnni", "avx512", "avx512vnni", "amx"};

struct Registers {
  unsigned eax, ebx, ecx, edx;
};

Registers cpuid(unsigned leaf, unsigned subleaf) {
  Registers registers{};
  __get_cpuid_count(leaf, subleaf, &registers.eax, &registers.ebx, &registers.ecx, &registers.edx);
  return registers;
}

#if defined(FASTSERVE_AMX)
// Linux keeps the tiles' state only for processes that ask; those asked before or after are the same.
bool asked_for_tiles() {
  constexpr long kRequestPermission = 0x1023;  // ARCH_REQ_XCOMP_PERM
  constexpr long kTileData = 18;               // XFEATURE_XTILEDATA
  static const bool granted = syscall(SYS_arch_prctl, kRequestPermission, kTileData) == 0;
  return granted;
}
#endif

bool runs(Isa isa) {
  switch (isa) {
    case kAvx2:
      return __builtin_cpu_supports("avx2") && __builtin_cpu_supports("fma") && __builtin_cpu_supports("f16c");
#if defined(FASTSERVE_AVX_VNNI)
    case kAvxVnni:
      return runs(kAvx2) && (cpuid(7, 1).eax & (1u << 4)) != 0;
#endif
    case kAvx512:
      return runs(kAvx2) && __builtin_cpu_supports("avx512f") && __builtin_cpu_supports("avx512bw") &&
             __builtin_cpu_supports("avx512vl") && __builtin_cpu_supports("avx512dq");
    case kAvx512Vnni:
      return runs(kAvx512) && __builtin_cpu_supports("avx512vnni");
#if defined(FASTSERVE_AMX)
    case kAmx: {
      const unsigned tiles = (1u << 24) | (1u << 25);  // AMX-TILE, AMX-INT8
      return runs(kAvx512Vnni) && (cpuid(7, 0).edx & tiles) == tiles && asked_for_tiles();
    }
#endif
    default:
      return isa == kGeneric;
  }
}

// Whether this processor runs it and FASTSERVE_ISA does not ask for less.
bool may_use(Isa isa) {
  const char* wanted = std::getenv("FASTSERVE_ISA");
  for (int lesser = kGeneric; wanted != nullptr && lesser < isa; ++lesser) {
    if (std::strcmp(wanted, kIsaNames[lesser]) == 0) return false;
  }
  return runs(isa);
}

}  // namespace

const Kernels& choose_kernels() {
  if (may_use(kAvx512)) return kAvx512Kernels;
  return may_use(kAvx2) ? kAvx2Kernels : kGenericKernels;
}

const RowKernels& choose_row_kernels() {
  if (may_use(kAvx512)) return kAvx512RowKernels;
  return may_use(kAvx2) ? kAvx2RowKernels : kGenericRowKernels;
}

const PrepackedKernels& choose_prepacked_kernels() {
  if (may_use(kAvx512)) return kAvx512PrepackedKernels;
  return may_use(kAvx2) ? kAvx2PrepackedKernels : kGenericPrepackedKernels;
}

const QuantizedKernels& choose_quantized_kernels() {
#if defined(FASTSERVE_AMX)
  if (may_use(kAmx)) return kAmxQuantizedKernels;
#endif
  if (may_use(kAvx512Vnni)) return kAvx512VnniQuantizedKernels;
  if (may_use(kAvx512)) return kAvx512QuantizedKernels;
#if defined(FASTSERVE_AVX_VNNI)
  if (may_use(kAvxVnni)) return kAvxVnniQuantizedKernels;
#endif
  return may_use(kAvx2) ? kAvx2QuantizedKernels : kGenericQuantizedKernels;
}
#else
const Kernels& choose_kernels() { return kGenericKernels; }
const RowKernels& choose_row_kernels() { return kGenericRowKernels; }
const PrepackedKernels& choose_prepacked_kernels() { return kGenericPrepackedKernels; }
const QuantizedKernels& choose_quantized_kernels() { return kGenericQuantizedKernels; }
#endif

}  // namespace fastserve
