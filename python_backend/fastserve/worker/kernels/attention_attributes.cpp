#include "attention_attributes.h"

#include <cmath>

#include "attention_problem.h"

namespace fastserve {

void refuse_attribute(const OpSchema& schema, const char* name, const std::string& got, const std::string& allowed) {
  refuse(schema, std::string("attribute ") + name, got, allowed);
}

AttentionAttributes read_attention_attributes(const ort::Api& api, const ort::KernelInfo* info, const OpSchema& schema,
                                              int64_t smallest_window) {
  const int64_t num_heads = read_int(api, info, "num_heads", 0);
  const int64_t kv_num_heads = read_int(api, info, "kv_num_heads", 0);
  if (num_heads < 1 || num_heads > 65536) refuse_attribute(schema, "num_heads", std::to_string(num_heads), "1 to 65536");
  if (kv_num_heads < 1 || num_heads % kv_num_heads != 0) {
    refuse_attribute(schema, "kv_num_heads", std::to_string(kv_num_heads),
                     "a divisor of num_heads (" + std::to_string(num_heads) + ")");
  }
  const float scale = read_float(api, info, "scale", 0.0f);
  if (!(scale >= 0.0f && scale <= 1e30f))
    refuse_attribute(schema, "scale", std::to_string(scale), "0 (1 / sqrt(head_size)) or more");
  const int64_t window = read_int(api, info, "local_window_size", -1);
  if (window != -1 && (window < smallest_window || window > INT32_MAX)) {
    refuse_attribute(schema, "local_window_size", std::to_string(window),
                     "-1 (off) or " + std::to_string(smallest_window) + " to 2147483647");
  }
  return {static_cast<int>(num_heads), static_cast<int>(kv_num_heads), scale, window};
}

int head_size_of(const Tensor& query, int64_t heads, const char* heads_name) {
  const int64_t hidden = query.shape[1];
  const int64_t size = hidden / heads;
  if (hidden % heads != 0 || size % 8 != 0 || size < 8 || size > kMaxHeadSize) {
    refuse(*query.schema, query.name, text(query.shape),
           std::string(heads_name) + " (" + std::to_string(heads) + ") heads of a size that is a multiple of 8 from 8 to " +
               std::to_string(kMaxHeadSize));
  }
  return static_cast<int>(size);
}

Projections locate_projections(const Tensor& query, const Tensor& key, const Tensor& value, const AttentionAttributes& attributes) {
  expect_rank(query, 2);
  Projections found{};
  found.num_tokens = query.shape[0];
  found.query = static_cast<const float*>(query.data);
  found.query_stride = query.shape[1];
  if (key.present() != value.present()) {
    const Tensor& absent = key.present() ? value : key;
    refuse(*absent.schema, absent.name, "nothing", "key and value, or neither of them and a query that holds all three");
  }
  if (!key.present()) {
    found.head_size =
        head_size_of(query, attributes.num_heads + 2 * int64_t{attributes.kv_num_heads}, "num_heads + 2 * kv_num_heads");
    found.key = found.query + static_cast<size_t>(attributes.num_heads) * found.head_size;
    found.value = found.key + static_cast<size_t>(attributes.kv_num_heads) * found.head_size;
    found.key_stride = found.query_stride;
    return found;
  }
  found.head_size = head_size_of(query, attributes.num_heads, "num_heads");
  found.key_stride = static_cast<int64_t>(attributes.kv_num_heads) * found.head_size;
  expect_shape(key, {found.num_tokens, found.key_stride});
  expect_shape(value, key.shape);
  found.key = static_cast<const float*>(key.data);
  found.value = static_cast<const float*>(value.data);
  return found;
}

float score_scale(const AttentionAttributes& attributes, int head_size) {
  return attributes.scale != 0.0f ? attributes.scale : static_cast<float>(1.0 / std::sqrt(static_cast<double>(head_size)));
}

}  // namespace fastserve
