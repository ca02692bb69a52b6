#include "head_changes.h"

#include <string>

#include "attention_attributes.h"

namespace fastserve {
namespace {

bool read_flag(const ort::Api& api, const ort::KernelInfo* info, const OpSchema& schema, const char* name) {
  const int64_t value = read_int(api, info, name, 0);
  if (value != 0 && value != 1) refuse_attribute(schema, name, std::to_string(value), "0 or 1");
  return value == 1;
}

// That both are there or neither is.
void expect_pair(const Tensor& one, const Tensor& other) {
  if (one.present() == other.present()) return;
  const Tensor& absent = one.present() ? other : one;
  refuse(*absent.schema, absent.name, "nothing", std::string(one.name) + " and " + other.name + ", or neither of them");
}

void expect_angles(const Tensor& cosines, const Tensor& sines, int head_size) {
  expect_rank(cosines, 2);
  const int64_t pairs = cosines.shape[1];
  if (pairs < 1 || 2 * pairs > head_size) {
    refuse(*cosines.schema, cosines.name, text(cosines.shape),
           "[max_len, rotary_size / 2] with 1 to " + std::to_string(head_size / 2) + " columns (head_size / 2)");
  }
  expect_shape(sines, cosines.shape);
}

}  // namespace

HeadChangeAttributes read_head_change_attributes(const ort::Api& api, const ort::KernelInfo* info, const OpSchema& schema) {
  const float epsilon = read_float(api, info, "qk_norm_epsilon", 1e-6f);
  if (!(epsilon >= 0.0f && epsilon <= 1.0f)) refuse_attribute(schema, "qk_norm_epsilon", std::to_string(epsilon), "0 to 1");
  const bool rotary = read_flag(api, info, schema, "do_rotary");
  const bool interleaved = read_flag(api, info, schema, "rotary_interleaved");
  if (interleaved && !rotary) refuse_attribute(schema, "rotary_interleaved", "1", "0 (do_rotary is 0)");
  return {rotary, interleaved, epsilon};
}

void read_head_changes(const HeadChangeAttributes& attributes, const HeadChangeTensors& tensors, AttentionProblem& problem) {
  HeadChange change{};
  expect_pair(tensors.cosines, tensors.sines);
  if (tensors.cosines.present() != attributes.rotary) {
    refuse(*tensors.cosines.schema, tensors.cosines.name, attributes.rotary ? "nothing" : text(tensors.cosines.shape),
           attributes.rotary ? "cos_cache and sin_cache (do_rotary is 1)" : "nothing (do_rotary is 0)");
  }
  if (attributes.rotary) {
    expect_angles(tensors.cosines, tensors.sines, problem.head_size);
    change.cosines = static_cast<const float*>(tensors.cosines.data);
    change.sines = static_cast<const float*>(tensors.sines.data);
    change.rotary_size = static_cast<int>(2 * tensors.cosines.shape[1]);
    change.interleaved = attributes.rotary_interleaved;
  }
  change.norm_epsilon = attributes.norm_epsilon;
  problem.query_change = problem.key_change = change;
  expect_pair(tensors.query_norm, tensors.key_norm);
  if (!tensors.query_norm.present()) return;
  expect_shape(tensors.query_norm, {problem.head_size});
  expect_shape(tensors.key_norm, {problem.head_size});
  problem.query_change.norm_weight = static_cast<const float*>(tensors.query_norm.data);
  problem.key_change.norm_weight = static_cast<const float*>(tensors.key_norm.data);
}

void check_angles(const HeadChangeTensors& tensors, const AttentionProblem& problem) {
  if (!tensors.cosines.present()) return;
  for (int64_t s = 0; s < problem.num_seqs; ++s) {
    const int64_t tokens = problem.cumulative_sequence_length[s + 1] - problem.cumulative_sequence_length[s];
    const int64_t length = problem.past_seqlens[s] + tokens;
    if (tokens > 0 && length > tensors.cosines.shape[0]) {
      refuse(*tensors.cosines.schema, tensors.cosines.name, text(tensors.cosines.shape),
             "at least " + std::to_string(length) + " rows, for the tokens of sequence " + std::to_string(s));
    }
  }
}

}  // namespace fastserve
