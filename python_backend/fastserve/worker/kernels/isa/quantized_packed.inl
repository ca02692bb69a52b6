// The product of few quantised rows and weights of 4 bits: each block is unpacked where it is multiplied, so that the weights are
// read once, in the order they lie in. Included inside a translation unit's own namespace, after quantized_unpack.inl.

constexpr int kChains = kParts < 4 ? 4 / kParts : 1;  // neighbouring groups have sums of their own: additions take their time

constexpr int kLinesOfBlock = 5;  // at least what a block takes of a panel, ends and all

// ahead: memory to ask for meanwhile, as much as a panel takes.
template <int Rows>
static inline void multiply_packed_panel(const QuantizedProblem& problem, int64_t row, int64_t panel, const int8_t* ahead) {
  const int64_t blocks = count_blocks(problem.num_groups);
  const int8_t* packed = problem.weight + panel * problem.packed_panel_bytes;
  const PackedPanel from = locate(packed, blocks);
  // Zeros behind the last input, so whole blocks can be multiplied.
  const Activation* activations = static_cast<const Activation*>(problem.activations) + row * problem.stride;
  const size_t stride = static_cast<size_t>(problem.stride);
  Sum sums[Rows][kChains][kParts];
#pragma GCC unroll 4
  for (int p = 0; p < kParts; ++p) {
#pragma GCC unroll 4
    for (int r = 0; r < Rows; ++r) {
      sums[r][0][p] = first_sum(packed + p * kPartBytes);
#pragma GCC unroll 4
      for (int c = 1; c < kChains; ++c) sums[r][c][p] = no_sum();
    }
  }
  for (int64_t block = 0; block < blocks; ++block, activations += kBlockGroups * kGroupInputs) {
    for (int line = 0; line < kLinesOfBlock; ++line, ahead += kGroupBytes) __builtin_prefetch(ahead);
    alignas(64) int8_t weights[kBlockGroups * kGroupBytes];
    unpack_block(from.ends + block * kEndBytes, from.levels + block * kLevelBytes, weights);
#pragma GCC unroll 8
    for (int group = 0; group < kBlockGroups; ++group) {
      Factors factors[Rows];
#pragma GCC unroll 4
      for (int r = 0; r < Rows; ++r) factors[r] = broadcast_group(activations + r * stride + group * kGroupInputs);
#pragma GCC unroll 4
      for (int p = 0; p < kParts; ++p) {
        const Weights column = load_weights(weights + group * kGroupBytes + p * kPartBytes);
#pragma GCC unroll 4
        for (int r = 0; r < Rows; ++r) {
          sums[r][group % kChains][p] = multiply_add(factors[r], column, sums[r][group % kChains][p]);
        }
      }
    }
  }
  alignas(64) int32_t stored[Rows * kPanelChannels] = {};
#pragma GCC unroll 4
  for (int r = 0; r < Rows; ++r) {
#pragma GCC unroll 4
    for (int p = 0; p < kParts; ++p) {
#pragma GCC unroll 4
      for (int c = 0; c < kChains; ++c) {
        alignas(64) int32_t chain[kPartChannels];
        store_sums(chain, sums[r][c][p]);
        for (int i = 0; i < kPartChannels; ++i) stored[r * kPanelChannels + p * kPartChannels + i] += chain[i];
      }
    }
  }
  finish<kPanelChannels, 1>(problem, row, Rows, panel * kPanelChannels, stored, kPanelChannels);
}

template <int Rows>
static inline void multiply_packed_rows(const QuantizedProblem& problem, const OutputBlock& block, const NextWeights& next,
                                        int64_t row) {
  if constexpr (Rows > 1) {
    if (block.last_row - row < Rows) return multiply_packed_rows<Rows - 1>(problem, block, next, row);
  }
  for (int64_t panel = block.first_panel; panel < block.last_panel; ++panel) {
    const int8_t* packed = problem.weight + panel * problem.packed_panel_bytes;
    const int8_t* after = next.panels > 0 ? next.first : packed;  // of the block; its own weights if there is nothing left to ask for
    const int8_t* ahead = panel + 1 < block.last_panel ? packed + problem.packed_panel_bytes : after;
    multiply_packed_panel<Rows>(problem, row, panel, ahead);
  }
}

static void multiply_packed(const QuantizedProblem& problem, const OutputBlock& block, const NextWeights& next) {
  for (int64_t row = block.first_row; row < block.last_row; row += kFewRows) {
    multiply_packed_rows<kFewRows>(problem, block, next, row);
  }
}
