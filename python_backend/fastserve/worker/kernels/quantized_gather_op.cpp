// fastserve::QuantizedGather: rows of an embedding that shares its weight with a head, from the head's packed int8 weight.
//
// Inputs: ids [num_tokens] int64, weight and weight_scale [n] as QuantizedMatMul has them. Attributes: k, n. Output
// [num_tokens, k] float: row i is output channel ids[i] of the weight, int8 times the channel's scale.
#include "quantized_gather_op.h"

#include <iterator>

#include "op_inputs.h"
#include "op_schema.h"
#include "parallel_for.h"
#include "quantized_problem.h"

namespace fastserve {
namespace {

enum Input : size_t { kIds, kWeight, kWeightScale };
constexpr OpInput kInputs[] = {{"ids", ort::kInt64, ort::kRequired},
                               {"weight", ort::kInt8, ort::kRequired},
                               {"weight_scale", ort::kFloat, ort::kRequired}};
constexpr OpSchema kSchema = {"QuantizedGather", "fastserve::QuantizedGather", kInputs, std::size(kInputs)};

constexpr int64_t kRowsAtOnce = 16;  // of one work item

struct QuantizedGatherKernel {
  static const OpSchema& schema() { return kSchema; }

  QuantizedGatherKernel(const ort::Api& ort_api, const ort::KernelInfo* info)
      : api(ort_api), k(read_int(ort_api, info, "k", 0)), n(read_int(ort_api, info, "n", 0)) {}

  void compute(ort::KernelContext* context) const {
    const Tensor ids = read_input(api, context, kSchema, kIds);
    expect_rank(ids, 1);
    const int64_t groups = (k + kGroupInputs - 1) / kGroupInputs;
    const Tensor weight = read_input(api, context, kSchema, kWeight);
    expect_shape(weight, {(n + kPanelChannels - 1) / kPanelChannels, 1 + groups, kGroupBytes});
    const Tensor weight_scale = read_input(api, context, kSchema, kWeightScale);
    expect_shape(weight_scale, {n});
    const int64_t* id = static_cast<const int64_t*>(ids.data);
    const int64_t rows = expect_ids(ids, n);
    float* output = make_output(api, context, {rows, k});
    const int8_t* packed = static_cast<const int8_t*>(weight.data);
    const float* scale = static_cast<const float*>(weight_scale.data);
    parallel_rows(api, context, rows, kRowsAtOnce, [&](int64_t first, int64_t last) {
      for (int64_t row = first; row < last; ++row) {
        const int8_t* panel = packed + id[row] / kPanelChannels * (1 + groups) * kGroupBytes;
        const int8_t* channel = panel + kGroupBytes + id[row] % kPanelChannels * kGroupInputs;  // behind the panel's sums
        for (int64_t i = 0; i < k; ++i) {
          const int8_t value = channel[i / kGroupInputs * kGroupBytes + i % kGroupInputs];
          output[row * k + i] = static_cast<float>(value) * scale[id[row]];
        }
      }
    });
  }

  const ort::Api& api;
  const int64_t k;
  const int64_t n;
};

}  // namespace

const ort::CustomOp& quantized_gather_op() {
  static const ort::CustomOp op = define_op<QuantizedGatherKernel>();
  return op;
}

}  // namespace fastserve
