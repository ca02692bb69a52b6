// QuantizedMatMul for any processor.
//
// Everything but the table has internal linkage, so that no function compiled for this instruction set can be picked by
// the linker for another, and nothing of the standard library is instantiated here.
#include "../quantized_problem.h"
#include "quantized_kernels.h"

#include <cstring>

namespace fastserve {
namespace {

// Order matters: each file uses the ones before it.
#include "quantized_vector_generic.h"
#include "quantized_rows.inl"
#include "quantized_tiles.inl"
#include "quantized_unpack.inl"
#include "quantized_packed.inl"

}  // namespace

extern const QuantizedKernels kGenericQuantizedKernels = {"generic", sizeof(Activation), 1, quantize, unpack, multiply_packed, multiply};

}  // namespace fastserve
