// fastserve::QuantizedMatMul: x times a matrix of weights of 8 or 4 bits ("W8A8", "W4A8").
//
// Inputs: x [.., k] float, weight [num_panels, 1 + num_groups, 64] int8 as quantized_weight.py packs it, weight_scale [n],
// bias [n] (optional). Attributes: k, n, and weight_bits: 8, or 4 for a weight [num_panels, .., 64] as int4_weight.py packs it,
// which stands for int8 weights too. Output [.., n] float. With the attribute prologue the rows are normalised or gated
// first, as row_prologue.h says: norm_weight, norm_bias and skip are its inputs, output 1 the sum x + skip.
//
//   q = round(x / row_scale), -127..127, where row_scale = largest magnitude of the row / 127
//   output = float(sum of q * weight, exact in 32 bits) * weight_scale * row_scale + bias
//
// A row's output is the same bits in any batch, on any number of threads and with any instruction set. A row with a NaN or
// an infinity gives a row of NaN; a row whose magnitudes are all below 1.5e-36 counts as zeros.
#include "quantized_matmul_op.h"

#include <algorithm>
#include <cstdint>
#include <iterator>
#include <memory>
#include <new>
#include <string>
#include <vector>

#include "isa/quantized_kernels.h"
#include "op_inputs.h"
#include "op_schema.h"
#include "output_cut.h"
#include "parallel_for.h"
#include "quantized_problem.h"
#include "row_prologue.h"
#include "scratch.h"

namespace fastserve {
namespace {

enum Input : size_t { kX, kWeight, kWeightScale, kBias, kNormWeight };
constexpr OpInput kInputs[] = {{"x", ort::kFloat, ort::kRequired},
                               {"weight", ort::kInt8, ort::kRequired},
                               {"weight_scale", ort::kFloat, ort::kRequired},
                               {"bias", ort::kFloat, ort::kOptional},
                               {"norm_weight", ort::kFloat, ort::kOptional},
                               {"norm_bias", ort::kFloat, ort::kOptional},
                               {"skip", ort::kFloat, ort::kOptional}};
constexpr OpSchema kSchema = {"QuantizedMatMul", "fastserve::QuantizedMatMul", kInputs, std::size(kInputs), 2};

constexpr int64_t kMostOutputs = int64_t{1} << 24;
constexpr int64_t kQuantizedAtOnce = 8192;   // activations of one work item, or more
constexpr int64_t kRowsAtOnce = 192;         // of one work item, so that their activations stay in the second-level cache
constexpr int64_t kPanelsAtOnce = 4;         // of one work item, or a multiple: what the kernels compute at once
constexpr int64_t kLeastWork = 384 * 1024;   // of one work item, in bytes of weights that could be read meanwhile
constexpr int64_t kMostUnpacked = 512 * 1024;  // bytes that are made of weights of 4 bits at once, or one panel
constexpr int64_t kItemsOfThread = 4;        // few, because neighbouring outputs of two processors disturb each other

int64_t panel_bytes_of_four_bits(int64_t k) {
  const int64_t blocks = divide_up(k, kBlockGroups * kGroupInputs);
  return kGroupBytes + divide_up(blocks, 2) * kGroupBytes + blocks * kLevelBytes;
}

OutputCut cut_outputs(const QuantizedProblem& problem, int64_t num_panels, int64_t rows_of_read) {
  OutputCut cut{};
  // Blocks of nearly equal size, of a number of rows that suits AMX tiles.
  cut.rows = divide_up(divide_up(problem.rows, divide_up(problem.rows, kRowsAtOnce)), 32) * 32;
  const int64_t panel_bytes = (1 + problem.num_groups) * kGroupBytes;
  const int64_t work = panel_bytes * (rows_of_read + std::min(cut.rows, problem.rows)) / rows_of_read;  // of a panel
  cut.row_blocks = divide_up(problem.rows, cut.rows);
  const int64_t most_panel_blocks = divide_up(kItemsOfThread * num_threads(), cut.row_blocks);
  const int64_t most = std::max(kLeastWork / work, divide_up(num_panels, most_panel_blocks));
  cut.panels = even_panels(num_panels, cut.row_blocks, divide_up(most, kPanelsAtOnce) * kPanelsAtOnce, kPanelsAtOnce);
  cut.panel_blocks = divide_up(num_panels, cut.panels);
  // What is larger is read once; what is smaller is read again and again, from a cache.
  cut.rows_first = problem.rows * problem.stride > num_panels * panel_bytes;
  return cut;
}

int64_t read_weight_bits(const ort::Api& api, const ort::KernelInfo* info) {
  const int64_t bits = read_int(api, info, "weight_bits", 8);
  if (bits != 4 && bits != 8) refuse(kSchema, "attribute weight_bits", std::to_string(bits), "4 or 8");
  return bits;
}

// Memory of this thread, kept from call to call; null if there is none: what runs in parallel must not throw.
int8_t* memory_for_panels(int64_t bytes) {
  static thread_local std::unique_ptr<Scratch> memory;
  static thread_local int64_t size = 0;
  if (bytes > size) {
    try {
      memory = std::make_unique<Scratch>(static_cast<size_t>(bytes));
    } catch (const std::bad_alloc&) {
      return nullptr;
    }
    size = bytes;
  }
  return static_cast<int8_t*>(memory->data());
}

struct QuantizedMatMulKernel {
  static const OpSchema& schema() { return kSchema; }

  QuantizedMatMulKernel(const ort::Api& ort_api, const ort::KernelInfo* info)
      : api(ort_api),
        k(read_size(ort_api, info, kSchema, "k", kMaxInputs)),
        n(read_size(ort_api, info, kSchema, "n", kMostOutputs)),
        weight_bits(read_weight_bits(ort_api, info)),
        num_panels(divide_up(n, kPanelChannels)),
        panel_bytes((1 + divide_up(k, kGroupInputs)) * kGroupBytes),
        packed_panel_bytes(weight_bits == 8 ? panel_bytes : panel_bytes_of_four_bits(k)),
        prologue(ort_api, info, kSchema, kNormWeight),
        kernels(choose_quantized_kernels()) {}

  // Everything but the output and the scratch. Throws InvalidInput naming the input and what is allowed.
  QuantizedProblem read_problem(int64_t rows, const ort::KernelContext* context) const {
    const auto read = [&](Input index) { return read_input(api, context, kSchema, index); };
    QuantizedProblem problem{};
    problem.k = k;
    problem.n = n;
    problem.num_groups = divide_up(k, kGroupInputs);
    // An odd number of cache lines: rows that start a power of two apart would share a few sets of the cache.
    problem.stride = (divide_up(k, kRowAlignment) | 1) * kRowAlignment;
    problem.rows = rows;
    const Tensor weight = read(kWeight);
    expect_shape(weight, {num_panels, packed_panel_bytes / kGroupBytes, kGroupBytes});
    problem.weight = static_cast<const int8_t*>(weight.data);
    problem.packed_panel_bytes = packed_panel_bytes;
    const Tensor weight_scale = read(kWeightScale);
    expect_shape(weight_scale, {n});
    problem.weight_scale = static_cast<const float*>(weight_scale.data);
    const Tensor bias = read(kBias);
    if (bias.present()) expect_shape(bias, {n});
    problem.bias = static_cast<const float*>(bias.data);
    return problem;
  }

  void compute(ort::KernelContext* context) const {
    const SourceRows source = prologue.read(context, k);
    QuantizedProblem problem = read_problem(source.count, context);
    std::vector<int64_t> shape = source.shape;
    shape.back() = n;
    problem.output = make_output(api, context, shape);
    if (problem.rows == 0) return;
    const size_t rows = static_cast<size_t>(problem.rows);
    const Scratch activations(rows * static_cast<size_t>(problem.stride) * kernels.activation_bytes);
    const std::unique_ptr<float[]> row_scale(new float[rows]);
    problem.activations = activations.data();
    problem.row_scale = row_scale.get();
    multiply(context, source, problem);
  }

  // Quantises the rows, some at a time, then multiplies them, block by block.
  void multiply(ort::KernelContext* context, const SourceRows& source, const QuantizedProblem& problem) const {
    const int64_t most_items = kItemsOfThread * num_threads();
    const int64_t rows_at_once = std::max({int64_t{1}, kQuantizedAtOnce / k, divide_up(problem.rows, most_items)});
    const int64_t items = divide_up(problem.rows, rows_at_once);
    const Scratch prepared(prologue.none() ? 0 : static_cast<size_t>(items * k) * sizeof(float));  // a row of each item
    const OutputCut cut = cut_outputs(problem, num_panels, kernels.rows_of_read);
    const auto quantize = [&](int64_t first, int64_t last) {
      float* space = static_cast<float*>(prepared.data()) + first / rows_at_once * k;
      for (int64_t row = first; row < last; ++row) kernels.quantize(problem, source.row(row, space), row);
    };
    const auto first_stage = rows_of_item(problem.rows, rows_at_once, quantize);
    parallel_stages(api, context, static_cast<size_t>(items), first_stage, static_cast<size_t>(cut.count()), [&](size_t i) {
      const int64_t index = static_cast<int64_t>(i);
      const OutputBlock block = cut.block(index, problem.rows, num_panels);
      const int64_t next_panel = cut.next_panel(index);
      if (weight_bits == 8) {
        kernels.multiply(problem, block, next_weights(problem.weight, next_panel, num_panels));
      } else {
        multiply_four_bits(problem, block, next_panel);
      }
    });
  }

  // Makes int8 weights of those of 4 bits, some panels at a time, and multiplies by these.
  void multiply_four_bits(const QuantizedProblem& problem, const OutputBlock& block, int64_t next_panel) const {
    int64_t at_once = kPanelsAtOnce;
    while (at_once > 1 && at_once * panel_bytes > kMostUnpacked) at_once /= 2;
    // What is unpacked behind the end of a panel is overwritten by the next one, which comes after.
    const int64_t bytes = at_once * panel_bytes + (kBlockGroups - 1) * kGroupBytes;
    int8_t* panels = block.last_row - block.first_row > kFewRows ? memory_for_panels(bytes) : nullptr;
    if (panels == nullptr) {
      return kernels.multiply_packed(problem, block, next_weights(problem.weight, next_panel, num_panels));
    }
    QuantizedProblem part = problem;
    part.weight = panels;
    for (int64_t first = block.first_panel; first < block.last_panel; first += at_once) {
      const int64_t last = std::min(first + at_once, block.last_panel);
      for (int64_t panel = first; panel < last; ++panel) {
        kernels.unpack(problem.weight + panel * packed_panel_bytes, problem.num_groups, panels + (panel - first) * panel_bytes);
      }
      part.first_panel = first;
      const int64_t next = last < block.last_panel ? last : next_panel;
      kernels.multiply(part, {block.first_row, block.last_row, first, last},
                       next_weights(problem.weight, next, std::min(next + at_once, num_panels)));
    }
  }

  // Panels [first, last) as they are stored; first: -1 for none.
  NextWeights next_weights(const int8_t* weight, int64_t first, int64_t last) const {
    if (first < 0) return {weight, 0};
    return {weight + first * packed_panel_bytes, divide_up((last - first) * packed_panel_bytes, panel_bytes)};
  }

  const ort::Api& api;
  const int64_t k;
  const int64_t n;
  const int64_t weight_bits;
  const int64_t num_panels;
  const int64_t panel_bytes;         // of int8 weights
  const int64_t packed_panel_bytes;  // as it is in the weight
  const RowPrologue prologue;
  const QuantizedKernels& kernels;
};

}  // namespace

const ort::CustomOp& quantized_matmul_op() {
  static const ort::CustomOp op = define_op<QuantizedMatMulKernel>();
  return op;
}

}  // namespace fastserve
