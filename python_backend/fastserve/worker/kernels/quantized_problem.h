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
constexpr int kBlockGroups = 8;     // groups of a channel whose weights of 4 bits share a step and an offset: a block
constexpr int kEndBytes = 2 * kPanelChannels;                // the steps and offsets of a panel's block
constexpr int kLevelBytes = kBlockGroups * kGroupBytes / 2;  // its levels
constexpr int64_t kFewRows = 3;     // for so few, weights of 4 bits are not unpacked into memory first
constexpr int kRowAlignment = 64;   // quantised activations of a row are zero-filled up to a multiple of this
// The largest k whose sums of products of -127..127 cannot overflow 32 bits.
constexpr int64_t kMaxInputs = 1 << 17;

// Row-major tensors, already validated. The weight is what quantized_weight.py packs:
//
//   weight [num_panels, 1 + num_groups, 64]    one panel (16 output channels), rows of 64 bytes:
//             sums:    | c0 (int32) | c1 | ... | c15 |              sum of each channel's weights
//             group 0: | c0: k0 k1 k2 k3 | c1: k0 k1 k2 k3 | ... | c15: k0 k1 k2 k3 |
//             group 1: | c0: k4 k5 k6 k7 | ...
//
// Weights of 4 bits, which int4_weight.py packs, are unpacked into such panels, some at a time.
struct QuantizedProblem {
  const int8_t* weight;       // panels from first_panel on; -127..127, zero where a panel is not full
  int64_t first_panel;
  int64_t packed_panel_bytes;  // for multiply_packed: from one panel of 4 bits a weight to the next
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

// Weights that will be read next, to be asked for meanwhile: as much memory as `panels` panels of int8 take.
struct NextWeights {
  const int8_t* first;
  int64_t panels;
};

// One instruction set's kernels. Rows and blocks are independent and may run on any thread at the same time.
struct QuantizedKernels {
  const char* name;
  size_t activation_bytes;  // size of one quantised activation
  int64_t rows_of_read;     // about so many rows' products take as long as reading the weights from memory
  void (*quantize)(const QuantizedProblem& problem, const float* x, int64_t row);  // x: row `row`, [k]
  // One panel of 4 bits a weight to int8. Writes whole blocks: up to kBlockGroups - 1 groups more than num_groups.
  void (*unpack)(const int8_t* packed, int64_t num_groups, int8_t* panel);
  // As multiply, by weights of 4 bits as they are stored, without other memory; the best for up to kFewRows rows.
  void (*multiply_packed)(const QuantizedProblem& problem, const OutputBlock& block, const NextWeights& next);
  // Needs the rows' activations. next: of this thread's next block.
  void (*multiply)(const QuantizedProblem& problem, const OutputBlock& block, const NextWeights& next);
};

}  // namespace fastserve
