// fastserve::GatedActivation: activation(gate) * value, of gates and values that one product made side by side.
//
// Input: x [.., 2 n], of each row n gates, then n values. Attribute: activation, "silu" or "gelu_tanh". Output [.., n].
//
// A row's output is the same bits in any batch and on any number of threads.
#include "gated_activation_op.h"

#include <algorithm>
#include <iterator>
#include <string>

#include "isa/row_kernels.h"
#include "op_inputs.h"
#include "op_schema.h"
#include "parallel_for.h"

namespace fastserve {
namespace {

constexpr OpInput kInputs[] = {{"x", ort::kFloat, ort::kRequired}};
constexpr OpSchema kSchema = {"GatedActivation", "fastserve::GatedActivation", kInputs, std::size(kInputs)};

constexpr int64_t kElementsAtOnce = 8192;  // outputs of one work item

Gate read_gate(const ort::Api& api, const ort::KernelInfo* info) {
  const std::string name = read_string(api, info, "activation", "");
  if (name == "silu") return kSilu;
  if (name == "gelu_tanh") return kGeluTanh;
  refuse(kSchema, "attribute activation", "\"" + name + "\"", "silu or gelu_tanh");
}

struct GatedActivationKernel {
  static const OpSchema& schema() { return kSchema; }

  GatedActivationKernel(const ort::Api& ort_api, const ort::KernelInfo* info)
      : api(ort_api), gate(read_gate(ort_api, info)), kernels(choose_row_kernels()) {}

  void compute(ort::KernelContext* context) const {
    const Tensor x = read_input(api, context, kSchema, 0);
    if (x.shape.size() < 2 || x.shape.back() % 2 != 0) refuse(kSchema, x.name, text(x.shape), "[.., 2 n]");
    GateProblem problem{};
    problem.x = static_cast<const float*>(x.data);
    problem.n = x.shape.back() / 2;
    problem.gate = gate;
    problem.rows = 1;
    for (size_t i = 0; i + 1 < x.shape.size(); ++i) problem.rows *= x.shape[i];
    std::vector<int64_t> shape = x.shape;
    shape.back() = problem.n;
    problem.output = make_output(api, context, shape);
    if (problem.n == 0) return;
    const int64_t rows_at_once = std::max<int64_t>(1, kElementsAtOnce / problem.n);
    parallel_rows(api, context, problem.rows, rows_at_once,
                  [&](int64_t first, int64_t last) { kernels.gate(problem, first, last); });
  }

  const ort::Api& api;
  const Gate gate;
  const RowKernels& kernels;
};

}  // namespace

const ort::CustomOp& gated_activation_op() {
  static const ort::CustomOp op = define_op<GatedActivationKernel>();
  return op;
}

}  // namespace fastserve
