// The product of rows and a packed weight, on accumulators that stay in registers. Included inside a translation unit's own
// namespace, after a vector_*.h.
//
// Each output is one chain of multiply-adds over its inputs, in their order, then the bias: neither the tile nor the block nor
// what else is computed changes a bit of it.

constexpr int kPanelVectors = kPanelColumns / kWidth;
constexpr int kTileVectors = 2;
constexpr int kTileRows = kAccumulators / kTileVectors;
constexpr int kInputsInStep = 4;
constexpr int kInputsAhead = 32;  // 4 KB of a panel: the processor's own prefetching stops at a page's end
constexpr int kMostPanels = 4;    // that are read side by side
constexpr int kLineFloats = 16;  // of a cache line
// Inputs of a piece of a panel: so that it and the next one stay in the second-level cache, where all tiles but the first find
// it; with a single tile nearly in the first.
constexpr int64_t kInputsAtOnce = 1536;
constexpr int64_t kInputsOfOneTile = 384;

// Some rows times some columns, over a piece of the inputs.
struct Tile {
  const float* x;  // the first row and input
  size_t x_stride;
  const float* weight;  // the first input and column
  size_t inputs;
  const float* bias;  // of the first column; null if there is none, or more inputs follow
  float* output;      // the first row and column
  size_t output_stride;
  int64_t columns;  // that exist
  bool begins;      // with the first input; else the sums so far are in `output`
};

// Weights that are asked for while others are multiplied: so many cache lines in each step of kInputsInStep inputs.
struct Ahead {
  const float* first;
  int lines;
};

template <int Rows, int Vectors>
static inline void add_input(Vec (&sums)[Rows][Vectors], const float* x, size_t x_stride, const float* weight) {
  Vec columns[Vectors];
#pragma GCC unroll 8
  for (int v = 0; v < Vectors; ++v) columns[v] = load(weight + v * kWidth);
#pragma GCC unroll 16
  for (int r = 0; r < Rows; ++r) {
    const Vec factor = broadcast(x[r * x_stride]);
#pragma GCC unroll 8
    for (int v = 0; v < Vectors; ++v) sums[r][v] = multiply_add(factor, columns[v], sums[r][v]);
  }
}

// All columns exist.
template <int Rows, int Vectors>
static void multiply_whole_tile(const Tile& tile, Ahead ahead) {
  for (int r = 0; r < Rows; ++r) {  // else stores would wait for memory in the end
    for (int c = 0; c < Vectors * kWidth; c += kLineFloats) __builtin_prefetch(tile.output + r * tile.output_stride + c, 1);
  }
  Vec sums[Rows][Vectors];
#pragma GCC unroll 16
  for (int r = 0; r < Rows; ++r) {
#pragma GCC unroll 8
    for (int v = 0; v < Vectors; ++v) {
      sums[r][v] = tile.begins ? zero() : load(tile.output + r * tile.output_stride + v * kWidth);
    }
  }
  const float* x = tile.x;
  const float* weight = tile.weight;
  const size_t x_stride = tile.x_stride;
  const float* const last = x + tile.inputs;
  for (; x + kInputsInStep <= last; x += kInputsInStep, weight += kInputsInStep * kPanelColumns) {
    for (int line = 0; line < ahead.lines; ++line, ahead.first += kLineFloats) __builtin_prefetch(ahead.first);
#pragma GCC unroll 4
    for (int i = 0; i < kInputsInStep; ++i) add_input(sums, x + i, x_stride, weight + i * kPanelColumns);
  }
  for (; x < last; ++x, weight += kPanelColumns) add_input(sums, x, x_stride, weight);
#pragma GCC unroll 8
  for (int v = 0; v < Vectors; ++v) {
    const Vec bias = tile.bias != nullptr ? load(tile.bias + v * kWidth) : zero();
#pragma GCC unroll 16
    for (int r = 0; r < Rows; ++r) {
      const Vec sum = tile.bias != nullptr ? add(sums[r][v], bias) : sums[r][v];
      store(tile.output + r * tile.output_stride + v * kWidth, sum);
    }
  }
}

// Columns that do not exist are computed beside the output.
template <int Rows, int Vectors>
static inline void multiply_tile(const Tile& tile, Ahead ahead) {
  constexpr int kColumns = Vectors * kWidth;
  if (tile.columns >= kColumns) return multiply_whole_tile<Rows, Vectors>(tile, ahead);
  if (tile.columns <= 0) return;
  float output[Rows * kColumns];
  float bias[kColumns] = {};
  const size_t bytes = static_cast<size_t>(tile.columns) * sizeof(float);
  Tile whole = tile;
  whole.output = output;
  whole.output_stride = kColumns;
  if (tile.bias != nullptr) {
    memcpy(bias, tile.bias, bytes);
    whole.bias = bias;
  }
  if (!tile.begins) {
    for (int r = 0; r < Rows * kColumns; ++r) output[r] = 0.0f;
    for (int r = 0; r < Rows; ++r) memcpy(output + r * kColumns, tile.output + r * tile.output_stride, bytes);
  }
  multiply_whole_tile<Rows, Vectors>(whole, ahead);
  for (int r = 0; r < Rows; ++r) memcpy(tile.output + r * tile.output_stride, output + r * kColumns, bytes);
}

// All columns of a panel in one pass over the rows where there are registers for it, else some after the others.
template <int Rows>
static inline void multiply_rows(const Tile& tile, int64_t rows, Ahead ahead) {
  if constexpr (Rows > 1) {
    if (rows < Rows) return multiply_rows<Rows - 1>(tile, rows, ahead);
  }
  constexpr int kVectors = Rows * kPanelVectors <= kAccumulators ? kPanelVectors : kTileVectors;
  Tile part = tile;
  for (int v = 0; v < kPanelVectors; v += kVectors) {
    multiply_tile<Rows, kVectors>(part, ahead);
    ahead.lines = 0;
    part.weight += kVectors * kWidth;
    part.output += kVectors * kWidth;
    part.columns -= kVectors * kWidth;
    if (part.bias != nullptr) part.bias += kVectors * kWidth;
  }
}

// A piece of a panel's inputs through all rows of the block, so that those weights stay in a cache. The first tile would wait
// for memory while the others compute, so meanwhile all of them ask for the weights that come next, a share each.
static void multiply_piece(const Tile& piece, int64_t rows, const float* next) {
  const int64_t tiles = (rows + kTileRows - 1) / kTileRows;
  const int64_t steps = static_cast<int64_t>(piece.inputs) / kInputsInStep;
  constexpr int64_t kLinesOfStep = kInputsInStep * kPanelColumns / kLineFloats;
  const int64_t lines = (kLinesOfStep + tiles - 1) / tiles;
  for (int64_t i = 0; i < tiles; ++i) {  // of nearly equal size
    const int64_t row = rows * i / tiles;
    Tile tile = piece;
    tile.x += row * static_cast<int64_t>(piece.x_stride);
    tile.output += row * static_cast<int64_t>(piece.output_stride);
    const bool asks = next != nullptr && i * lines < kLinesOfStep;
    const Ahead ahead = {asks ? next + i * lines * steps * kLineFloats : nullptr, asks ? static_cast<int>(lines) : 0};
    multiply_rows<kTileRows>(tile, rows * (i + 1) / tiles - row, ahead);
  }
}

// A few rows times neighbouring panels, all read at once: what bounds is how much of memory is on its way.
template <int Rows, int Panels>
static void stream_panels(const PrepackedProblem& problem, int64_t row, int64_t panel) {
  constexpr int kVectors = Panels * kPanelVectors;
  const size_t panel_floats = static_cast<size_t>(problem.k) * kPanelColumns;
  const size_t x_stride = static_cast<size_t>(problem.x_stride);
  const float* x = problem.x + row * problem.x_stride;
  const float* weight = problem.weight + static_cast<size_t>(panel) * panel_floats;
  Vec sums[Rows][kVectors];
#pragma GCC unroll 4
  for (int r = 0; r < Rows; ++r) {
#pragma GCC unroll 8
    for (int v = 0; v < kVectors; ++v) sums[r][v] = zero();
  }
  for (const float* last = x + problem.k; x < last; ++x, weight += kPanelColumns) {
    Vec factors[Rows];
#pragma GCC unroll 4
    for (int r = 0; r < Rows; ++r) factors[r] = broadcast(x[r * x_stride]);
#pragma GCC unroll 8
    for (int v = 0; v < kVectors; ++v) {
      const float* column = weight + v / kPanelVectors * panel_floats + v % kPanelVectors * kWidth;
      if (v * kWidth % kLineFloats == 0) __builtin_prefetch(column + kInputsAhead * kPanelColumns);
      const Vec weights = load(column);
#pragma GCC unroll 4
      for (int r = 0; r < Rows; ++r) sums[r][v] = multiply_add(factors[r], weights, sums[r][v]);
    }
  }
  const int64_t first = panel * kPanelColumns;
  const int64_t left = problem.n - first;
  const int64_t columns = left < Panels * kPanelColumns ? left : Panels * kPanelColumns;
  for (int r = 0; r < Rows; ++r) {
    float stored[kVectors * kWidth];
#pragma GCC unroll 8
    for (int v = 0; v < kVectors; ++v) store(stored + v * kWidth, sums[r][v]);
    float* output = problem.output + (row + r) * problem.n + first;
    for (int64_t c = 0; c < columns; ++c) output[c] = problem.bias != nullptr ? stored[c] + problem.bias[first + c] : stored[c];
  }
}

// Panels from `panel` to the block's last.
template <int Rows, int Panels>
static inline void stream_rows(const PrepackedProblem& problem, const OutputBlock& block, int64_t panel) {
  for (; panel + Panels <= block.last_panel; panel += Panels) stream_panels<Rows, Panels>(problem, block.first_row, panel);
  if constexpr (Panels > 1) stream_rows<Rows, Panels / 2>(problem, block, panel);
}

// Whether the block has so few rows that there are registers for several panels; then it is done.
template <int Rows>
static inline bool stream(const PrepackedProblem& problem, const OutputBlock& block) {
  constexpr int kPanels = kAccumulators / (Rows * kPanelVectors);
  if constexpr (kPanels > 1) {
    if (block.last_row - block.first_row > Rows) return stream<Rows + 1>(problem, block);
    stream_rows<Rows, kPanels < kMostPanels ? 2 : kMostPanels>(problem, block, block.first_panel);
    return true;
  }
  return false;
}

static void multiply(const PrepackedProblem& problem, const OutputBlock& block, int64_t next_panel) {
  if (stream<1>(problem, block)) return;
  const int64_t rows = block.last_row - block.first_row;
  const int64_t inputs = rows > kTileRows ? kInputsAtOnce : kInputsOfOneTile;
  const int64_t pieces = (problem.k + inputs - 1) / inputs;
  const int64_t panel_floats = problem.k * kPanelColumns;
  for (int64_t panel = block.first_panel; panel < block.last_panel; ++panel) {
    const float* weight = problem.weight + panel * panel_floats;
    const int64_t column = panel * kPanelColumns;
    const int64_t following = panel + 1 < block.last_panel ? panel + 1 : next_panel;
    for (int64_t piece = 0; piece < pieces; ++piece) {
      const int64_t first = problem.k * piece / pieces;
      const int64_t last = problem.k * (piece + 1) / pieces;
      Tile tile{};
      tile.x = problem.x + block.first_row * problem.x_stride + first;
      tile.x_stride = static_cast<size_t>(problem.x_stride);
      tile.weight = weight + first * kPanelColumns;
      tile.inputs = static_cast<size_t>(last - first);
      tile.bias = problem.bias != nullptr && piece + 1 == pieces ? problem.bias + column : nullptr;
      tile.output = problem.output + block.first_row * problem.n + column;
      tile.output_stride = static_cast<size_t>(problem.n);
      tile.columns = problem.n - column;
      tile.begins = piece == 0;
      const float* next = following >= 0 ? problem.weight + following * panel_floats : nullptr;
      if (piece + 1 < pieces) next = weight + last * kPanelColumns;
      multiply_piece(tile, rows, next);
    }
  }
}
