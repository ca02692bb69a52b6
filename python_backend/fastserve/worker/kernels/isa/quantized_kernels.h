// The tables of QuantizedMatMul's kernels, one for each instruction set this build contains, and the choice at run time.
#pragma once

#include "../quantized_problem.h"

namespace fastserve {

extern const QuantizedKernels kGenericQuantizedKernels;
#if defined(FASTSERVE_X86)
extern const QuantizedKernels kAvx2QuantizedKernels;
extern const QuantizedKernels kAvxVnniQuantizedKernels;
extern const QuantizedKernels kAvx512QuantizedKernels;
extern const QuantizedKernels kAvx512VnniQuantizedKernels;
extern const QuantizedKernels kAmxQuantizedKernels;
#endif

// The best kernels this processor runs, no better than the environment variable FASTSERVE_ISA (generic, avx2, avxvnni,
// avx512, avx512vnni, amx) asks for. Read anew at every call, so that tests can compare instruction sets in one process.
const QuantizedKernels& choose_quantized_kernels();

}  // namespace fastserve
