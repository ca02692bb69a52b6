#include "paged_attention_inputs.h"

#include <algorithm>
#include <iterator>
#include <limits>
#include <numeric>
#include <string>

#include "op_inputs.h"

namespace fastserve {
namespace {

// The order of com.microsoft::PagedAttention.
enum Input : size_t {
  kQuery,
  kKey,
  kValue,
  kKeyCache,
  kValueCache,
  kCumulativeSequenceLength,
  kPastSeqlens,
  kBlockTable,
  kCosCache,
  kSinCache,
  kSlotMapping,
  kHeadSink,
  kQueryNorm,
  kKeyNorm
};
constexpr OpInput kInputs[] = {{"query", ort::kFloat, ort::kRequired},
                               {"key", ort::kFloat, ort::kOptional},
                               {"value", ort::kFloat, ort::kOptional},
                               {"key_cache", ort::kUndefined, ort::kRequired},  // float, float16 or int8, both caches alike
                               {"value_cache", ort::kUndefined, ort::kRequired},
                               {"cumulative_sequence_length", ort::kInt32, ort::kRequired},
                               {"past_seqlens", ort::kInt32, ort::kRequired},
                               {"block_table", ort::kInt32, ort::kRequired},
                               {"cos_cache", ort::kFloat, ort::kOptional},
                               {"sin_cache", ort::kFloat, ort::kOptional},
                               {"slot_mapping", ort::kInt32, ort::kOptional},
                               {"head_sink", ort::kFloat, ort::kOptional},
                               {"q_norm_weight", ort::kFloat, ort::kOptional},
                               {"k_norm_weight", ort::kFloat, ort::kOptional}};

[[noreturn]] void refuse(const std::string& what, const std::string& got, const std::string& allowed) {
  refuse(kPagedAttentionSchema, what, got, allowed);
}

Tensor read(const ort::Api& api, const ort::KernelContext* context, Input index) {
  return read_input(api, context, kPagedAttentionSchema, index);
}

void read_caches(const ort::Api& api, const ort::KernelContext* context, PagedAttentionCall& call) {
  AttentionProblem& problem = call.problem;
  const Tensor key_cache = read(api, context, kKeyCache);
  const Tensor value_cache = read(api, context, kValueCache);
  const ort::ElementType type = key_cache.type;
  if (type != value_cache.type || (type != ort::kFloat && type != ort::kFloat16 && type != ort::kInt8)) {
    refuse("key_cache, value_cache", "element types " + std::to_string(type) + ", " + std::to_string(value_cache.type),
           "both float (1), both float16 (10) or both int8 (3)");
  }
  const int elements = problem.head_size + (type == ort::kInt8 ? kScaleBytes : 0);  // of a token and head
  expect_rank(key_cache, type == ort::kInt8 ? 3 : 4);
  const int64_t blocks = key_cache.shape[0];
  const int64_t block_size = type == ort::kInt8 ? key_cache.shape[2] / elements : key_cache.shape[3];
  if (block_size < kStrip || block_size % kStrip != 0)
    refuse("key_cache", text(key_cache.shape), "a block size that is a multiple of 16");
  if (type == ort::kInt8) {
    expect_shape(key_cache, {blocks, problem.kv_num_heads, elements * block_size});
    expect_shape(value_cache, key_cache.shape);
  } else {
    expect_shape(key_cache, {blocks, problem.kv_num_heads, problem.head_size, block_size});
    expect_shape(value_cache, {blocks, problem.kv_num_heads, block_size, problem.head_size});
  }
  if (blocks > std::numeric_limits<int32_t>::max() / block_size)
    refuse("key_cache", text(key_cache.shape), "fewer than 2^31 slots");
  call.cache_type = type;
  problem.key_cache = key_cache.data;
  problem.value_cache = value_cache.data;
  problem.num_blocks = blocks;
  problem.block_size = static_cast<int>(block_size);
  problem.block_elements = elements * block_size;
}

void check_past(const AttentionProblem& problem) {
  for (int64_t s = 0; s < problem.num_seqs; ++s) {
    if (problem.past_seqlens[s] < 0)
      refuse("past_seqlens[" + std::to_string(s) + "]", std::to_string(problem.past_seqlens[s]), "0 or more");
  }
}

// Every block that holds a position some new query sees. Blocks before the window may be unmapped (-1).
void check_blocks(const AttentionProblem& problem) {
  for (int64_t s = 0; s < problem.num_seqs; ++s) {
    const int64_t past = problem.past_seqlens[s];
    const int64_t tokens = problem.cumulative_sequence_length[s + 1] - problem.cumulative_sequence_length[s];
    if (tokens == 0) continue;
    const int64_t last = (past + tokens - 1) / problem.block_size;
    if (last >= problem.max_blocks) {
      refuse("block_table", std::to_string(problem.max_blocks) + " blocks a sequence",
             "at least " + std::to_string(last + 1) + ", for the " + std::to_string(past + tokens) + " tokens of sequence " +
                 std::to_string(s));
    }
    for (int64_t b = std::max<int64_t>(0, past - problem.window + 1) / problem.block_size; b <= last; ++b) {
      const int32_t block = problem.block_table[s * problem.max_blocks + b];
      if (block < 0 || block >= problem.num_blocks) {
        refuse("block_table[" + std::to_string(s) + "][" + std::to_string(b) + "]", std::to_string(block),
               "0 to " + std::to_string(problem.num_blocks - 1));
      }
    }
  }
}

void check_slots(const AttentionProblem& problem) {
  const int64_t slots = problem.num_blocks * problem.block_size;
  for (int64_t t = 0; t < problem.num_tokens; ++t) {
    if (problem.slots[t] < -1 || problem.slots[t] >= slots) {
      refuse("slot_mapping[" + std::to_string(t) + "]", std::to_string(problem.slots[t]),
             "-1 (do not write) or a slot from 0 to " + std::to_string(slots - 1));
    }
  }
}

// Every new token's position in its sequence.
std::vector<int32_t> positions_of(const AttentionProblem& problem) {
  std::vector<int32_t> positions(static_cast<size_t>(problem.num_tokens));
  for (int64_t s = 0; s < problem.num_seqs; ++s) {
    const auto begin = positions.begin() + problem.cumulative_sequence_length[s];
    std::iota(begin, positions.begin() + problem.cumulative_sequence_length[s + 1], problem.past_seqlens[s]);
  }
  return positions;
}

// Where the block table puts every new token. Contract: check_blocks passed.
std::vector<int32_t> slots_from_blocks(const AttentionProblem& problem) {
  std::vector<int32_t> slots(static_cast<size_t>(problem.num_tokens));
  for (int64_t s = 0; s < problem.num_seqs; ++s) {
    for (int32_t t = problem.cumulative_sequence_length[s]; t < problem.cumulative_sequence_length[s + 1]; ++t) {
      const int32_t position = problem.positions[t];
      const int32_t block = problem.block_table[s * problem.max_blocks + position / problem.block_size];
      slots[static_cast<size_t>(t)] = static_cast<int32_t>(block * problem.block_size + position % problem.block_size);
    }
  }
  return slots;
}

void read_sequences(const ort::Api& api, const ort::KernelContext* context, PagedAttentionCall& call) {
  AttentionProblem& problem = call.problem;
  const SequenceEnds ends = read_sequence_ends(read(api, context, kCumulativeSequenceLength), problem.num_tokens);
  problem.num_seqs = ends.num_seqs;
  problem.cumulative_sequence_length = ends.entries;
  const Tensor past = read(api, context, kPastSeqlens);
  expect_shape(past, {problem.num_seqs});
  problem.past_seqlens = static_cast<const int32_t*>(past.data);
  const Tensor blocks = read(api, context, kBlockTable);
  expect_rank(blocks, 2);
  problem.max_blocks = blocks.shape[1];
  expect_shape(blocks, {problem.num_seqs, problem.max_blocks});
  problem.block_table = static_cast<const int32_t*>(blocks.data);
  check_past(problem);
  check_blocks(problem);
  call.positions = positions_of(problem);
  problem.positions = call.positions.data();
  const Tensor slots = read(api, context, kSlotMapping);
  if (!slots.present()) {
    call.slots = slots_from_blocks(problem);
    problem.slots = call.slots.data();
    return;
  }
  expect_shape(slots, {problem.num_tokens});
  problem.slots = static_cast<const int32_t*>(slots.data);
  check_slots(problem);
}

}  // namespace

const OpSchema kPagedAttentionSchema = {"PagedAttention", "fastserve::PagedAttention", kInputs, std::size(kInputs)};

void read_inputs(const ort::Api& api, const ort::KernelContext* context, const PagedAttentionAttributes& attributes,
                 PagedAttentionCall& call) {
  AttentionProblem& problem = call.problem;
  const AttentionAttributes& attention = attributes.attention;
  problem.num_heads = attention.num_heads;
  problem.kv_num_heads = attention.kv_num_heads;
  problem.softcap = attributes.softcap;
  problem.window = attention.local_window_size < 0 ? std::numeric_limits<int64_t>::max() / 2 : attention.local_window_size;
  const Projections projections =
      locate_projections(read(api, context, kQuery), read(api, context, kKey), read(api, context, kValue), attention);
  problem.num_tokens = projections.num_tokens;
  problem.head_size = projections.head_size;
  problem.scale = score_scale(attention, problem.head_size);
  problem.partial_stride = (problem.head_size + kStrip - 1) / kStrip * kStrip + kStrip;
  problem.query = projections.query;
  problem.key = projections.key;
  problem.value = projections.value;
  problem.query_stride = projections.query_stride;
  problem.key_stride = projections.key_stride;
  const HeadChangeTensors changes{read(api, context, kCosCache), read(api, context, kSinCache), read(api, context, kQueryNorm),
                                  read(api, context, kKeyNorm)};
  read_head_changes(attributes.head_change, changes, problem);
  read_caches(api, context, call);
  read_sequences(api, context, call);
  check_angles(changes, problem);
  const Tensor sink = read(api, context, kHeadSink);
  if (sink.present()) expect_shape(sink, {attention.num_heads});
  problem.head_sink = static_cast<const float*>(sink.data);
}

}  // namespace fastserve
