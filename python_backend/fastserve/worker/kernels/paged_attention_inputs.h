// Reading and checking the inputs of one PagedAttention call.
#pragma once

#include <vector>

#include "attention_attributes.h"
#include "attention_problem.h"
#include "head_changes.h"
#include "op_schema.h"
#include "ort_abi.h"

namespace fastserve {

extern const OpSchema kPagedAttentionSchema;

// The attributes of a PagedAttention node, checked when the kernel is created.
struct PagedAttentionAttributes {
  AttentionAttributes attention;
  HeadChangeAttributes head_change;
  float softcap;  // 0: off
};

struct PagedAttentionCall {
  AttentionProblem problem;
  ort::ElementType cache_type;     // kFloat, kFloat16 or kInt8
  std::vector<int32_t> slots;      // backs problem.slots when slot_mapping is absent
  std::vector<int32_t> positions;  // backs problem.positions
};

// Fills everything but problem.output. Throws InvalidInput naming the input and what is allowed. After it returns, every
// block a query can see and every slot written lie inside the caches: the kernels need no checks of their own.
void read_inputs(const ort::Api& api, const ort::KernelContext* context, const PagedAttentionAttributes& attributes,
                 PagedAttentionCall& call);

}  // namespace fastserve
