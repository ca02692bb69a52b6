// The two matrix products of attention for a few query rows, on accumulators that stay in registers.
// Included inside a translation unit's own namespace, after a vector_*.h.
//
// Both are C[row][column] += sum over k of A[row][k] * B[k][column], k ascending, one fused multiply-add a step. The chain
// of one element never depends on how many rows or columns run beside it: that is what makes a query's result the same
// bits in a decode of one row and in a prefill of many.

constexpr int kVectorsInStrip = kStrip / kWidth;
constexpr int kScoreStride = kTile + kStrip;          // floats between rows of scores; off a power of two for the cache's sake
constexpr int kRowStride = kMaxHeadSize + kStrip;     // floats between rows of queries and of outputs

static constexpr int power_of_two_up_to(int limit, int most) {
  int n = 1;
  while (2 * n <= limit && 2 * n <= most) n *= 2;
  return n;
}
template <int Rows>
constexpr int kStripsAtOnce = power_of_two_up_to(kAccumulators / (Rows * kVectorsInStrip), kTile / kStrip);
template <int Rows>
constexpr int kVectorsAtOnce = power_of_two_up_to(kAccumulators / Rows, kTile / kWidth);

template <int Value>
struct Constant {
  static constexpr int value = Value;
};

template <int Rows, class Body>
static inline void for_row_group(int row, int count, const Body& body) {
  if constexpr (Rows > 1) {
    if (count < Rows) return for_row_group<Rows - 1>(row, count, body);
  }
  body(Constant<Rows>{}, row);
}

// Calls body(Constant<Rows>, row) for rows [row, row + Rows), in groups of nearly equal size that cover [0, rows).
template <class Body>
static inline void for_row_groups(int rows, const Body& body) {
  const int groups = (rows + kRowsOfMicroKernel - 1) / kRowsOfMicroKernel;
  for (int group = 0; group < groups; ++group) {
    const int row = rows * group / groups;
    for_row_group<kRowsOfMicroKernel>(row, rows * (group + 1) / groups - row, body);
  }
}

// Two ways to lay out the scores of a tile, and then its weights: all tokens of a query row side by side, or all query rows
// of a token.
struct RowMajor {
  static constexpr int kRow = kScoreStride;
  static constexpr int kToken = 1;
};
struct TokenMajor {
  static constexpr int kRow = 1;
  static constexpr int kToken = kScoreStride;
};

// sums[r][c] += factor(r) * column(c). Whichever are fewer stay in registers: with all of the others the sums would not.
template <int Rows, int Columns, class Factor, class Column>
static inline void add_products(Vec (&sums)[Rows][Columns], const Factor& factor, const Column& column) {
  if constexpr (Rows <= Columns) {
    Vec factors[Rows];
#pragma GCC unroll 8
    for (int r = 0; r < Rows; ++r) factors[r] = factor(r);
#pragma GCC unroll 16
    for (int c = 0; c < Columns; ++c) {
      const Vec x = column(c);
#pragma GCC unroll 8
      for (int r = 0; r < Rows; ++r) sums[r][c] = multiply_add(factors[r], x, sums[r][c]);
    }
  } else {
    Vec columns[Columns];
#pragma GCC unroll 16
    for (int c = 0; c < Columns; ++c) columns[c] = column(c);
#pragma GCC unroll 8
    for (int r = 0; r < Rows; ++r) {
      const Vec x = factor(r);
#pragma GCC unroll 16
      for (int c = 0; c < Columns; ++c) sums[r][c] = multiply_add(x, columns[c], sums[r][c]);
    }
  }
}

// What a product asks for while it runs, so that what comes next is in the cache by then: called with the strip at hand and
// each kDimsAhead-th dimension (of keys) or the token in the strip (of values). This one asks for nothing.
constexpr int kDimsAhead = 4;  // divides every head size
struct NothingAhead {
  void operator()(int, int) const {}
};

// Rows of `size` floats, `stride` apart.
struct Matrix {
  const float* rows;
  size_t stride;
  int size;
};

// The right side of a product: strips of 16 columns, each [size] rows of 16 that are `stride` apart.
template <class Element>
struct Strips16 {
  const Element* const* strips;
  int stride;
};

// scores[row][16 * s + t] = left row . column t of strip s, for Strips neighbouring strips from `first` on. Left and right are
// queries and keys, or the other way round.
template <int Rows, int Strips, class Element, class Ahead>
static inline void score_strips(const Matrix& left, const Strips16<Element>& right, int first, float* scores,
                                const Ahead& ahead) {
  constexpr int kColumns = Strips * kVectorsInStrip;
  Vec sums[Rows][kColumns];
#pragma GCC unroll 8
  for (int r = 0; r < Rows; ++r) {
#pragma GCC unroll 16
    for (int c = 0; c < kColumns; ++c) sums[r][c] = zero();
  }
  const Element* columns[Strips];
#pragma GCC unroll 4
  for (int s = 0; s < Strips; ++s) columns[s] = right.strips[first + s];
  size_t offset = 0;
  for (int d = 0; d < left.size;) {
#pragma GCC unroll 4
    for (int s = 0; s < Strips; ++s) ahead(first + s, d);
    for (const int stop = d + kDimsAhead; d < stop; ++d, offset += static_cast<size_t>(right.stride)) {
      const auto factor = [&](int r) { return broadcast(left.rows[r * left.stride + d]); };
      add_products<Rows, kColumns>(
          sums, factor, [&](int c) { return load(columns[c / kVectorsInStrip] + offset + (c % kVectorsInStrip) * kWidth); });
    }
  }
#pragma GCC unroll 8
  for (int r = 0; r < Rows; ++r) {
#pragma GCC unroll 16
    for (int c = 0; c < kColumns; ++c) store(scores + r * kScoreStride + first * kStrip + c * kWidth, sums[r][c]);
  }
}

// Scores of strips [first, last).
template <int Rows, int Strips, class Element, class Ahead>
static inline void score_range(const Matrix& left, const Strips16<Element>& right, int first, int last, float* scores,
                               const Ahead& ahead) {
  for (; first + Strips <= last; first += Strips) score_strips<Rows, Strips>(left, right, first, scores, ahead);
  if constexpr (Strips > 1) score_range<Rows, Strips / 2>(left, right, first, last, scores, ahead);
}

// Tokens [first, last) of a tile.
struct Span {
  int first;
  int last;
};

// The values of a tile: strips of 16 tokens, each token's `size` values `stride` after the last one's.
template <class Element>
struct Values {
  const Element* strips[kTile / kStrip];
  size_t stride;
  int size;
};

template <bool FirstHalf, class Element>
static inline Vec load_part(const Element* p) {
  if constexpr (FirstHalf) {
    return load_first_half(p);
  } else {
    return load(p);
  }
}

// output[row][c] += sum over tokens of the tile of weights[row][token] * value[token][column + c], for Vectors vectors of
// columns. FirstHalf: the (only) vector has 8 of 16 lanes.
template <class Layout, int Rows, int Vectors, bool FirstHalf, class Element, class Ahead>
static inline void add_columns(const float* weights, const Values<Element>& values, Span tokens, int column, float* output,
                               const Ahead& ahead) {
  Vec sums[Rows][Vectors];
#pragma GCC unroll 8
  for (int r = 0; r < Rows; ++r) {
#pragma GCC unroll 16
    for (int c = 0; c < Vectors; ++c) sums[r][c] = load(output + r * kRowStride + c * kWidth);
  }
  for (int token = tokens.first; token < tokens.last;) {
    const int stop = smaller((token / kStrip + 1) * kStrip, tokens.last);
    const Element* row = values.strips[token / kStrip] + static_cast<size_t>(token % kStrip) * values.stride + column;
    for (; token < stop; ++token, row += values.stride) {
      ahead(token / kStrip, token % kStrip);
      const auto factor = [&](int r) { return broadcast(weights[r * Layout::kRow + token * Layout::kToken]); };
      add_products<Rows, Vectors>(sums, factor, [&](int c) { return load_part<FirstHalf>(row + c * kWidth); });
    }
  }
#pragma GCC unroll 8
  for (int r = 0; r < Rows; ++r) {
#pragma GCC unroll 16
    for (int c = 0; c < Vectors; ++c) store(output + r * kRowStride + c * kWidth, sums[r][c]);
  }
}

// add_columns over columns [column, values.size). Scratch rows are padded, value rows are not: hence the half vector.
template <class Layout, int Rows, int Vectors, class Element>
static inline void add_values(const float* weights, const Values<Element>& values, Span tokens, int column, float* output) {
  const NothingAhead nothing;
  for (; column + Vectors * kWidth <= values.size; column += Vectors * kWidth) {
    add_columns<Layout, Rows, Vectors, false>(weights, values, tokens, column, output + column, nothing);
  }
  if constexpr (Vectors > 1) {
    add_values<Layout, Rows, Vectors / 2>(weights, values, tokens, column, output);
  } else if constexpr (kWidth == 16) {
    if (column < values.size) add_columns<Layout, Rows, 1, true>(weights, values, tokens, column, output + column, nothing);
  }
}

// add_values over all columns; the first of them ask ahead.
template <class Layout, int Rows, class Element, class Ahead>
static inline void add_all_values(const float* weights, const Values<Element>& values, Span tokens, float* output,
                                  const Ahead& ahead) {
  constexpr int kVectors = kVectorsAtOnce<Rows>;
  int column = 0;
  if (values.size >= kVectors * kWidth) {
    add_columns<Layout, Rows, kVectors, false>(weights, values, tokens, 0, output, ahead);
    column = kVectors * kWidth;
  }
  add_values<Layout, Rows, kVectors>(weights, values, tokens, column, output);
}

template <class Layout, class Element>
static inline void add_values_to_row(const float* weights, const Values<Element>& values, Span tokens, float* output) {
  if (tokens.first < tokens.last) add_values<Layout, 1, kVectorsAtOnce<1>>(weights, values, tokens, 0, output);
}

// output[row] += the weighted values of tokens [first[row], last[row]) of the tile. Both rise with the row.
// Tokens that all rows see go together; what only some see, before and after those, goes row by row, still in order.
template <class Layout, int Rows, class Element, class Ahead>
static inline void add_seen_values(const float* weights, const Values<Element>& values, const int* first, const int* last,
                                   float* output, const Ahead& ahead) {
  const bool shared = first[Rows - 1] < last[0];
  const int shared_first = shared ? first[Rows - 1] : kTile;
  const int shared_last = shared ? last[0] : kTile;
  for (int r = 0; r < Rows; ++r) {
    const Span before{first[r], smaller(last[r], shared_first)};
    add_values_to_row<Layout>(weights + r * Layout::kRow, values, before, output + r * kRowStride);
  }
  if (shared) add_all_values<Layout, Rows>(weights, values, {shared_first, shared_last}, output, ahead);
  for (int r = 0; r < Rows; ++r) {
    add_values_to_row<Layout>(weights + r * Layout::kRow, values, {shared_last, last[r]}, output + r * kRowStride);
  }
}
