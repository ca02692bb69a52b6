// PrepackedMatMul for x86-64 with AVX2, FMA and F16C.
//
// Everything but the table has internal linkage, so that no function compiled for this instruction set can be picked by
// the linker for another, and nothing of the standard library is instantiated here.
#include "../prepacked_problem.h"
#include "prepacked_kernels.h"

#include <cstring>
#include <immintrin.h>

namespace fastserve {
namespace {

// Order matters: each file uses the ones before it.
#include "vector_avx2.h"
#include "prepacked_tiles.inl"

}  // namespace

extern const PrepackedKernels kAvx2PrepackedKernels = {"avx2", multiply};

}  // namespace fastserve
