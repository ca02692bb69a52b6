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

// The factor of every score.
float score_scale(const AttentionAttributes& attributes, int head_size);

}  // namespace fastserve
