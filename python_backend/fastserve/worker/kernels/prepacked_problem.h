// What one call of PrepackedMatMul has to do, as plain data shared by the op (which validates it) and the kernels.
//
// Only plain data and constants may live here: this header is compiled into translation units with different
// instruction sets, where an inline function could be emitted with the wrong one (the one-definition-rule trap).
#pragma once

#include <cstddef>
#include <cstdint>

#include "output_block.h"

namespace fastserve {

constexpr int kPanelColumns = 32;                 // columns whose weights lie side by side
constexpr int64_t kMostSize = int64_t{1} << 24;  // of k and n

// Row-major tensors, already validated. The weight is what prepacked_weight.py packs:
//
//   weight [num_panels, k, 32]    one panel (32 columns):
//             k0: | c0 | c1 | ... | c31 |
//             k1: | c0 | c1 | ... | c31 |
//             ...
struct PrepackedProblem {
  const float* x;       // [rows, k], x_stride apart
  int64_t x_stride;
  const float* weight;  // zero where the last panel is not full
  const float* bias;    // [n] or null
  float* output;        // [rows, n]
  int64_t rows;
  int64_t k;
  int64_t n;
};

// One instruction set's kernels. Blocks are independent and may run on any thread at the same time.
struct PrepackedKernels {
  const char* name;
  // `next_panel`: what this thread will probably read after the block's panels, -1 for nothing.
  void (*multiply)(const PrepackedProblem& problem, const OutputBlock& block, int64_t next_panel);
};

}  // namespace fastserve
