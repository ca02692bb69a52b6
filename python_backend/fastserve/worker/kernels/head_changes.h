// What a PagedAttention node does to queries and keys before they attend: its attributes and tensors, read and checked.
#pragma once

#include "attention_problem.h"
#include "op_inputs.h"
#include "ort_abi.h"

namespace fastserve {

struct HeadChangeAttributes {
  bool rotary;
  bool rotary_interleaved;
  float norm_epsilon;
};

struct HeadChangeTensors {
  Tensor cosines;  // [max_len, rotary_size / 2] by position: where rotary, and only there
  Tensor sines;
  Tensor query_norm;  // [head_size]: both or neither
  Tensor key_norm;
};

// Throws InvalidInput naming the attribute and what is allowed.
HeadChangeAttributes read_head_change_attributes(const ort::Api& api, const ort::KernelInfo* info, const OpSchema& schema);

// Fills query_change and key_change of a problem whose head_size is known. Throws InvalidInput naming the input.
void read_head_changes(const HeadChangeAttributes& attributes, const HeadChangeTensors& tensors, AttentionProblem& problem);

// Every new token has a row of angles. Contract: sequences and positions of the problem are checked.
void check_angles(const HeadChangeTensors& tensors, const AttentionProblem& problem);

}  // namespace fastserve
