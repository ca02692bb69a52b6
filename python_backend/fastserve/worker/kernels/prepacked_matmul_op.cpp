// fastserve::PrepackedMatMul: x times a float matrix that lies in the order in which the kernels read it.
//
// Inputs: x [.., k] float, weight [num_panels, k, 32] float as prepacked_weight.py packs it, bias [n] (optional). Attributes:
// k, n. Output [.., n] float: the sum of x * weight over the k inputs in their order, each product added by one rounding where
// the processor can, then the bias.
//
// A row's output is the same bits in any batch, on any number of threads, and with AVX2 and AVX-512.
#include "prepacked_matmul_op.h"

#include <algorithm>
#include <cstdint>
#include <cstring>
#include <iterator>
#include <optional>
#include <vector>

#include "isa/prepacked_kernels.h"
#include "op_inputs.h"
#include "op_schema.h"
#include "output_cut.h"
#include "parallel_for.h"
#include "prepacked_problem.h"
#include "scratch.h"

namespace fastserve {
namespace {

enum Input : size_t { kX, kWeight, kBias };
constexpr OpInput kInputs[] = {{"x", ort::kFloat, ort::kRequired},
                               {"weight", ort::kFloat, ort::kRequired},
                               {"bias", ort::kFloat, ort::kOptional}};
constexpr OpSchema kSchema = {"PrepackedMatMul", "fastserve::PrepackedMatMul", kInputs, std::size(kInputs)};

constexpr int64_t kRowBytesAtOnce = 768 * 1024;       // of one work item's x, so that it stays in the second-level cache
constexpr int64_t kFewestRowsAtOnce = 56;
constexpr int64_t kLeastWork = 768 * 1024;            // of one work item, in bytes of weights that could be read meanwhile
constexpr int64_t kItemsOfThread = 16;                // or fewer: neighbouring outputs of two processors disturb each other
constexpr int64_t kRowsOfRead = 16;                   // about so many rows' products take as long as reading the weights
// Rows whose starts are multiples of this many inputs apart would share a set of the nearest cache, which holds 8 or 12 of them.
constexpr int64_t kCollidingInputs = 1024;
constexpr int64_t kMostCollidingRows = 6;
constexpr int64_t kPadding = 16;                      // floats: a cache line
constexpr int64_t kCopiedAtOnce = 16384;              // floats of one work item

OutputCut cut_outputs(const PrepackedProblem& problem, int64_t num_panels) {
  OutputCut cut{};
  const int64_t row_bytes = problem.k * static_cast<int64_t>(sizeof(float));
  cut.row_blocks = divide_up(problem.rows, std::max(kFewestRowsAtOnce, kRowBytesAtOnce / row_bytes));
  cut.rows = divide_up(problem.rows, cut.row_blocks);  // of nearly equal size
  const int64_t work = row_bytes * kPanelColumns * (kRowsOfRead + cut.rows) / kRowsOfRead;  // of a panel
  const int64_t fewest = num_panels * cut.row_blocks / (kItemsOfThread * num_threads());
  cut.panels = even_panels(num_panels, cut.row_blocks, std::max<int64_t>({1, kLeastWork / work, fewest}), 1);
  cut.panel_blocks = divide_up(num_panels, cut.panels);
  // What is larger is read once; what is smaller is read again and again, from a cache.
  cut.rows_first = problem.rows > problem.n;
  return cut;
}

struct PrepackedMatMulKernel {
  static const OpSchema& schema() { return kSchema; }

  PrepackedMatMulKernel(const ort::Api& ort_api, const ort::KernelInfo* info)
      : api(ort_api),
        k(read_size(ort_api, info, kSchema, "k", kMostSize)),
        n(read_size(ort_api, info, kSchema, "n", kMostSize)),
        kernels(choose_prepacked_kernels()) {}

  // Everything but the output. Throws InvalidInput naming the input and what is allowed.
  PrepackedProblem read_problem(const Tensor& x, const ort::KernelContext* context) const {
    PrepackedProblem problem{};
    problem.k = k;
    problem.n = n;
    problem.rows = count_rows(x, k);
    problem.x = static_cast<const float*>(x.data);
    problem.x_stride = k;
    const Tensor weight = read_input(api, context, kSchema, kWeight);
    expect_shape(weight, {divide_up(n, kPanelColumns), k, kPanelColumns});
    problem.weight = static_cast<const float*>(weight.data);
    const Tensor bias = read_input(api, context, kSchema, kBias);
    if (bias.present()) expect_shape(bias, {n});
    problem.bias = static_cast<const float*>(bias.data);
    return problem;
  }

  // Lets the problem read a copy of its rows that start where they do not collide.
  void spread_rows(ort::KernelContext* context, PrepackedProblem& problem, float* spread) const {
    const float* x = problem.x;
    const int64_t stride = k + kPadding;
    const int64_t rows_at_once = std::max<int64_t>(1, kCopiedAtOnce / k);
    parallel_rows(api, context, problem.rows, rows_at_once, [&](int64_t first, int64_t last) {
      for (int64_t row = first; row < last; ++row) {
        std::memcpy(spread + row * stride, x + row * k, static_cast<size_t>(k) * sizeof(float));
      }
    });
    problem.x = spread;
    problem.x_stride = stride;
  }

  void compute(ort::KernelContext* context) const {
    const Tensor x = read_input(api, context, kSchema, kX);
    PrepackedProblem problem = read_problem(x, context);
    std::vector<int64_t> shape = x.shape;
    shape.back() = n;
    problem.output = make_output(api, context, shape);
    if (problem.rows == 0) return;
    std::optional<Scratch> spread;
    if (k % kCollidingInputs == 0 && problem.rows > kMostCollidingRows) {
      spread.emplace(static_cast<size_t>(problem.rows * (k + kPadding)) * sizeof(float));
      spread_rows(context, problem, static_cast<float*>(spread->data()));
    }
    const int64_t num_panels = divide_up(n, kPanelColumns);
    const OutputCut cut = cut_outputs(problem, num_panels);
    parallel_for(api, context, static_cast<size_t>(cut.count()), [&](size_t i) {
      const int64_t index = static_cast<int64_t>(i);
      kernels.multiply(problem, cut.block(index, problem.rows, num_panels), cut.next_panel(index));
    });
  }

  const ort::Api& api;
  const int64_t k;
  const int64_t n;
  const PrepackedKernels& kernels;
};

}  // namespace

const ort::CustomOp& prepacked_matmul_op() {
  static const ort::CustomOp op = define_op<PrepackedMatMulKernel>();
  return op;
}

}  // namespace fastserve
