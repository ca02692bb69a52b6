// fastserve::PrepackedMatMul, version 1: the schema and its kernel. See prepacked_matmul_op.cpp for the contract.
#pragma once

#include "ort_abi.h"

namespace fastserve {

const ort::CustomOp& prepacked_matmul_op();

}  // namespace fastserve
