// The few pieces of ONNX Runtime's C ABI that this library uses, so that building it needs no ONNX Runtime headers.
//
// Where the numbers come from: `OrtApi` in onnxruntime_c_api.h is a table of function pointers that is only ever
// appended to. ONNX Runtime promises that `OrtApiBase::GetApi(n)` gives a table whose first entries are those of version
// n, in that order, for ever (its own source asserts the offsets release by release). The positions below are those of
// API version 21 (ONNX Runtime 1.21), so every later release serves them unchanged. `OrtCustomOp` is versioned the same
// way: the runtime reads only the fields that existed in the version written into its first field.
//
// Contract: nothing here is ever defined by us except `OrtCustomOp` values; all other structs are opaque.
#pragma once

#include <cstddef>
#include <cstdint>

namespace fastserve::ort {

constexpr uint32_t kApiVersion = 21;

enum ErrorCode : int { kFail = 1, kInvalidArgument = 2, kNotImplemented = 9 };
enum ElementType : int { kUndefined = 0, kFloat = 1, kInt8 = 3, kInt32 = 6, kInt64 = 7, kFloat16 = 10 };
enum Characteristic : int { kRequired = 0, kOptional = 1 };

struct Status;
struct Value;
struct KernelInfo;
struct KernelContext;
struct SessionOptions;
struct CustomOpDomain;
struct ShapeInferContext;
struct TensorInfo;  // OrtTensorTypeAndShapeInfo
struct CustomOp;

// OrtApi up to the last slot used; the numbers are positions in the table.
struct Api {
  Status* (*CreateStatus)(ErrorCode code, const char* message);  // 0
  void* unused_1[25];
  Status* (*CreateCustomOpDomain)(const char* domain, CustomOpDomain** out);                // 26
  Status* (*CustomOpDomain_Add)(CustomOpDomain* domain, const CustomOp* op);                // 27
  Status* (*AddCustomOpDomain)(SessionOptions* options, CustomOpDomain* domain);            // 28
  void* unused_29[22];
  Status* (*GetTensorMutableData)(Value* value, void** out);                                // 51
  void* unused_52[8];
  Status* (*GetTensorElementType)(const TensorInfo* info, ElementType* out);                // 60
  Status* (*GetDimensionsCount)(const TensorInfo* info, size_t* out);                       // 61
  Status* (*GetDimensions)(const TensorInfo* info, int64_t* dimensions, size_t count);      // 62
  void* unused_63[2];
  Status* (*GetTensorTypeAndShape)(const Value* value, TensorInfo** out);                   // 65
  void* unused_66[19];
  Status* (*KernelInfoGetAttribute_float)(const KernelInfo* info, const char* name, float* out);      // 85
  Status* (*KernelInfoGetAttribute_int64)(const KernelInfo* info, const char* name, int64_t* out);    // 86
  Status* (*KernelInfoGetAttribute_string)(const KernelInfo* info, const char* name, char* out, size_t* size);  // 87
  Status* (*KernelContext_GetInputCount)(const KernelContext* context, size_t* out);        // 88
  void* unused_89;
  Status* (*KernelContext_GetInput)(const KernelContext* context, size_t index, const Value** out);   // 90
  Status* (*KernelContext_GetOutput)(KernelContext* context, size_t index, const int64_t* dimensions, size_t count,
                                     Value** out);                                          // 91
  void* unused_92;
  void (*ReleaseStatus)(Status* status);                                                    // 93
  void* unused_94[5];
  void (*ReleaseTensorTypeAndShapeInfo)(TensorInfo* info);                                  // 99
  void* unused_100[174];
  // Calls function(user_data, i) for i in [0, total) on the session's intra-op pool; num_batch 0: one task for each i.
  Status* (*KernelContext_ParallelFor)(const KernelContext* context, void (*function)(void* user_data, size_t index),
                                       size_t total, size_t num_batch, void* user_data);    // 274
};

#define FASTSERVE_SLOT(name, index) static_assert(offsetof(Api, name) == (index) * sizeof(void*), #name " moved")
FASTSERVE_SLOT(CreateStatus, 0);
FASTSERVE_SLOT(CreateCustomOpDomain, 26);
FASTSERVE_SLOT(AddCustomOpDomain, 28);
FASTSERVE_SLOT(GetTensorMutableData, 51);
FASTSERVE_SLOT(GetTensorElementType, 60);
FASTSERVE_SLOT(GetDimensions, 62);
FASTSERVE_SLOT(GetTensorTypeAndShape, 65);
FASTSERVE_SLOT(KernelInfoGetAttribute_float, 85);
FASTSERVE_SLOT(KernelInfoGetAttribute_string, 87);
FASTSERVE_SLOT(KernelContext_GetInputCount, 88);
FASTSERVE_SLOT(KernelContext_GetInput, 90);
FASTSERVE_SLOT(KernelContext_GetOutput, 91);
FASTSERVE_SLOT(ReleaseStatus, 93);
FASTSERVE_SLOT(ReleaseTensorTypeAndShapeInfo, 99);
FASTSERVE_SLOT(KernelContext_ParallelFor, 274);
#undef FASTSERVE_SLOT

struct ApiBase {
  const Api* (*GetApi)(uint32_t version);
  const char* (*GetVersionString)();
};

// OrtCustomOp of API version 21. Null is allowed where a comment says so.
struct CustomOp {
  uint32_t version;
  void* (*CreateKernel)(const CustomOp* op, const Api* api, const KernelInfo* info);  // null: CreateKernelV2 is used
  const char* (*GetName)(const CustomOp* op);
  const char* (*GetExecutionProviderType)(const CustomOp* op);
  ElementType (*GetInputType)(const CustomOp* op, size_t index);
  size_t (*GetInputTypeCount)(const CustomOp* op);
  ElementType (*GetOutputType)(const CustomOp* op, size_t index);
  size_t (*GetOutputTypeCount)(const CustomOp* op);
  void (*KernelCompute)(void* kernel, KernelContext* context);  // null: KernelComputeV2 is used
  void (*KernelDestroy)(void* kernel);
  Characteristic (*GetInputCharacteristic)(const CustomOp* op, size_t index);
  Characteristic (*GetOutputCharacteristic)(const CustomOp* op, size_t index);
  int (*GetInputMemoryType)(const CustomOp* op, size_t index);  // OrtMemType; 0: the provider's default
  int (*GetVariadicInputMinArity)(const CustomOp* op);
  int (*GetVariadicInputHomogeneity)(const CustomOp* op);
  int (*GetVariadicOutputMinArity)(const CustomOp* op);
  int (*GetVariadicOutputHomogeneity)(const CustomOp* op);
  Status* (*CreateKernelV2)(const CustomOp* op, const Api* api, const KernelInfo* info, void** kernel);
  Status* (*KernelComputeV2)(void* kernel, KernelContext* context);
  Status* (*InferOutputShapeFn)(const CustomOp* op, ShapeInferContext* context);  // null: shapes are known at run time
  int (*GetStartVersion)(const CustomOp* op);
  int (*GetEndVersion)(const CustomOp* op);
  size_t (*GetMayInplace)(int** input_index, int** output_index);  // null, like the next three: nothing is aliased
  void (*ReleaseMayInplace)(int* input_index, int* output_index);
  size_t (*GetAliasMap)(int** input_index, int** output_index);
  void (*ReleaseAliasMap)(int* input_index, int* output_index);
};
static_assert(sizeof(CustomOp) == 26 * sizeof(void*), "OrtCustomOp of API version 21 is 26 words");
static_assert(offsetof(CustomOp, CreateKernelV2) == 17 * sizeof(void*), "CreateKernelV2 moved");
static_assert(offsetof(CustomOp, ReleaseAliasMap) == 25 * sizeof(void*), "ReleaseAliasMap moved");

}  // namespace fastserve::ort
