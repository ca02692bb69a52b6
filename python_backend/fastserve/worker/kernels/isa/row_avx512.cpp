// RowNorm and GatedActivation for x86-64 with AVX-512 F, BW, VL and DQ.
//
// Everything but the table has internal linkage, so that no function compiled for this instruction set can be picked by
// the linker for another, and nothing of the standard library is instantiated here.
#include "../row_problems.h"
#include "row_kernels.h"

#include <cstring>
#include <immintrin.h>

namespace fastserve {
namespace {

// Order matters: each file uses the ones before it.
#include "vector_avx512.h"
#include "vector_math.inl"
#include "rows.inl"

}  // namespace

extern const RowKernels kAvx512RowKernels = {normalize, gate};

}  // namespace fastserve
