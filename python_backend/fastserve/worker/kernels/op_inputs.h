// Reading an op's inputs and attributes, and refusing what its contract does not allow.
#pragma once

#include <string>
#include <vector>

#include "op_schema.h"
#include "ort_abi.h"

namespace fastserve {

struct Tensor {
  const OpSchema* schema;
  const char* name;
  void* data = nullptr;
  ort::ElementType type = ort::kUndefined;  // kUndefined: the optional input is absent
  std::vector<int64_t> shape;

  bool present() const { return type != ort::kUndefined; }
};

// "[2, 3]"
std::string text(const std::vector<int64_t>& shape);

// Throws InvalidInput: "<op>: <what>: got <got>, allowed: <allowed>".
[[noreturn]] void refuse(const OpSchema& schema, const std::string& what, const std::string& got, const std::string& allowed);

Tensor read_input(const ort::Api& api, const ort::KernelContext* context, const OpSchema& schema, size_t index);
void expect_shape(const Tensor& tensor, const std::vector<int64_t>& shape);
void expect_rank(const Tensor& tensor, size_t rank);

// Contract of cumulative_sequence_length, [num_seqs + 1] int32: from 0 to num_tokens, never falling. Returns its entries.
struct SequenceEnds {
  const int32_t* entries;
  int64_t num_seqs;
};
SequenceEnds read_sequence_ends(const Tensor& tensor, int64_t num_tokens);

// Contract of x [.., k], at least two dimensions. Returns the number of rows.
int64_t count_rows(const Tensor& x, int64_t k);

// Contract of ids, each 0 to n - 1. Returns how many there are.
int64_t expect_ids(const Tensor& ids, int64_t n);

// The float output 0 of this call.
float* make_output(const ort::Api& api, ort::KernelContext* context, const std::vector<int64_t>& shape);
// Float output `index`; null where the node does not have it.
float* make_optional_output(const ort::Api& api, ort::KernelContext* context, const std::vector<int64_t>& shape, size_t index);

// The attribute's value, or `missing` when the node does not have it.
int64_t read_int(const ort::Api& api, const ort::KernelInfo* info, const char* name, int64_t missing);
// An attribute that the node must have, 1 to `most`.
int64_t read_size(const ort::Api& api, const ort::KernelInfo* info, const OpSchema& schema, const char* name, int64_t most);
float read_float(const ort::Api& api, const ort::KernelInfo* info, const char* name, float missing);
std::string read_string(const ort::Api& api, const ort::KernelInfo* info, const char* name, const std::string& missing);

}  // namespace fastserve
