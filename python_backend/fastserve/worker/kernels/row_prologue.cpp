#include "row_prologue.h"

#include <string>

namespace fastserve {

const float* SourceRows::row(int64_t row, float* space) const {
  if (prologue == Prologue::kNone) return x + row * k;
  if (prologue == Prologue::kGate) {
    GateProblem one = gate;
    one.x += row * 2 * k;
    one.output = space;
    kernels->gate(one, 0, 1);
  } else {
    NormProblem one = norm;
    one.rows = 1;
    one.x += row * k;
    if (one.skip != nullptr) one.skip += row * k;
    if (one.sum != nullptr) one.sum += row * k;
    one.output = space;
    kernels->normalize(one, 0, 1);
  }
  return space;
}

RowPrologue::RowPrologue(const ort::Api& api, const ort::KernelInfo* info, const OpSchema& schema, size_t first_input)
    : api_(api),
      schema_(schema),
      norm_(api, info, schema, first_input),
      kernels_(choose_row_kernels()) {
  const std::string name = read_string(api, info, "prologue", "none");
  if (name == "norm") {
    prologue_ = Prologue::kNorm;
  } else if (name == "silu" || name == "gelu_tanh") {
    prologue_ = Prologue::kGate;
    gate_ = name == "silu" ? kSilu : kGeluTanh;
  } else if (name != "none") {
    refuse(schema, "attribute prologue", "\"" + name + "\"", "none, norm, silu or gelu_tanh");
  }
}

SourceRows RowPrologue::read(ort::KernelContext* context, int64_t k) const {
  const Tensor x = read_input(api_, context, schema_, 0);
  const bool gated = prologue_ == Prologue::kGate;
  SourceRows rows{};
  rows.kernels = &kernels_;
  rows.prologue = prologue_;
  rows.count = count_rows(x, gated ? 2 * k : k);
  rows.k = k;
  rows.x = static_cast<const float*>(x.data);
  rows.shape = x.shape;
  rows.shape.back() = k;
  rows.gate = {rows.x, nullptr, 1, k, gate_};
  if (prologue_ == Prologue::kNorm) rows.norm = norm_.read(context, x);
  return rows;
}

}  // namespace fastserve
