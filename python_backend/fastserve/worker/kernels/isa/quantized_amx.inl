// The product of quantised rows and packed weights on AMX tiles: 16 group rows of a panel are one tile as they lie.
// Included inside a translation unit's own namespace, after quantized_tiles.inl, whose kernel takes what is too small.
//
//   tiles  0 1 = rows 0-15  of channels 0-15, 16-31       4 5 = activations of rows 0-15, 16-31
//          2 3 = rows 16-31                               6 7 = weights of channels 0-15, 16-31

constexpr int kTileSide = 16;                            // rows of a tile, and channels
constexpr int kTileInputs = 64;                          // inputs of one tile of activations or weights
constexpr int kTileGroups = kTileInputs / kGroupInputs;
constexpr int kTileBytes = kTileSide * kTileInputs;
constexpr int kSquare = 2 * kTileSide;                   // rows, and channels, of what is computed at once
constexpr int64_t kVectorRows = 4;                       // up to this, vectors are as fast

struct TileShapes {  // the operand of LDTILECFG
  uint8_t palette;
  uint8_t start_row;
  uint8_t reserved[14];
  uint16_t row_bytes[16];
  uint8_t rows[16];
};

// For `rows` (1 to 32) rows: a tile has only those, so nothing behind the last row is read.
static void shape_tiles(int rows) {
  const uint8_t upper = static_cast<uint8_t>(rows < kTileSide ? rows : kTileSide);
  const uint8_t lower = static_cast<uint8_t>(rows > kTileSide ? rows - kTileSide : 0);
  const uint8_t tile_rows[8] = {upper, upper, lower, lower, upper, lower, kTileSide, kTileSide};
  TileShapes shapes = {};
  shapes.palette = 1;
  for (int i = 0; i < 8; ++i) {
    shapes.rows[i] = tile_rows[i];
    shapes.row_bytes[i] = tile_rows[i] > 0 ? 64 : 0;
  }
  _tile_loadconfig(&shapes);
}

// One or two neighbouring panels, and their last groups when those are fewer than a tile, filled up with zeros.
struct Columns {
  const int8_t* panel[2];
  alignas(64) int8_t first_sums[2][kGroupBytes];
  alignas(64) int8_t rest[2][kTileBytes];
};

static void locate_columns(const QuantizedProblem& problem, int64_t panel, int count, Columns& columns) {
  const int64_t whole = problem.num_groups / kTileGroups * kTileGroups;
  const size_t rest = static_cast<size_t>(problem.num_groups - whole) * kGroupBytes;
  for (int i = 0; i < count; ++i) {
    columns.panel[i] = panel_of(problem, panel + i) + kGroupBytes;
    const Sum first = first_sum(columns.panel[i] - kGroupBytes);
    memcpy(columns.first_sums[i], &first, sizeof first);
    if (rest == 0) continue;
    memcpy(columns.rest[i], columns.panel[i] + whole * kGroupBytes, rest);
    memset(columns.rest[i] + rest, 0, kTileBytes - rest);
  }
}

template <bool Lower, bool Right>
static inline void multiply_step(const uint8_t* activations, int64_t stride, const int8_t* left, const int8_t* right) {
  _tile_loadd(6, left, kGroupBytes);
  _tile_loadd(4, activations, stride);
  _tile_dpbusd(0, 4, 6);
  if constexpr (Right) {
    _tile_loadd(7, right, kGroupBytes);
    _tile_dpbusd(1, 4, 7);
  }
  if constexpr (Lower) {
    _tile_loadd(5, activations + kTileSide * stride, stride);
    _tile_dpbusd(2, 5, 6);
    if constexpr (Right) _tile_dpbusd(3, 5, 7);
  }
}

// Up to 32 rows from `row` times the columns. Lower: more than 16 rows; Right: two panels.
template <bool Lower, bool Right>
static void multiply_square(const QuantizedProblem& problem, const Columns& columns, int64_t row, int count, int64_t channel) {
  const uint8_t* activations = static_cast<const uint8_t*>(problem.activations) + row * problem.stride;
  const int64_t steps = problem.num_groups / kTileGroups;
  _tile_loadd(0, columns.first_sums[0], 0);  // the same for every row
  if constexpr (Right) _tile_loadd(1, columns.first_sums[1], 0);
  if constexpr (Lower) _tile_loadd(2, columns.first_sums[0], 0);
  if constexpr (Lower && Right) _tile_loadd(3, columns.first_sums[1], 0);
  for (int64_t step = 0; step < steps; ++step) {
    multiply_step<Lower, Right>(activations + step * kTileInputs, problem.stride, columns.panel[0] + step * kTileBytes,
                                columns.panel[Right] + step * kTileBytes);
  }
  if (problem.num_groups % kTileGroups != 0) {
    multiply_step<Lower, Right>(activations + steps * kTileInputs, problem.stride, columns.rest[0], columns.rest[Right]);
  }
  alignas(64) int32_t sums[kSquare * kSquare];
  constexpr int kStride = kSquare * sizeof(int32_t);
  _tile_stored(0, sums, kStride);
  if constexpr (Right) _tile_stored(1, sums + kTileSide, kStride);
  if constexpr (Lower) _tile_stored(2, sums + kTileSide * kSquare, kStride);
  if constexpr (Lower && Right) _tile_stored(3, sums + kTileSide * kSquare + kTileSide, kStride);
  finish<kTileSide, Right ? 2 : 1>(problem, row, count, channel, sums, kSquare);
}

// Rows of the block from `first` on, `rows` at a time (the last ones are left when they are fewer), for two panels at a time.
template <bool Lower>
static void multiply_band(const QuantizedProblem& problem, const OutputBlock& block, int64_t first, int rows) {
  shape_tiles(rows);
  Columns columns;
  for (int64_t panel = block.first_panel; panel < block.last_panel; panel += 2) {
    const bool two = panel + 1 < block.last_panel;
    locate_columns(problem, panel, two ? 2 : 1, columns);
    for (int64_t row = first; row + rows <= block.last_row; row += rows) {
      if (two) {
        multiply_square<Lower, true>(problem, columns, row, rows, panel * kPanelChannels);
      } else {
        multiply_square<Lower, false>(problem, columns, row, rows, panel * kPanelChannels);
      }
    }
  }
}

static void multiply_with_tiles(const QuantizedProblem& problem, const OutputBlock& block, const NextWeights& next) {
  if (block.last_row - block.first_row <= kVectorRows) return multiply(problem, block, next);
  if (block.first_row + kSquare <= block.last_row) multiply_band<true>(problem, block, block.first_row, kSquare);
  const int rest = static_cast<int>((block.last_row - block.first_row) % kSquare);
  if (rest > kTileSide) multiply_band<true>(problem, block, block.last_row - rest, rest);
  if (rest > 0 && rest <= kTileSide) multiply_band<false>(problem, block, block.last_row - rest, rest);
  _tile_release();
}
