// fastserve::SegmentMean: the mean of each sequence's rows of a packed batch.
//
// Inputs: x [num_tokens, n], cumulative_sequence_length [num_seqs + 1], every sequence with a token at least.
// Output [num_seqs, n]. Rows are added in order, so that a sequence's mean is the same bits in any batch, on any number of
// threads and with any instruction set.
#include "segment_mean_op.h"

#include <algorithm>
#include <iterator>
#include <string>

#include "op_inputs.h"
#include "op_schema.h"
#include "parallel_for.h"

namespace fastserve {
namespace {

enum Input : size_t { kX, kCumulativeSequenceLength };
constexpr OpInput kInputs[] = {{"x", ort::kFloat, ort::kRequired}, {"cumulative_sequence_length", ort::kInt32, ort::kRequired}};
constexpr OpSchema kSchema = {"SegmentMean", "fastserve::SegmentMean", kInputs, std::size(kInputs)};

constexpr int64_t kColumns = 256;   // of one work item
constexpr int64_t kRowsAtOnce = 64;  // added to a sum of their own first: thousands of rows lose no more digits than dozens

// mean[c] of `count` rows of `columns` (at most kColumns) floats that start `stride` apart.
void mean_rows(const float* x, int64_t stride, int64_t count, int64_t columns, float* mean) {
  std::fill_n(mean, columns, 0.0f);
  for (int64_t first = 0; first < count; first += kRowsAtOnce) {
    float sums[kColumns] = {};
    for (int64_t row = first; row < std::min(count, first + kRowsAtOnce); ++row) {
      for (int64_t c = 0; c < columns; ++c) sums[c] += x[row * stride + c];
    }
    for (int64_t c = 0; c < columns; ++c) mean[c] += sums[c];
  }
  for (int64_t c = 0; c < columns; ++c) mean[c] /= static_cast<float>(count);
}

void refuse_empty_sequences(const SequenceEnds& ends) {
  for (int64_t s = 0; s < ends.num_seqs; ++s) {
    if (ends.entries[s + 1] == ends.entries[s]) {
      refuse(kSchema, std::string(kInputs[kCumulativeSequenceLength].name) + "[" + std::to_string(s + 1) + "]",
             std::to_string(ends.entries[s + 1]),
             "at least " + std::to_string(ends.entries[s] + 1) + " (an empty sequence has no mean)");
    }
  }
}

struct SegmentMeanKernel {
  static const OpSchema& schema() { return kSchema; }

  SegmentMeanKernel(const ort::Api& ort_api, const ort::KernelInfo*) : api(ort_api) {}

  void compute(ort::KernelContext* context) const {
    const Tensor x = read_input(api, context, kSchema, kX);
    expect_rank(x, 2);
    const SequenceEnds ends = read_sequence_ends(read_input(api, context, kSchema, kCumulativeSequenceLength), x.shape[0]);
    refuse_empty_sequences(ends);
    const int64_t width = x.shape[1];
    float* output = make_output(api, context, {ends.num_seqs, width});
    const int64_t chunks = (width + kColumns - 1) / kColumns;
    parallel_for(api, context, static_cast<size_t>(ends.num_seqs * chunks), [&](size_t i) {
      const int64_t s = static_cast<int64_t>(i) / chunks;
      const int64_t first = static_cast<int64_t>(i) % chunks * kColumns;
      const float* rows = static_cast<const float*>(x.data) + ends.entries[s] * width + first;
      mean_rows(rows, width, ends.entries[s + 1] - ends.entries[s], std::min(kColumns, width - first),
                output + s * width + first);
    });
  }

  const ort::Api& api;
};

}  // namespace

const ort::CustomOp& segment_mean_op() {
  static const ort::CustomOp op = define_op<SegmentMeanKernel>();
  return op;
}

}  // namespace fastserve
