// The tables of kernels that work on each row by itself, one for each instruction set, and the choice at run time.
#pragma once

#include "../row_problems.h"

namespace fastserve {

// One instruction set's kernels. Rows are independent and may be computed on any thread at the same time.
struct RowKernels {
  void (*normalize)(const NormProblem& problem, int64_t first_row, int64_t last_row);
  void (*gate)(const GateProblem& problem, int64_t first_row, int64_t last_row);
};

extern const RowKernels kGenericRowKernels;
#if defined(FASTSERVE_X86)
extern const RowKernels kAvx2RowKernels;
extern const RowKernels kAvx512RowKernels;
#endif

// As choose_kernels().
const RowKernels& choose_row_kernels();

}  // namespace fastserve
