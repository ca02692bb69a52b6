// RowNorm and GatedActivation for any processor.
//
// Everything but the table has internal linkage, so that no function compiled for this instruction set can be picked by
// the linker for another, and nothing of the standard library is instantiated here.
#include "../row_problems.h"
#include "row_kernels.h"

#include <cstring>
#if defined(__aarch64__)
#include <arm_neon.h>
#endif

namespace fastserve {
namespace {

// Order matters: each file uses the ones before it.
#include "vector_generic.h"
#include "vector_math.inl"
#include "rows.inl"

}  // namespace

extern const RowKernels kGenericRowKernels = {normalize, gate};

}  // namespace fastserve
