// What the passes over logits share with who calls them: plain data, for the reason that attention_problem.h gives.
#pragma once

#include <cstdint>

namespace fastserve {

constexpr int kSampleBlock = 256;  // tokens whose weights are summed, and whose largest logit is known, on their own

struct SampleScale {
  float temperature;
  float lowest;    // after temperature; what is below is left out
  double largest;  // after temperature
};

}  // namespace fastserve
