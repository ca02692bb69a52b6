// What a norm reads of its node, for the op that is one and for those that begin with one.
#pragma once

#include "op_inputs.h"
#include "op_schema.h"
#include "ort_abi.h"
#include "row_problems.h"

namespace fastserve {

// Attributes: epsilon, centred. Inputs of the op, one after the other from `first_input` on: weight [n], bias [n] and skip of x's
// shape, the last two optional; and its output 1, the sum x + skip, if there is a skip.
class NormInputs {
 public:
  NormInputs(const ort::Api& api, const ort::KernelInfo* info, const OpSchema& schema, size_t first_input);

  // Everything but the output. x [.., n]. Makes output 1 where the node has one. Throws InvalidInput naming an input.
  NormProblem read(ort::KernelContext* context, const Tensor& x) const;

 private:
  const ort::Api& api_;
  const OpSchema& schema_;
  const size_t first_input_;
  const float epsilon_;
  const bool centred_;
};

}  // namespace fastserve
