// fastserve::GatedActivation, version 1: the schema and its kernel. See gated_activation_op.cpp for the contract.
#pragma once

#include "ort_abi.h"

namespace fastserve {

const ort::CustomOp& gated_activation_op();

}  // namespace fastserve
