// fastserve::QuantizedGather, version 1: the schema and its kernel. See quantized_gather_op.cpp for the contract.
#pragma once

#include "ort_abi.h"

namespace fastserve {

const ort::CustomOp& quantized_gather_op();

}  // namespace fastserve
