// The tables of kernels, one for each instruction set this build contains, and the choice between them at run time.
#pragma once

#include "../attention_problem.h"
#include "../packed_attention_problem.h"

namespace fastserve {

// One instruction set's kernels. Work items are independent and may run on any thread at the same time.
struct Kernels {
  const char* name;
  // Writes the keys and values of tokens [16 * chunk, 16 * chunk + 16) of one head into the caches.
  void (*scatter_float)(const AttentionProblem& problem, int64_t chunk, int kv_head);
  void (*scatter_half)(const AttentionProblem& problem, int64_t chunk, int kv_head);
  // Computes the output rows of a work item, reading keys and values from the caches only.
  void (*attend_float)(const AttentionProblem& problem, const WorkItem& item);
  void (*attend_half)(const AttentionProblem& problem, const WorkItem& item);
  // Computes the output rows of a work item of packed sequences.
  void (*attend_packed)(const PackedProblem& problem, const PackedItem& item);
};

extern const Kernels kGenericKernels;
#if defined(FASTSERVE_X86)
extern const Kernels kAvx2Kernels;
extern const Kernels kAvx512Kernels;
#endif

// The best kernels this processor runs, no better than the environment variable FASTSERVE_ISA (generic, avx2, avx512)
// asks for. Read anew at every call, so that tests can compare instruction sets in one process.
const Kernels& choose_kernels();

}  // namespace fastserve
