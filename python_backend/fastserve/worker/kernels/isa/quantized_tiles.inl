// The product of quantised rows and packed weights, on accumulators that stay in registers. Included inside a translation
// unit's own namespace, after a quantized_vector_*.h and quantized_rows.inl.
//
// A group row of a panel (64 bytes) is kParts vectors of weights; "part" counts them through all panels. Integer sums are
// exact, so neither the tile nor the instruction set changes a result.

constexpr int kPartBytes = kGroupBytes / kParts;
constexpr int kPartChannels = kPanelChannels / kParts;

// Weights that are asked for while others are multiplied: so many cache lines for each group, from `first` on.
struct Ahead {
  const int8_t* first;
  int lines;
};

// Rows [row, row + Rows) times Parts neighbouring parts.
template <int Rows, int Parts>
static inline void multiply_tile(const QuantizedProblem& problem, int64_t row, int64_t part, Ahead ahead) {
  const Activation* activations = static_cast<const Activation*>(problem.activations) + row * problem.stride;
  const int8_t* weights[Parts];
  Sum sums[Rows][Parts];
#pragma GCC unroll 8
  for (int p = 0; p < Parts; ++p) {
    const int8_t* channel_sums = panel_of(problem, (part + p) / kParts) + (part + p) % kParts * kPartBytes;
    weights[p] = channel_sums + kGroupBytes;
#pragma GCC unroll 8
    for (int r = 0; r < Rows; ++r) sums[r][p] = first_sum(channel_sums);
  }
  const size_t stride = static_cast<size_t>(problem.stride);
  const size_t groups = static_cast<size_t>(problem.num_groups);
  for (size_t group = 0; group < groups; ++group) {
    for (int line = 0; line < ahead.lines; ++line, ahead.first += kGroupBytes) __builtin_prefetch(ahead.first);
    Weights columns[Parts];
#pragma GCC unroll 8
    for (int p = 0; p < Parts; ++p) columns[p] = load_weights(weights[p] + group * kGroupBytes);
#pragma GCC unroll 8
    for (int r = 0; r < Rows; ++r) {
      const Factors factors = broadcast_group(activations + r * stride + group * kGroupInputs);
#pragma GCC unroll 8
      for (int p = 0; p < Parts; ++p) sums[r][p] = multiply_add(factors, columns[p], sums[r][p]);
    }
  }
  constexpr int kStride = Parts * kPartChannels;
  alignas(64) int32_t stored[Rows * kStride];
#pragma GCC unroll 8
  for (int r = 0; r < Rows; ++r) {
#pragma GCC unroll 8
    for (int p = 0; p < Parts; ++p) store_sums(stored + r * kStride + p * kPartChannels, sums[r][p]);
  }
  constexpr int kChannels = kStride < kPanelChannels ? kStride : kPanelChannels;
  finish<kChannels, kStride / kChannels>(problem, row, Rows, part * kPartChannels, stored, kStride);
}

template <int Rows, int Parts>
static inline void multiply_rows(const QuantizedProblem& problem, int64_t row, int64_t count, int64_t part, Ahead ahead) {
  if constexpr (Rows > 1) {
    if (count < Rows) return multiply_rows<Rows - 1, Parts>(problem, row, count, part, ahead);
  }
  multiply_tile<Rows, Parts>(problem, row, part, ahead);
}

// Parts at a time through all rows of the block, so that those weights stay in the nearest cache. The first tile would wait for
// memory while the others compute, so meanwhile all of them ask for the weights that come next, a share each.
template <int Parts>
static inline void multiply_parts(const QuantizedProblem& problem, const OutputBlock& block, const NextWeights& next, int64_t part) {
  const int64_t last = block.last_panel * kParts;
  const int64_t rows = block.last_row - block.first_row;
  const int64_t tiles = (rows + kTileRows - 1) / kTileRows;
  const int64_t panel_bytes = (1 + problem.num_groups) * kGroupBytes;
  constexpr int kPanels = (Parts + kParts - 1) / kParts;
  const int64_t lines = (kPanels + tiles - 1) / tiles;  // for each group of each tile
  for (; part + Parts <= last; part += Parts) {
    const int64_t following = part / kParts + kPanels;
    const bool inside = following < block.last_panel;
    const NextWeights wanted = inside ? NextWeights{panel_of(problem, following), block.last_panel - following} : next;
    for (int64_t tile = 0; tile < tiles; ++tile) {  // of nearly equal size
      const int64_t row = rows * tile / tiles;
      const int64_t first = tile * lines;  // panel
      const int64_t left = first < kPanels ? wanted.panels - first : 0;
      const int64_t asked = left < lines ? (left > 0 ? left : 0) : lines;
      const Ahead ahead = {wanted.first + (asked > 0 ? first : 0) * panel_bytes, static_cast<int>(asked)};
      multiply_rows<kTileRows, Parts>(problem, block.first_row + row, rows * (tile + 1) / tiles - row, part, ahead);
    }
  }
  if constexpr (Parts > 1) multiply_parts<Parts / 2>(problem, block, next, part);
}

static void multiply(const QuantizedProblem& problem, const OutputBlock& block, const NextWeights& next) {
  multiply_parts<kTileParts>(problem, block, next, block.first_panel * kParts);
}
