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

// scores[row][16 * s + t] = query row . key of token t in strip s, for Strips neighbouring strips.
template <int Rows, int Strips, class Element>
static inline void score_strips(const float* query, const Element* const* key_strips, int head_size, int block_size,
                                float* scores) {
  constexpr int kColumns = Strips * kVectorsInStrip;
  Vec sums[Rows][kColumns];
#pragma GCC unroll 8
  for (int r = 0; r < Rows; ++r) {
#pragma GCC unroll 16
    for (int c = 0; c < kColumns; ++c) sums[r][c] = zero();
  }
  const Element* keys[Strips];
#pragma GCC unroll 4
  for (int s = 0; s < Strips; ++s) keys[s] = key_strips[s];
  size_t offset = 0;
  for (int d = 0; d < head_size; ++d, offset += static_cast<size_t>(block_size)) {
    Vec factor[Rows];
#pragma GCC unroll 8
    for (int r = 0; r < Rows; ++r) factor[r] = broadcast(query[r * kRowStride + d]);
#pragma GCC unroll 16
    for (int c = 0; c < kColumns; ++c) {
      const Vec key = load(keys[c / kVectorsInStrip] + offset + (c % kVectorsInStrip) * kWidth);
#pragma GCC unroll 8
      for (int r = 0; r < Rows; ++r) sums[r][c] = multiply_add(factor[r], key, sums[r][c]);
    }
  }
#pragma GCC unroll 8
  for (int r = 0; r < Rows; ++r) {
#pragma GCC unroll 16
    for (int c = 0; c < kColumns; ++c) store(scores + r * kScoreStride + c * kWidth, sums[r][c]);
  }
}

// Scores of strips [first, last) of a tile.
template <int Rows, int Strips, class Element>
static inline void score_range(const float* query, const Element* const* key_strips, int first, int last, int head_size,
                               int block_size, float* scores) {
  for (; first + Strips <= last; first += Strips) {
    score_strips<Rows, Strips>(query, key_strips + first, head_size, block_size, scores + first * kStrip);
  }
  if constexpr (Strips > 1) score_range<Rows, Strips / 2>(query, key_strips, first, last, head_size, block_size, scores);
}

template <bool FirstHalf, class Element>
static inline Vec load_columns(const Element* p) {
  if constexpr (FirstHalf) {
    return load_first_half(p);
  } else {
    return load(p);
  }
}

// output[row][column] += sum over tokens [first, last) of the tile of weights[row][token] * value[token][column],
// for Vectors vectors of columns. FirstHalf: the (only) vector has 8 of 16 lanes.
template <int Rows, int Vectors, bool FirstHalf, class Element>
static inline void add_columns(const float* weights, const Element* const* value_strips, int first, int last, int head_size,
                               float* output) {
  Vec sums[Rows][Vectors];
#pragma GCC unroll 8
  for (int r = 0; r < Rows; ++r) {
#pragma GCC unroll 16
    for (int c = 0; c < Vectors; ++c) sums[r][c] = load(output + r * kRowStride + c * kWidth);
  }
  for (int token = first; token < last;) {
    const int stop = smaller((token / kStrip + 1) * kStrip, last);
    const Element* values = value_strips[token / kStrip] + static_cast<size_t>(token % kStrip) * head_size;
    for (; token < stop; ++token, values += head_size) {
      Vec factor[Rows];
#pragma GCC unroll 8
      for (int r = 0; r < Rows; ++r) factor[r] = broadcast(weights[r * kScoreStride + token]);
#pragma GCC unroll 16
      for (int c = 0; c < Vectors; ++c) {
        const Vec value = load_columns<FirstHalf>(values + c * kWidth);
#pragma GCC unroll 8
        for (int r = 0; r < Rows; ++r) sums[r][c] = multiply_add(factor[r], value, sums[r][c]);
      }
    }
  }
#pragma GCC unroll 8
  for (int r = 0; r < Rows; ++r) {
#pragma GCC unroll 16
    for (int c = 0; c < Vectors; ++c) store(output + r * kRowStride + c * kWidth, sums[r][c]);
  }
}

// add_columns over columns [column, head_size). Scratch rows are padded, cache rows are not: hence the half vector.
template <int Rows, int Vectors, class Element>
static inline void add_values(const float* weights, const Element* const* value_strips, int first, int last, int head_size,
                              int column, float* output) {
  const Element* strips[kTile / kStrip];
  for (; column + Vectors * kWidth <= head_size; column += Vectors * kWidth) {
    for (int s = first / kStrip; s * kStrip < last; ++s) strips[s] = value_strips[s] + column;
    add_columns<Rows, Vectors, false>(weights, strips, first, last, head_size, output + column);
  }
  if constexpr (Vectors > 1) {
    add_values<Rows, Vectors / 2>(weights, value_strips, first, last, head_size, column, output);
  } else if constexpr (kWidth == 16) {
    if (column < head_size) {
      for (int s = first / kStrip; s * kStrip < last; ++s) strips[s] = value_strips[s] + column;
      add_columns<Rows, 1, true>(weights, strips, first, last, head_size, output + column);
    }
  }
}
