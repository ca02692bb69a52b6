// The tables of PrepackedMatMul's kernels, one for each instruction set, and the choice at run time.
#pragma once

#include "../prepacked_problem.h"

namespace fastserve {

extern const PrepackedKernels kGenericPrepackedKernels;
#if defined(FASTSERVE_X86)
extern const PrepackedKernels kAvx2PrepackedKernels;
extern const PrepackedKernels kAvx512PrepackedKernels;
#endif

// As choose_kernels().
const PrepackedKernels& choose_prepacked_kernels();

}  // namespace fastserve
