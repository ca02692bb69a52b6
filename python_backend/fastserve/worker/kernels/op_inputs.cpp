#include "op_inputs.h"

#include "ort_call.h"

namespace fastserve {

std::string text(const std::vector<int64_t>& shape) {
  std::string result = "[";
  for (const int64_t size : shape) result += (result.size() > 1 ? ", " : "") + std::to_string(size);
  return result + "]";
}

void refuse(const OpSchema& schema, const std::string& what, const std::string& got, const std::string& allowed) {
  throw InvalidInput(std::string(schema.qualified_name) + ": " + what + ": got " + got + ", allowed: " + allowed);
}

Tensor read_input(const ort::Api& api, const ort::KernelContext* context, const OpSchema& schema, size_t index) {
  Tensor tensor;
  tensor.schema = &schema;
  tensor.name = schema.inputs[index].name;
  size_t count = 0;
  check(api.KernelContext_GetInputCount(context, &count));
  if (index >= count) return tensor;
  const ort::Value* value = nullptr;
  check(api.KernelContext_GetInput(context, index, &value));
  if (value == nullptr) return tensor;
  ort::TensorInfo* info = nullptr;
  check(api.GetTensorTypeAndShape(value, &info));
  size_t rank = 0;
  ort::Status* status = api.GetTensorElementType(info, &tensor.type);
  if (status == nullptr) status = api.GetDimensionsCount(info, &rank);
  tensor.shape.resize(rank);
  if (status == nullptr) status = api.GetDimensions(info, tensor.shape.data(), rank);
  api.ReleaseTensorTypeAndShapeInfo(info);
  check(status);
  // Const in ONNX Runtime's eyes; an op that writes an input (PagedAttention its caches) says so in its contract.
  check(api.GetTensorMutableData(const_cast<ort::Value*>(value), &tensor.data));
  return tensor;
}

void expect_shape(const Tensor& tensor, const std::vector<int64_t>& shape) {
  if (tensor.shape != shape) refuse(*tensor.schema, tensor.name, text(tensor.shape), text(shape));
}

void expect_rank(const Tensor& tensor, size_t rank) {
  if (tensor.shape.size() != rank) refuse(*tensor.schema, tensor.name, text(tensor.shape), std::to_string(rank) + " dimensions");
}

SequenceEnds read_sequence_ends(const Tensor& tensor, int64_t num_tokens) {
  expect_rank(tensor, 1);
  const std::string name = tensor.name;
  if (tensor.shape[0] < 1) refuse(*tensor.schema, name, text(tensor.shape), "[num_seqs + 1]");
  const SequenceEnds ends{static_cast<const int32_t*>(tensor.data), tensor.shape[0] - 1};
  for (int64_t s = 0; s < ends.num_seqs; ++s) {
    if (ends.entries[s + 1] < ends.entries[s]) {
      refuse(*tensor.schema, name + "[" + std::to_string(s + 1) + "]", std::to_string(ends.entries[s + 1]),
             "at least " + std::to_string(ends.entries[s]));
    }
  }
  if (ends.entries[0] != 0) refuse(*tensor.schema, name + "[0]", std::to_string(ends.entries[0]), "0");
  if (ends.entries[ends.num_seqs] != num_tokens) {
    refuse(*tensor.schema, name + "'s last entry", std::to_string(ends.entries[ends.num_seqs]),
           std::to_string(num_tokens) + " (num_tokens)");
  }
  return ends;
}

int64_t count_rows(const Tensor& x, int64_t k) {
  if (x.shape.size() < 2 || x.shape.back() != k) refuse(*x.schema, x.name, text(x.shape), "[.., " + std::to_string(k) + "]");
  int64_t rows = 1;
  for (size_t i = 0; i + 1 < x.shape.size(); ++i) rows *= x.shape[i];
  return rows;
}

int64_t expect_ids(const Tensor& ids, int64_t n) {
  int64_t count = 1;
  for (const int64_t size : ids.shape) count *= size;
  const int64_t* id = static_cast<const int64_t*>(ids.data);
  for (int64_t i = 0; i < count; ++i) {
    if (id[i] < 0 || id[i] >= n) {
      const std::string what = std::string(ids.name) + "[" + std::to_string(i) + "]";
      refuse(*ids.schema, what, std::to_string(id[i]), "0 to " + std::to_string(n - 1));
    }
  }
  return count;
}

float* make_output(const ort::Api& api, ort::KernelContext* context, const std::vector<int64_t>& shape) {
  return make_optional_output(api, context, shape, 0);
}

float* make_optional_output(const ort::Api& api, ort::KernelContext* context, const std::vector<int64_t>& shape, size_t index) {
  ort::Value* output = nullptr;
  void* data = nullptr;
  check(api.KernelContext_GetOutput(context, index, shape.data(), shape.size(), &output));
  if (output == nullptr) return nullptr;
  check(api.GetTensorMutableData(output, &data));
  return static_cast<float*>(data);
}

int64_t read_int(const ort::Api& api, const ort::KernelInfo* info, const char* name, int64_t missing) {
  int64_t value = missing;
  ort::Status* status = api.KernelInfoGetAttribute_int64(info, name, &value);
  if (status == nullptr) return value;
  api.ReleaseStatus(status);
  return missing;
}

int64_t read_size(const ort::Api& api, const ort::KernelInfo* info, const OpSchema& schema, const char* name, int64_t most) {
  const int64_t value = read_int(api, info, name, 0);
  if (value < 1 || value > most) {
    refuse(schema, std::string("attribute ") + name, std::to_string(value), "1 to " + std::to_string(most));
  }
  return value;
}

float read_float(const ort::Api& api, const ort::KernelInfo* info, const char* name, float missing) {
  float value = missing;
  ort::Status* status = api.KernelInfoGetAttribute_float(info, name, &value);
  if (status == nullptr) return value;
  api.ReleaseStatus(status);
  return missing;
}

std::string read_string(const ort::Api& api, const ort::KernelInfo* info, const char* name, const std::string& missing) {
  size_t size = 0;  // counts the closing zero
  ort::Status* status = api.KernelInfoGetAttribute_string(info, name, nullptr, &size);
  if (status == nullptr) {
    std::string value(size, '\0');
    status = api.KernelInfoGetAttribute_string(info, name, value.data(), &size);
    if (status == nullptr) return value.substr(0, value.find('\0'));
  }
  api.ReleaseStatus(status);
  return missing;
}

}  // namespace fastserve
