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
#include "norm_inputs.h"
#include "op_inputs.h"
#include "op_schema.h"
#include "parallel_for.h"

namespace fastserve {
namespace {

enum Input : size_t { kX, kWeight };
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
      : api(ort_api), norm(ort_api, info, kSchema, kWeight), kernels(choose_row_kernels()) {}

  void compute(ort::KernelContext* context) const {
    const Tensor x = read_input(api, context, kSchema, kX);
    if (x.shape.size() < 2) refuse(kSchema, x.name, text(x.shape), "[.., n]");
    NormProblem problem = norm.read(context, x);
    problem.output = make_output(api, context, x.shape);
    const int64_t rows = problem.rows;
    const int64_t n = problem.n;
    if (rows * n == 0) return;
    const int64_t rows_at_once = rows * n <= kElementsAlone ? rows : std::max<int64_t>(1, kElementsAtOnce / n);
    parallel_rows(api, context, rows, rows_at_once,
                  [&](int64_t first, int64_t last) { kernels.normalize(problem, first, last); });
  }

  const ort::Api& api;
  const NormInputs norm;
  const RowKernels& kernels;
};

}  // namespace

const ort::CustomOp& row_norm_op() {
  static const ort::CustomOp op = define_op<RowNormKernel>();
  return op;
}

}  // namespace fastserve
