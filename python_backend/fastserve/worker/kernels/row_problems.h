// What one call of RowNorm or GatedActivation has to do, as plain data shared by the ops (which validate it) and the kernels.
//
// Only plain data and constants may live here: this header is compiled into translation units with different
// instruction sets, where an inline function could be emitted with the wrong one (the one-definition-rule trap).
#pragma once

#include <cstdint>

namespace fastserve {

// Row-major [rows, n] tensors, already validated.
struct NormProblem {
  const float* x;
  const float* skip;    // or null; added to x first
  const float* weight;  // [n]
  const float* bias;    // [n] or null
  float* output;
  float* sum;  // x + skip, or null
  int64_t rows;
  int64_t n;
  float epsilon;
  bool centred;  // LayerNorm (Ba et al., 2016), else RMSNorm (Zhang & Sennrich, 2019)
};

enum Gate { kSilu, kGeluTanh };

struct GateProblem {
  const float* x;  // [rows, 2 * n]: of each row n gates, then n values
  float* output;   // [rows, n]
  int64_t rows;
  int64_t n;
  Gate gate;
};

}  // namespace fastserve
