// fastserve::RowNorm: RMSNorm or LayerNorm of each row, and before it the residual sum.
//
// Inputs: x [.., n], weight [n], bias [n] (optional), skip (optional, shaped like x). Attributes: epsilon (1e-5), centred (0:
// RMSNorm, 1: LayerNorm). Outputs: y [.., n], and sum = x + skip (optional, only with skip).
//
//   s = x + skip;  y = (s - m) / sqrt(mean((s - m)^2) + epsilon) * weight + bias,  m = mean(s) if centred, else 0
//
// A row's output is the same bits in any batch and on any number of threads.
#include "row_norm_op.h"

#include <algorithm>
#include <iterator>

#include "isa/row_kernels.h"
#include "op_inputs.h"
#include "op_schema.h"
#include "parallel_for.h"

namespace fastserve {
namespace {

enum Input : size_t { kX, kWeight, kBias, kSkip };
constexpr OpInput kInputs[] = {{"x", ort::kFloat, ort::kRequired},
                               {"weight", ort::kFloat, ort::kRequired},
                               {"bias", ort::kFloat, ort::kOptional},
                               {"skip", ort::kFloat, ort::kOptional}};
constexpr OpSchema kSchema = {"RowNorm", "fastserve::RowNorm", kInputs, std::size(kInputs), 2};

constexpr int64_t kElementsAtOnce = 8192;  // of one work item
constexpr int64_t kElementsAlone = 32768;  // as many are one item: to wake another thread takes as long as it saves

struct RowNormKernel {
  static const OpSchema& schema() { return kSchema; }

  RowNormKernel(const ort::Api& ort_api, const ort::KernelInfo* info)
      : api(ort_api),
        epsilon(read_float(ort_api, info, "epsilon", 1e-5f)),
        centred(read_int(ort_api, info, "centred", 0) != 0),
        kernels(choose_row_kernels()) {}

  void compute(ort::KernelContext* context) const {
    const Tensor x = read_input(api, context, kSchema, kX);
    if (x.shape.size() < 2) refuse(kSchema, x.name, text(x.shape), "[.., n]");
    const int64_t n = x.shape.back();
    int64_t rows = 1;
    for (size_t i = 0; i + 1 < x.shape.size(); ++i) rows *= x.shape[i];
    const Tensor weight = read_input(api, context, kSchema, kWeight);
    expect_shape(weight, {n});
    const Tensor bias = read_input(api, context, kSchema, kBias);
    if (bias.present()) expect_shape(bias, {n});
    const Tensor skip = read_input(api, context, kSchema, kSkip);
    if (skip.present()) expect_shape(skip, x.shape);
    NormProblem problem{};
    problem.x = static_cast<const float*>(x.data);
    problem.skip = static_cast<const float*>(skip.data);
    problem.weight = static_cast<const float*>(weight.data);
    problem.bias = static_cast<const float*>(bias.data);
    problem.output = make_output(api, context, x.shape);
    problem.sum = skip.present() ? make_optional_output(api, context, x.shape, 1) : nullptr;
    problem.rows = rows;
    problem.n = n;
    problem.epsilon = epsilon;
    problem.centred = centred;
    if (rows * n == 0) return;
    const int64_t rows_at_once = rows * n <= kElementsAlone ? rows : std::max<int64_t>(1, kElementsAtOnce / n);
    parallel_rows(api, context, rows, rows_at_once,
                  [&](int64_t first, int64_t last) { kernels.normalize(problem, first, last); });
  }

  const ort::Api& api;
  const float epsilon;
  const bool centred;
  const RowKernels& kernels;
};

}  // namespace

const ort::CustomOp& row_norm_op() {
  static const ort::CustomOp op = define_op<RowNormKernel>();
  return op;
}

}  // namespace fastserve
