#include "norm_inputs.h"

namespace fastserve {

NormInputs::NormInputs(const ort::Api& api, const ort::KernelInfo* info, const OpSchema& schema, size_t first_input)
    : api_(api),
      schema_(schema),
      first_input_(first_input),
      epsilon_(read_float(api, info, "epsilon", 1e-5f)),
      centred_(read_int(api, info, "centred", 0) != 0) {}

NormProblem NormInputs::read(ort::KernelContext* context, const Tensor& x) const {
  const auto read = [&](size_t index) { return read_input(api_, context, schema_, first_input_ + index); };
  NormProblem problem{};
  problem.n = x.shape.back();
  problem.rows = 1;
  for (size_t i = 0; i + 1 < x.shape.size(); ++i) problem.rows *= x.shape[i];
  const Tensor weight = read(0);
  expect_shape(weight, {problem.n});
  const Tensor bias = read(1);
  if (bias.present()) expect_shape(bias, {problem.n});
  const Tensor skip = read(2);
  if (skip.present()) expect_shape(skip, x.shape);
  problem.x = static_cast<const float*>(x.data);
  problem.skip = static_cast<const float*>(skip.data);
  problem.weight = static_cast<const float*>(weight.data);
  problem.bias = static_cast<const float*>(bias.data);
  problem.sum = skip.present() ? make_optional_output(api_, context, x.shape, 1) : nullptr;
  problem.epsilon = epsilon_;
  problem.centred = centred_;
  return problem;
}

}  // namespace fastserve
