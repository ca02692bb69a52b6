// The exported functions of libfastserve_ops.so.
#include "gated_activation_op.h"
#include "isa/kernels.h"
#include "isa/quantized_kernels.h"
#include "ort_call.h"
#include "packed_attention_op.h"
#include "paged_attention_op.h"
#include "prepacked_gather_op.h"
#include "prepacked_matmul_op.h"
#include "quantized_gather_op.h"
#include "quantized_matmul_op.h"
#include "row_norm_op.h"
#include "sampling.h"
#include "segment_mean_op.h"

#define FASTSERVE_EXPORT extern "C" __attribute__((visibility("default")))

// What SessionOptions.register_custom_ops_library calls. The domain lives as long as the process, as sessions may.
FASTSERVE_EXPORT fastserve::ort::Status* RegisterCustomOps(fastserve::ort::SessionOptions* options,
                                                           const fastserve::ort::ApiBase* base) {
  using namespace fastserve;
  const ort::Api* api = base->GetApi(ort::kApiVersion);
  if (api == nullptr) {  // older than the table this library knows; version 1 is enough to say so
    return base->GetApi(1)->CreateStatus(ort::kFail, "fastserve needs ONNX Runtime 1.21 or newer");
  }
  return guarded(*api, "fastserve: RegisterCustomOps", [&] {
    static ort::CustomOpDomain* const domain = [api] {
      ort::CustomOpDomain* created = nullptr;
      check(api->CreateCustomOpDomain("fastserve", &created));
      for (const ort::CustomOp* op : {&paged_attention_op(), &packed_attention_op(), &quantized_matmul_op(), &segment_mean_op(),
                                   &row_norm_op(), &gated_activation_op(), &quantized_gather_op(), &prepacked_matmul_op(),
                                   &prepacked_gather_op()})
        check(api->CustomOpDomain_Add(created, op));
      return created;
    }();
    check(api->AddCustomOpDomain(options, domain));
  });
}

// The instruction set attention kernels created now would use: "avx512", "avx2" or "generic". Static storage.
FASTSERVE_EXPORT const char* fastserve_isa() { return fastserve::choose_kernels().name; }

// That of QuantizedMatMul: "amx", "avx512vnni", "avx512", "avxvnni", "avx2" or "generic". Static storage.
FASTSERVE_EXPORT const char* fastserve_quantized_isa() { return fastserve::choose_quantized_kernels().name; }

// Choosing tokens (see sampling.h). logits: [num_rows, vocab_size]; tokens: [num_rows].
FASTSERVE_EXPORT void fastserve_largest_tokens(const float* logits, int64_t num_rows, int64_t vocab_size, int64_t* tokens) noexcept {
  for (int64_t row = 0; row < num_rows; ++row) tokens[row] = fastserve::largest_token(logits + row * vocab_size, vocab_size);
}

FASTSERVE_EXPORT double fastserve_log_sum_exp(const float* row, int64_t vocab_size) noexcept {
  return fastserve::log_sum_exp(row, vocab_size);
}

FASTSERVE_EXPORT int64_t fastserve_draw_token(const float* row, int64_t vocab_size, float temperature, int64_t top_k, double top_p,
                                              double min_p, double number) noexcept {
  return fastserve::draw_token(row, vocab_size, {temperature, top_k, top_p, min_p, number});
}
