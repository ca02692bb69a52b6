// fastserve::RowNorm, version 1: the schema and its kernel. See row_norm_op.cpp for the contract.
#pragma once

#include "ort_abi.h"

namespace fastserve {

const ort::CustomOp& row_norm_op();

}  // namespace fastserve
