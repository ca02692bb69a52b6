// fastserve::PackedAttention, version 1: the schema and its kernel. See packed_attention_op.cpp for the contract.
#pragma once

#include "ort_abi.h"

namespace fastserve {

const ort::CustomOp& packed_attention_op();

}  // namespace fastserve
