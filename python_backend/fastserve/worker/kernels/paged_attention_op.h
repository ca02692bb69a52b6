// fastserve::PagedAttention, version 1: the schema and its kernel. See paged_attention_op.cpp for the contract.
#pragma once

#include "ort_abi.h"

namespace fastserve {

const ort::CustomOp& paged_attention_op();

}  // namespace fastserve
