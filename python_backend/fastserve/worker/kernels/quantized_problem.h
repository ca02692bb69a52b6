// What one call of QuantizedMatMul has to do, as plain data shared by the op (which validates it) and the kernels.
//
// Only plain data and constants may live here: this header is compiled into translation units with different
// instruction sets, where an inline function could be emitted with the wrong one (the one-definition-rule trap).
#pragma once

#include <cstddef>
#include <cstdint>

#include "output_block.h"

namespace fastserve {

constexpr int kPanelChannels = 16;  // output channels whose weights lie side by side
constexpr int kGroupInputs = 4;     // inputs of one channel that lie side by side
constexpr int kGroupBytes = 64;     // kPanelChannels * kGroupInputs; also 16 channel sums of 4 bytes
constexpr int kRowAlignment = 64;   // quantised activations of a row are zero-filled up to a multiple of this
// The largest k whose sums of products of -127..127 cannot overflow 32 bits.
constexpr int64_t kMaxInputs = 1 << 17;

// Row-major tensors, already validated. The weight is what quantized_weight.py packs:
//
//   weight [num_panels, 1 + num_groups, 64]    one panel (16 output channels), rows of 64 bytes:
//             sums:    | c0 (int32) | c1 | ... | c15 |              sum of each channel's weights
//             group 0: | c0: k0 k1 k2 k3 | c1: k0 k1 k2 k3 | ... | c15: k0 k1 k2 k3 |
//             group 1: | c0: k4 k5 k6 k7 | ...
struct QuantizedProblem {
  const int8_t* weight;       // -127..127, zero where a panel or group is not full
  const float* weight_scale;  // [n]
  const float* bias;          // [n] or null
  float* output;              // [rows, n]
  void* activations;          // scratch [rows, stride], of the kernels' own element type
  float* row_scale;           // scratch [rows]
  int64_t rows;
  int64_t k;
  int64_t n;
  int64_t num_groups;  // k / 4, rounded up
  int64_t stride;      // elements from one row of activations to the next, a multiple of kRowAlignment
};

// One instruction set's kernels. Rows and blocks are independent and may run on any thread at the same time.
struct QuantizedKernels {
  const char* name;
  size_t activation_bytes;  // size of one quantised activation
  int64_t rows_of_read;     // about so many rows' products take as long as reading the weights from memory
  void (*quantize)(const QuantizedProblem& problem, const float* x, int64_t row);  // x: row `row`, [k]
  // Needs the rows' activations. next_panel: what to ask for meanwhile, the first panel of this thread's next block, or -1.
  void (*multiply)(const QuantizedProblem& problem, const OutputBlock& block, int64_t next_panel);
};

}  // namespace fastserve
