// What an op of this library is to ONNX Runtime: its name, its inputs and, as a C++ class, its kernel.
#pragma once

#include "ort_abi.h"
#include "ort_call.h"

namespace fastserve {

struct OpInput {
  const char* name;
  ort::ElementType type;  // kUndefined: any; the kernel looks at each call
  ort::Characteristic characteristic;
};

struct OpSchema {
  const char* name;            // without the domain
  const char* qualified_name;  // with it, as errors say it
  const OpInput* inputs;
  size_t num_inputs;
  size_t num_outputs = 1;  // all after the first optional
};

// Version 1 of an op with float outputs. `Kernel` has a static function schema(), a constructor
// (const ort::Api&, const ort::KernelInfo*) that reads and checks the attributes, and compute(ort::KernelContext*) const,
// which several threads may call at once.
template <class Kernel>
ort::CustomOp define_op() {
  using ort::CustomOp;
  CustomOp op{};
  op.version = ort::kApiVersion;
  op.GetName = [](const CustomOp*) { return Kernel::schema().name; };
  op.GetExecutionProviderType = [](const CustomOp*) -> const char* { return nullptr; };
  op.GetInputType = [](const CustomOp*, size_t index) { return Kernel::schema().inputs[index].type; };
  op.GetInputTypeCount = [](const CustomOp*) { return Kernel::schema().num_inputs; };
  op.GetOutputType = [](const CustomOp*, size_t) { return ort::kFloat; };
  op.GetOutputTypeCount = [](const CustomOp*) { return Kernel::schema().num_outputs; };
  op.KernelDestroy = [](void* kernel) { delete static_cast<Kernel*>(kernel); };
  op.GetInputCharacteristic = [](const CustomOp*, size_t index) { return Kernel::schema().inputs[index].characteristic; };
  op.GetOutputCharacteristic = [](const CustomOp*, size_t index) { return index == 0 ? ort::kRequired : ort::kOptional; };
  op.GetInputMemoryType = [](const CustomOp*, size_t) { return 0; };
  op.GetVariadicInputMinArity = [](const CustomOp*) { return 0; };
  op.GetVariadicInputHomogeneity = [](const CustomOp*) { return 0; };
  op.GetVariadicOutputMinArity = [](const CustomOp*) { return 0; };
  op.GetVariadicOutputHomogeneity = [](const CustomOp*) { return 0; };
  op.CreateKernelV2 = [](const CustomOp*, const ort::Api* api, const ort::KernelInfo* info, void** kernel) {
    return guarded(*api, Kernel::schema().qualified_name, [&] { *kernel = new Kernel(*api, info); });
  };
  op.KernelComputeV2 = [](void* kernel, ort::KernelContext* context) {
    const Kernel& self = *static_cast<const Kernel*>(kernel);
    return guarded(self.api, Kernel::schema().qualified_name, [&] { self.compute(context); });
  };
  op.GetStartVersion = [](const CustomOp*) { return 1; };
  op.GetEndVersion = [](const CustomOp*) { return 1; };
  return op;
}

}  // namespace fastserve
