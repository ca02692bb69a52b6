// What all attention ops of this library share: attributes, and the size of a head.
#pragma once

#include <string>

#include "op_inputs.h"
#include "ort_abi.h"

namespace fastserve {

struct AttentionAttributes {
  int num_heads;
  int kv_num_heads;           // divides num_heads
  float scale;                // 0: 1 / sqrt(head_size)
  int64_t local_window_size;  // -1: off
};

// Throws InvalidInput naming the attribute and what is allowed.
AttentionAttributes read_attention_attributes(const ort::Api& api, const ort::KernelInfo* info, const OpSchema& schema,
                                              int64_t smallest_window);

[[noreturn]] void refuse_attribute(const OpSchema& schema, const char* name, const std::string& got, const std::string& allowed);

// The size of one of `heads` heads that lie side by side in a row of `query`, [num_tokens, heads * head_size]; `heads_name`
// says in an error what their number is. A multiple of 8 up to kMaxHeadSize.
int head_size_of(const Tensor& query, int64_t heads, const char* heads_name);

// Where queries, keys and values of a packed batch lie.
struct Projections {
  const float* query;  // [num_tokens] rows, query_stride floats apart
  const float* key;    // [num_tokens] rows, key_stride floats apart
  const float* value;  // as key
  int64_t num_tokens;
  int64_t query_stride;
  int64_t key_stride;
  int head_size;
};

// From query [num_tokens, num_heads * head_size], key and value [num_tokens, kv_num_heads * head_size]; or, with key and value
// absent, from a query that holds the three side by side. Throws InvalidInput naming the input and what is allowed.
Projections locate_projections(const Tensor& query, const Tensor& key, const Tensor& value, const AttentionAttributes& attributes);

// The factor of every score.
float score_scale(const AttentionAttributes& attributes, int head_size);

}  // namespace fastserve
