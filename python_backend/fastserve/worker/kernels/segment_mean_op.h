// fastserve::SegmentMean, version 1: the schema and its kernel. See segment_mean_op.cpp for the contract.
#pragma once

#include "ort_abi.h"

namespace fastserve {

const ort::CustomOp& segment_mean_op();

}  // namespace fastserve
