// Choosing tokens from rows of logits. Results depend on the row, the parameters and the number alone: not on other rows, on
// threads or on the instruction set.
#pragma once

#include <cstdint>

namespace fastserve {

struct DrawParameters {
  float temperature;  // above 0
  int64_t top_k;      // 0: off
  double top_p;       // 1: off
  double min_p;       // 0: off
  double number;      // uniform in [0, 1)
};

// The id of the row's largest logit, the first of equals; -1 when the largest is not finite or a logit is NaN.
int64_t largest_token(const float* row, int64_t vocab_size);

// The natural logarithm of the sum of e^logit, in double.
double log_sum_exp(const float* row, int64_t vocab_size);

// The token at quantile `number` of the softmax of row / temperature, in id order, after top-k, top-p (Holtzman et al., 2020)
// and min-p, in this order; -infinity excludes a token. -1 when no token is left or a logit is not a number.
int64_t draw_token(const float* row, int64_t vocab_size, const DrawParameters& parameters);

}  // namespace fastserve
