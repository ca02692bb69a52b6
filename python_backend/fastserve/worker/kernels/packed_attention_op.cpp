// fastserve::PackedAttention: bidirectional attention inside each sequence of a packed batch.
//
//   tokens     | seq 0: 3 | seq 1: 1 | seq 2: 200 | ...      packed, no padding
//   cumulative   0          3          4            204
//
// Inputs: query [num_tokens, num_heads * head_size], key and value [num_tokens, kv_num_heads * head_size]; or key and value
// absent and query the three side by side, [num_tokens, (num_heads + 2 * kv_num_heads) * head_size].
// Attributes: num_heads, kv_num_heads, scale (0: 1 / sqrt(head_size)), local_window_size (-1: off; else token i sees token j
// of its sequence when |i - j| <= local_window_size). Output [num_tokens, num_heads * head_size].
// Nothing crosses from one sequence to another: a sequence's output is the same bits in any batch, on any number of threads.
#include "packed_attention_op.h"

#include <algorithm>
#include <cstdint>
#include <iterator>
#include <vector>

#include "attention_attributes.h"
#include "attention_problem.h"
#include "isa/kernels.h"
#include "op_inputs.h"
#include "op_schema.h"
#include "packed_attention_problem.h"
#include "parallel_for.h"

namespace fastserve {
namespace {

enum Input : size_t { kQuery, kKey, kValue, kCumulativeSequenceLength };
constexpr OpInput kInputs[] = {{"query", ort::kFloat, ort::kRequired},
                               {"key", ort::kFloat, ort::kOptional},
                               {"value", ort::kFloat, ort::kOptional},
                               {"cumulative_sequence_length", ort::kInt32, ort::kRequired}};
constexpr OpSchema kSchema = {"PackedAttention", "fastserve::PackedAttention", kInputs, std::size(kInputs)};

// Covers every (query, head) once, longest sequences first, so that handing items out in order balances a long sequence
// against many short ones. All items of a head of a sequence follow each other: they read the same keys and values.
std::vector<PackedItem> plan_items(const SequenceEnds& ends, int num_heads) {
  std::vector<PackedItem> sequences;
  size_t tiles = 0;
  for (int64_t s = 0; s < ends.num_seqs; ++s) {
    const int32_t length = ends.entries[s + 1] - ends.entries[s];
    sequences.push_back({ends.entries[s], length, 0, 0, 0});
    tiles += (static_cast<size_t>(length) + kMaxRows - 1) / kMaxRows;
  }
  std::stable_sort(sequences.begin(), sequences.end(),
                   [](const PackedItem& a, const PackedItem& b) { return a.length > b.length; });
  std::vector<PackedItem> items;
  items.reserve(tiles * static_cast<size_t>(num_heads));
  for (PackedItem item : sequences) {
    for (item.head = 0; item.head < num_heads; ++item.head) {
      for (item.first_query = 0; item.first_query < item.length; item.first_query += kMaxRows) {
        item.num_queries = std::min(kMaxRows, item.length - item.first_query);
        items.push_back(item);
      }
    }
  }
  return items;
}

struct PackedAttentionKernel {
  static const OpSchema& schema() { return kSchema; }

  PackedAttentionKernel(const ort::Api& ort_api, const ort::KernelInfo* info)
      : api(ort_api), attributes(read_attention_attributes(ort_api, info, kSchema, 0)), kernels(choose_kernels()) {}

  void compute(ort::KernelContext* context) const {
    const auto read = [&](Input index) { return read_input(api, context, kSchema, index); };
    PackedProblem problem{};
    problem.num_heads = attributes.num_heads;
    problem.kv_num_heads = attributes.kv_num_heads;
    problem.window = attributes.local_window_size < 0 ? INT64_MAX / 4 : attributes.local_window_size;
    const Projections found = locate_projections(read(kQuery), read(kKey), read(kValue), attributes);
    problem.query = found.query;
    problem.key = found.key;
    problem.value = found.value;
    problem.query_stride = found.query_stride;
    problem.key_stride = found.key_stride;
    problem.head_size = found.head_size;
    problem.scale = score_scale(attributes, problem.head_size);
    const SequenceEnds ends = read_sequence_ends(read(kCumulativeSequenceLength), found.num_tokens);
    problem.output = make_output(api, context, {found.num_tokens, static_cast<int64_t>(problem.num_heads) * problem.head_size});
    const std::vector<PackedItem> items = plan_items(ends, problem.num_heads);
    parallel_for(api, context, items.size(), [&](size_t i) { kernels.attend_packed(problem, items[i]); });
  }

  const ort::Api& api;
  const AttentionAttributes attributes;
  const Kernels& kernels;
};

}  // namespace

const ort::CustomOp& packed_attention_op() {
  static const ort::CustomOp op = define_op<PackedAttentionKernel>();
  return op;
}

}  // namespace fastserve
