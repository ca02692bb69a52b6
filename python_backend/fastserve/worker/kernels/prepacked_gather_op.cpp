// fastserve::PrepackedGather: rows of an embedding that shares its weight with a head, from the head's packed weight.
//
// Inputs: ids [..] int64, weight as PrepackedMatMul has it. Attributes: k, n. Output [.., k] float: row i is column ids[i] of
// the matrix.
#include "prepacked_gather_op.h"

#include <iterator>
#include <vector>

#include "op_inputs.h"
#include "op_schema.h"
#include "output_cut.h"
#include "parallel_for.h"
#include "prepacked_problem.h"

namespace fastserve {
namespace {

enum Input : size_t { kIds, kWeight };
constexpr OpInput kInputs[] = {{"ids", ort::kInt64, ort::kRequired}, {"weight", ort::kFloat, ort::kRequired}};
constexpr OpSchema kSchema = {"PrepackedGather", "fastserve::PrepackedGather", kInputs, std::size(kInputs)};

constexpr int64_t kRowsAtOnce = 4;  // of one work item: each reads as many cache lines as it has numbers

struct PrepackedGatherKernel {
  static const OpSchema& schema() { return kSchema; }

  PrepackedGatherKernel(const ort::Api& ort_api, const ort::KernelInfo* info)
      : api(ort_api),
        k(read_size(ort_api, info, kSchema, "k", kMostSize)),
        n(read_size(ort_api, info, kSchema, "n", kMostSize)) {}

  void compute(ort::KernelContext* context) const {
    const Tensor ids = read_input(api, context, kSchema, kIds);
    const Tensor weight = read_input(api, context, kSchema, kWeight);
    expect_shape(weight, {divide_up(n, kPanelColumns), k, kPanelColumns});
    const int64_t* id = static_cast<const int64_t*>(ids.data);
    const int64_t rows = expect_ids(ids, n);
    std::vector<int64_t> shape = ids.shape;
    shape.push_back(k);
    float* output = make_output(api, context, shape);
    const float* packed = static_cast<const float*>(weight.data);
    parallel_rows(api, context, rows, kRowsAtOnce, [&](int64_t first, int64_t last) {
      for (int64_t row = first; row < last; ++row) {
        const float* column = packed + id[row] / kPanelColumns * k * kPanelColumns + id[row] % kPanelColumns;
        for (int64_t i = 0; i < k; ++i) output[row * k + i] = column[i * kPanelColumns];
      }
    });
  }

  const ort::Api& api;
  const int64_t k;
  const int64_t n;
};

}  // namespace

const ort::CustomOp& prepacked_gather_op() {
  static const ort::CustomOp op = define_op<PrepackedGatherKernel>();
  return op;
}

}  // namespace fastserve
