// What one call of PackedAttention has to do, as plain data shared by the op (which validates it) and the kernels.
//
// Only plain data may live here, for the reason that attention_problem.h gives.
#pragma once

#include <cstddef>
#include <cstdint>

namespace fastserve {

// Rows of tokens, already validated. Query, key and value may be columns of one tensor: hence a stride for each.
struct PackedProblem {
  const float* query;    // [num_tokens] rows of num_heads * head_size floats, query_stride apart
  const float* key;      // [num_tokens] rows of kv_num_heads * head_size floats, key_stride apart
  const float* value;    // as key
  float* output;         // [num_tokens, num_heads * head_size]
  int64_t query_stride;  // floats
  int64_t key_stride;    // of keys and of values
  int64_t window;        // a query at p sees positions p - window to p + window; INT64_MAX / 4 when there is none
  int num_heads;
  int kv_num_heads;
  int head_size;
  float scale;
};

// The attention of one head for consecutive queries of one sequence.
struct PackedItem {
  int32_t first_token;  // of the sequence, as a row of the tensors
  int32_t length;       // of the sequence
  int32_t head;         // query head
  int32_t first_query;  // index in the sequence
  int32_t num_queries;  // at most kMaxRows
};

}  // namespace fastserve
