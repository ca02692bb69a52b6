// The kernels for x86-64 with AVX2, FMA and F16C.
//
// Everything but the table has internal linkage, so that no function compiled for this instruction set can be picked by
// the linker for another, and nothing of the standard library is instantiated here.
#include "../attention_problem.h"
#include "../packed_attention_problem.h"
#include "kernels.h"

#include <immintrin.h>

#include <cstring>

namespace fastserve {
namespace {

// Order matters: each file uses the ones before it.
#include "vector_avx2.h"
#include "vector_math.inl"
#include "micro_kernels.inl"
#include "head_row.inl"
#include "tiles.inl"
#include "scatter.inl"
#include "attend.inl"
#include "attend_packed.inl"
#include "sampling.inl"

}  // namespace

extern const Kernels kAvx2Kernels = {
    "avx2",
    {scatter<float>, attend<float>}, {scatter<uint16_t>, attend<uint16_t>}, {scatter<int8_t>, attend<int8_t>},
    combine_parts, attend_packed, block_maxima, weigh,
};

}  // namespace fastserve
