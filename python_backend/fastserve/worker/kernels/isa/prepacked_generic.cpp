// PrepackedMatMul for any processor.
//
// Everything but the table has internal linkage, so that no function compiled for this instruction set can be picked by
// the linker for another, and nothing of the standard library is instantiated here.
#include "../prepacked_problem.h"
#include "prepacked_kernels.h"

#include <cstring>
#if defined(__aarch64__)
#include <arm_neon.h>
#endif

namespace fastserve {
namespace {

// Order matters: each file uses the ones before it.
#include "vector_generic.h"
#include "prepacked_tiles.inl"

}  // namespace

extern const PrepackedKernels kGenericPrepackedKernels = {"generic", multiply};

}  // namespace fastserve
