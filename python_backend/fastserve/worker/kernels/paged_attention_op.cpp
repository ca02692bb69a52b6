// fastserve::PagedAttention: causal attention of a packed batch over a paged key/value cache, mirroring the signature of
// com.microsoft::PagedAttention (which has no CPU kernel) so that a graph changes provider by changing the domain.
//
//   tokens     | seq 0: 3 new | seq 1: 1 new | seq 2: 200 new | ...      packed, no padding
//   cumulative   0              3              4                204
//
// 1. The keys and values of all new tokens go to their slots (slot_mapping, or where the block table puts them).
// 2. Token i of sequence s, at position past_seqlens[s] + i, attends to cache positions 0 .. its own, all read back from
//    the cache: with a half precision cache a prompt fed in pieces sees exactly what it would see fed at once.
//
// key_cache and value_cache are inputs written in place: they must be bound by the caller (never produced by a node, never
// an initializer), belong to one node alone, and not be read by anyone else during the run.
#include "paged_attention_op.h"

#include <atomic>
#include <string>

#include "isa/kernels.h"
#include "ort_call.h"
#include "paged_attention_inputs.h"
#include "work_plan.h"

namespace fastserve {
namespace {

constexpr size_t kInputCount = 12;
constexpr const char* kName = "fastserve::PagedAttention";

struct PagedAttentionKernel {
  const ort::Api& api;
  PagedAttentionAttributes attributes;
  const Kernels& kernels;
};

[[noreturn]] void refuse(const char* attribute, const std::string& got, const std::string& allowed) {
  throw InvalidInput(std::string(kName) + ": attribute " + attribute + ": got " + got + ", allowed: " + allowed);
}

// The attribute's value, or `missing` when the node does not have it.
int64_t read_int(const ort::Api& api, const ort::KernelInfo* info, const char* name, int64_t missing) {
  int64_t value = missing;
  ort::Status* status = api.KernelInfoGetAttribute_int64(info, name, &value);
  if (status == nullptr) return value;
  api.ReleaseStatus(status);
  return missing;
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

// Attributes of the mirrored op that ask for something this kernel does not do.
void refuse_unsupported(const ort::Api& api, const ort::KernelInfo* info) {
  struct Fixed {
    const char* name;
    int64_t value;
  };
  for (const Fixed fixed :
       {Fixed{"do_rotary", 0}, {"rotary_interleaved", 0}, {"rotary_offset", 0}, {"v_head_size", 0}, {"is_causal", 1}}) {
    const int64_t value = read_int(api, info, fixed.name, fixed.value);
    if (value != fixed.value)
      refuse(fixed.name, std::to_string(value), std::to_string(fixed.value) + " (no other value is supported)");
  }
  for (const char* name : {"k_quant_type", "v_quant_type"}) {
    const std::string value = read_string(api, info, name, "NONE");
    if (value != "NONE") refuse(name, "\"" + value + "\"", "\"NONE\"");
  }
  for (const char* name : {"k_cache_dtype", "v_cache_dtype", "kv_cache_layout"}) {
    const std::string value = read_string(api, info, name, "");
    if (!value.empty()) refuse(name, "\"" + value + "\"", "absent (the caches' element type and shape say it)");
  }
  const float absent = -1.0f;
  if (read_float(api, info, "qk_norm_epsilon", absent) != absent)
    refuse("qk_norm_epsilon", "a value", "absent (queries and keys are not normalised)");
}

PagedAttentionAttributes read_attributes(const ort::Api& api, const ort::KernelInfo* info) {
  const int64_t num_heads = read_int(api, info, "num_heads", 0);
  const int64_t kv_num_heads = read_int(api, info, "kv_num_heads", 0);
  if (num_heads < 1 || num_heads > 65536) refuse("num_heads", std::to_string(num_heads), "1 to 65536");
  if (kv_num_heads < 1 || num_heads % kv_num_heads != 0) {
    refuse("kv_num_heads", std::to_string(kv_num_heads), "a divisor of num_heads (" + std::to_string(num_heads) + ")");
  }
  const float scale = read_float(api, info, "scale", 0.0f);
  if (!(scale >= 0.0f && scale <= 1e30f)) refuse("scale", std::to_string(scale), "0 (1 / sqrt(head_size)) or more");
  const float softcap = read_float(api, info, "softcap", 0.0f);
  if (!(softcap >= 0.0f && softcap <= 1e30f)) refuse("softcap", std::to_string(softcap), "0 (off) or more");
  const int64_t window = read_int(api, info, "local_window_size", -1);
  if (window < -1 || window == 0 || window > INT32_MAX)
    refuse("local_window_size", std::to_string(window), "-1 (off) or 1 to 2147483647");
  refuse_unsupported(api, info);
  return {static_cast<int>(num_heads), static_cast<int>(kv_num_heads), scale, softcap, window};
}

// One parallel loop over independent items, handed out one by one in order.
template <class Body>
void parallel_for(const ort::Api& api, const ort::KernelContext* context, size_t count, const Body& body) {
  struct Loop {
    const Body& body;
    std::atomic<size_t> next;
  } loop{body, {0}};
  const auto step = [](void* user_data, size_t) {
    Loop& shared = *static_cast<Loop*>(user_data);
    shared.body(shared.next.fetch_add(1, std::memory_order_relaxed));
  };
  if (count == 1) {
    step(&loop, 0);
  } else if (count > 1) {
    check(api.KernelContext_ParallelFor(context, step, count, 0, &loop));
  }
}

void compute(const PagedAttentionKernel& kernel, ort::KernelContext* context) {
  PagedAttentionCall call{};
  AttentionProblem& problem = call.problem;
  read_inputs(kernel.api, context, kernel.attributes, call);
  const int64_t shape[] = {problem.num_tokens, static_cast<int64_t>(problem.num_heads) * problem.head_size};
  ort::Value* output = nullptr;
  void* data = nullptr;
  check(kernel.api.KernelContext_GetOutput(context, 0, shape, 2, &output));
  check(kernel.api.GetTensorMutableData(output, &data));
  problem.output = static_cast<float*>(data);
  const auto scatter = call.half_cache ? kernel.kernels.scatter_half : kernel.kernels.scatter_float;
  const auto attend = call.half_cache ? kernel.kernels.attend_half : kernel.kernels.attend_float;
  const size_t heads = static_cast<size_t>(problem.kv_num_heads);
  const size_t chunks = (static_cast<size_t>(problem.num_tokens) + kStrip - 1) / kStrip;
  parallel_for(kernel.api, context, chunks * heads,
               [&](size_t i) { scatter(problem, static_cast<int64_t>(i / heads), static_cast<int>(i % heads)); });
  const std::vector<WorkItem> items = plan_work(problem);
  parallel_for(kernel.api, context, items.size(), [&](size_t i) { attend(problem, items[i]); });
}

ort::ElementType input_type(const ort::CustomOp*, size_t index) {
  if (index == 3 || index == 4) return ort::kUndefined;  // the caches: float or float16, read at each call
  return (index >= 5 && index <= 7) || index == 10 ? ort::kInt32 : ort::kFloat;
}

ort::Characteristic input_characteristic(const ort::CustomOp*, size_t index) {
  return index >= 8 ? ort::kOptional : ort::kRequired;
}

ort::Status* create_kernel(const ort::CustomOp*, const ort::Api* api, const ort::KernelInfo* info, void** kernel) {
  return guarded(*api, kName, [&] { *kernel = new PagedAttentionKernel{*api, read_attributes(*api, info), choose_kernels()}; });
}

ort::Status* compute_kernel(void* kernel, ort::KernelContext* context) {
  const PagedAttentionKernel& self = *static_cast<const PagedAttentionKernel*>(kernel);
  return guarded(self.api, kName, [&] { compute(self, context); });
}

ort::CustomOp make_op() {
  using ort::CustomOp;
  CustomOp op{};
  op.version = ort::kApiVersion;
  op.GetName = [](const CustomOp*) { return "PagedAttention"; };
  op.GetExecutionProviderType = [](const CustomOp*) -> const char* { return nullptr; };
  op.GetInputType = input_type;
  op.GetInputTypeCount = [](const CustomOp*) { return kInputCount; };
  op.GetOutputType = [](const CustomOp*, size_t) { return ort::kFloat; };
  op.GetOutputTypeCount = [](const CustomOp*) -> size_t { return 1; };
  op.KernelDestroy = [](void* kernel) { delete static_cast<PagedAttentionKernel*>(kernel); };
  op.GetInputCharacteristic = input_characteristic;
  op.GetOutputCharacteristic = [](const CustomOp*, size_t) { return ort::kRequired; };
  op.GetInputMemoryType = [](const CustomOp*, size_t) { return 0; };
  op.GetVariadicInputMinArity = [](const CustomOp*) { return 0; };
  op.GetVariadicInputHomogeneity = [](const CustomOp*) { return 0; };
  op.GetVariadicOutputMinArity = [](const CustomOp*) { return 0; };
  op.GetVariadicOutputHomogeneity = [](const CustomOp*) { return 0; };
  op.CreateKernelV2 = create_kernel;
  op.KernelComputeV2 = compute_kernel;
  op.GetStartVersion = [](const CustomOp*) { return 1; };
  op.GetEndVersion = [](const CustomOp*) { return 1; };
  return op;
}

}  // namespace

const ort::CustomOp& paged_attention_op() {
  static const ort::CustomOp op = make_op();
  return op;
}

}  // namespace fastserve
