// What a product does to its rows before it multiplies them: nothing, or what RowNorm or GatedActivation does, a row at a time,
// so that no tensor stands between.
#pragma once

#include <cstdint>
#include <vector>

#include "isa/row_kernels.h"
#include "norm_inputs.h"
#include "op_schema.h"
#include "ort_abi.h"
#include "row_problems.h"

namespace fastserve {

enum class Prologue { kNone, kNorm, kGate };

// The rows of one call.
struct SourceRows {
  const RowKernels* kernels;
  Prologue prologue;
  const float* x;  // [count, k], or [count, 2 k] where they are gated
  NormProblem norm;
  GateProblem gate;
  std::vector<int64_t> shape;  // [.., k], as the product reads them
  int64_t count;
  int64_t k;

  // Row `row` [k] as the product reads it: where it lies in x, or computed into `space` [k]. Any thread, each row once.
  const float* row(int64_t row, float* space) const;
};

// Attribute: prologue ("none", "norm", "silu" or "gelu_tanh"). A norm's others, its inputs from `first_input` on and its output 1
// are those of norm_inputs.h.
class RowPrologue {
 public:
  // Throws InvalidInput naming an attribute.
  RowPrologue(const ort::Api& api, const ort::KernelInfo* info, const OpSchema& schema, size_t first_input);

  // x is the op's input 0. Makes output 1 of the node where it has one. Throws InvalidInput naming an input.
  SourceRows read(ort::KernelContext* context, int64_t k) const;

  bool none() const { return prologue_ == Prologue::kNone; }

 private:
  const ort::Api& api_;
  const OpSchema& schema_;
  const NormInputs norm_;
  Prologue prologue_ = Prologue::kNone;
  Gate gate_ = kSilu;
  const RowKernels& kernels_;
};

}  // namespace fastserve
