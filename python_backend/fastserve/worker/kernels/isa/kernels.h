// The tables of kernels, one for each instruction set this build contains, and the choice between them at run time.
#pragma once

#include "../attention_problem.h"
#include "../packed_attention_problem.h"
#include "../sampling_problem.h"

namespace fastserve {

// Those that know the element type of the caches.
struct CacheKernels {
  // Writes the keys and values of tokens [first, last), kStrip at most, of one head into the caches.
  void (*scatter)(const AttentionProblem& problem, int64_t first, int64_t last, int kv_head);
  // Computes the output rows of a work item, reading keys and values from the caches only. `after`: the item that the thread
  // computes next, or null; its memory is asked for ahead.
  void (*attend)(const AttentionProblem& problem, const WorkItem& item, const WorkItem* after);
};

// One instruction set's kernels. Work items are independent and may run on any thread at the same time.
struct Kernels {
  const char* name;
  CacheKernels float_cache;
  CacheKernels half_cache;
  CacheKernels int8_cache;
  // Computes the output rows of an item (the whole, not a part) from the results of its parts.
  void (*combine_parts)(const AttentionProblem& problem, const WorkItem& item, const float* parts);
  // Computes the output rows of a work item of packed sequences.
  void (*attend_packed)(const PackedProblem& problem, const PackedItem& item);
  // The largest value of each kSampleBlock of a row of logits; NaN where one of them is. Returns the largest of the row, likewise.
  float (*block_maxima)(const float* values, int64_t count, float* maxima);
  // Weights of a softmax that is not yet divided by their sum, which it returns; sums: of each kSampleBlock.
  double (*weigh)(const float* values, int64_t count, const SampleScale& scale, double* weights, double* sums);
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
