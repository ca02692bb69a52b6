// The tables of kernels, one for each instruction set this build contains, and the choice between them at run time.
#pragma once

#include "../attention_problem.h"

namespace fastserve {

extern const Kernels kGenericKernels;
#if defined(FASTSERVE_X86)
extern const Kernels kAvx2Kernels;
extern const Kernels kAvx512Kernels;
#endif

// The best kernels this processor runs, no better than the environment variable FASTSERVE_ISA (generic, avx2, avx512)
// asks for. Read anew at every call, so that tests can compare instruction sets in one process.
const Kernels& choose_kernels();

}  // namespace fastserve
