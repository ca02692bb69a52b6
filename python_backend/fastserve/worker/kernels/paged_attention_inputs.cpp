#include "paged_attention_inputs.h"

#include <algorithm>
#include <cmath>
#include <limits>
#include <string>

#include "ort_call.h"

namespace fastserve {
namespace {

// The order of com.microsoft::PagedAttention; 8 and 9 (cos_cache, sin_cache) are never read.
enum Input : size_t {
  kQuery,
  kKey,
  kValue,
  kKeyCache,
  kValueCache,
  kCumulativeSequenceLength,
  kPastSeqlens,
  kBlockTable,
  kSlotMapping = 10,
  kHeadSink = 11
};
constexpr const char* kInputNames[] = {
    "query",        "key",         "value",     "key_cache", "value_cache",  "cumulative_sequence_length",
    "past_seqlens", "block_table", "cos_cache", "sin_cache", "slot_mapping", "head_sink"};

struct Tensor {
  void* data = nullptr;  // null: the optional input is absent
  ort::ElementType type = ort::kUndefined;
  std::vector<int64_t> shape;
};

std::string text(const std::vector<int64_t>& shape) {
  std::string result = "[";
  for (const int64_t size : shape) result += (result.size() > 1 ? ", " : "") + std::to_string(size);
  return result + "]";
}

[[noreturn]] void refuse(const std::string& what, const std::string& got, const std::string& allowed) {
  throw InvalidInput("fastserve::PagedAttention: " + what + ": got " + got + ", allowed: " + allowed);
}

Tensor read(const ort::Api& api, const ort::KernelContext* context, Input index) {
  Tensor tensor;
  size_t count = 0;
  check(api.KernelContext_GetInputCount(context, &count));
  if (index >= count) return tensor;
  const ort::Value* value = nullptr;
  check(api.KernelContext_GetInput(context, index, &value));
  if (value == nullptr) return tensor;
  ort::TensorInfo* info = nullptr;
  check(api.GetTensorTypeAndShape(value, &info));
  size_t rank = 0;
  ort::Status* status = api.GetTensorElementType(info, &tensor.type);
  if (status == nullptr) status = api.GetDimensionsCount(info, &rank);
  tensor.shape.resize(rank);
  if (status == nullptr) status = api.GetDimensions(info, tensor.shape.data(), rank);
  api.ReleaseTensorTypeAndShapeInfo(info);
  check(status);
  // Const in ONNX Runtime's eyes; the caches are ours to write by contract (see paged_attention_op.cpp).
  check(api.GetTensorMutableData(const_cast<ort::Value*>(value), &tensor.data));
  return tensor;
}

void expect_shape(const Tensor& tensor, Input index, const std::vector<int64_t>& shape) {
  if (tensor.shape != shape) refuse(kInputNames[index], text(tensor.shape), text(shape));
}

void expect_rank(const Tensor& tensor, Input index, size_t rank) {
  if (tensor.shape.size() != rank) refuse(kInputNames[index], text(tensor.shape), std::to_string(rank) + " dimensions");
}

int head_size_of(const Tensor& query, int num_heads) {
  const int64_t hidden = query.shape[1];
  const int64_t size = hidden / num_heads;
  if (hidden % num_heads != 0 || size % 8 != 0 || size < 8 || size > kMaxHeadSize) {
    refuse("query", text(query.shape),
           "num_heads (" + std::to_string(num_heads) + ") heads of a size that is a multiple of 8 from 8 to " +
               std::to_string(kMaxHeadSize));
  }
  return static_cast<int>(size);
}

void read_caches(const ort::Api& api, const ort::KernelContext* context, PagedAttentionCall& call) {
  AttentionProblem& problem = call.problem;
  const Tensor key_cache = read(api, context, kKeyCache);
  const Tensor value_cache = read(api, context, kValueCache);
  if (key_cache.type != value_cache.type || (key_cache.type != ort::kFloat && key_cache.type != ort::kFloat16)) {
    refuse("key_cache, value_cache", "element types " + std::to_string(key_cache.type) + ", " + std::to_string(value_cache.type),
           "both float (1) or both float16 (10)");
  }
  expect_rank(key_cache, kKeyCache, 4);
  const int64_t blocks = key_cache.shape[0];
  const int64_t block_size = key_cache.shape[3];
  if (block_size < kStrip || block_size % kStrip != 0)
    refuse("key_cache", text(key_cache.shape), "a block size that is a multiple of 16");
  expect_shape(key_cache, kKeyCache, {blocks, problem.kv_num_heads, problem.head_size, block_size});
  expect_shape(value_cache, kValueCache, {blocks, problem.kv_num_heads, block_size, problem.head_size});
  if (blocks > std::numeric_limits<int32_t>::max() / block_size)
    refuse("key_cache", text(key_cache.shape), "fewer than 2^31 slots");
  call.half_cache = key_cache.type == ort::kFloat16;
  problem.key_cache = key_cache.data;
  problem.value_cache = value_cache.data;
  problem.num_blocks = blocks;
  problem.block_size = static_cast<int>(block_size);
}

void check_lengths(const AttentionProblem& problem) {
  const int32_t* ends = problem.cumulative_sequence_length;
  for (int64_t s = 0; s < problem.num_seqs; ++s) {
    if (ends[s + 1] < ends[s]) {
      refuse("cumulative_sequence_length[" + std::to_string(s + 1) + "]", std::to_string(ends[s + 1]),
             "at least " + std::to_string(ends[s]));
    }
    if (problem.past_seqlens[s] < 0)
      refuse("past_seqlens[" + std::to_string(s) + "]", std::to_string(problem.past_seqlens[s]), "0 or more");
  }
  if (ends[0] != 0) refuse("cumulative_sequence_length[0]", std::to_string(ends[0]), "0");
  if (ends[problem.num_seqs] != problem.num_tokens) {
    refuse("cumulative_sequence_length's last entry", std::to_string(ends[problem.num_seqs]),
           std::to_string(problem.num_tokens) + " (num_tokens)");
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

// Where the block table puts every new token. Contract: check_blocks passed.
std::vector<int32_t> slots_from_blocks(const AttentionProblem& problem) {
  std::vector<int32_t> slots(static_cast<size_t>(problem.num_tokens));
  for (int64_t s = 0; s < problem.num_seqs; ++s) {
    int64_t position = problem.past_seqlens[s];
    for (int32_t t = problem.cumulative_sequence_length[s]; t < problem.cumulative_sequence_length[s + 1]; ++t, ++position) {
      const int32_t block = problem.block_table[s * problem.max_blocks + position / problem.block_size];
      slots[static_cast<size_t>(t)] = static_cast<int32_t>(block * problem.block_size + position % problem.block_size);
    }
  }
  return slots;
}

void read_sequences(const ort::Api& api, const ort::KernelContext* context, PagedAttentionCall& call) {
  AttentionProblem& problem = call.problem;
  const Tensor ends = read(api, context, kCumulativeSequenceLength);
  expect_rank(ends, kCumulativeSequenceLength, 1);
  if (ends.shape[0] < 1) refuse("cumulative_sequence_length", text(ends.shape), "[num_seqs + 1]");
  problem.num_seqs = ends.shape[0] - 1;
  problem.cumulative_sequence_length = static_cast<const int32_t*>(ends.data);
  const Tensor past = read(api, context, kPastSeqlens);
  expect_shape(past, kPastSeqlens, {problem.num_seqs});
  problem.past_seqlens = static_cast<const int32_t*>(past.data);
  const Tensor blocks = read(api, context, kBlockTable);
  expect_rank(blocks, kBlockTable, 2);
  problem.max_blocks = blocks.shape[1];
  expect_shape(blocks, kBlockTable, {problem.num_seqs, problem.max_blocks});
  problem.block_table = static_cast<const int32_t*>(blocks.data);
  check_lengths(problem);
  check_blocks(problem);
  const Tensor slots = read(api, context, kSlotMapping);
  if (slots.data == nullptr && slots.type == ort::kUndefined) {
    call.slots = slots_from_blocks(problem);
    problem.slots = call.slots.data();
    return;
  }
  expect_shape(slots, kSlotMapping, {problem.num_tokens});
  problem.slots = static_cast<const int32_t*>(slots.data);
  check_slots(problem);
}

}  // namespace

void read_inputs(const ort::Api& api, const ort::KernelContext* context, const PagedAttentionAttributes& attributes,
                 PagedAttentionCall& call) {
  AttentionProblem& problem = call.problem;
  problem.num_heads = attributes.num_heads;
  problem.kv_num_heads = attributes.kv_num_heads;
  problem.softcap = attributes.softcap;
  problem.window = attributes.local_window_size < 0 ? std::numeric_limits<int64_t>::max() / 2 : attributes.local_window_size;
  const Tensor query = read(api, context, kQuery);
  expect_rank(query, kQuery, 2);
  problem.num_tokens = query.shape[0];
  problem.head_size = head_size_of(query, attributes.num_heads);
  problem.scale =
      attributes.scale != 0.0f ? attributes.scale : static_cast<float>(1.0 / std::sqrt(static_cast<double>(problem.head_size)));
  problem.query = static_cast<const float*>(query.data);
  const std::vector<int64_t> packed = {problem.num_tokens, static_cast<int64_t>(attributes.kv_num_heads) * problem.head_size};
  const Tensor key = read(api, context, kKey);
  expect_shape(key, kKey, packed);
  problem.key = static_cast<const float*>(key.data);
  const Tensor value = read(api, context, kValue);
  expect_shape(value, kValue, packed);
  problem.value = static_cast<const float*>(value.data);
  read_caches(api, context, call);
  read_sequences(api, context, call);
  const Tensor sink = read(api, context, kHeadSink);
  if (sink.type != ort::kUndefined) expect_shape(sink, kHeadSink, {attributes.num_heads});
  problem.head_sink = static_cast<const float*>(sink.data);
}

}  // namespace fastserve
