// fastserve::QuantizedMatMul, version 1: the schema and its kernel. See quantized_matmul_op.cpp for the contract.
#pragma once

#include "ort_abi.h"

namespace fastserve {

const ort::CustomOp& quantized_matmul_op();

}  // namespace fastserve
