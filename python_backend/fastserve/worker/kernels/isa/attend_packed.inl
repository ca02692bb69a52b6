// Attention of one work item of packed sequences. Included inside a translation unit's own namespace.
//
// Online softmax over tiles of keys as in attend.inl, but with the scores the other way round: a vector holds the scores of
// consecutive queries for one key.
//
//            query 0 .. 15 | 16 .. 31 | ...
//   key 0      s             s            largest score and sum of weights of a query: down its lane, never across lanes
//   key 1      s             s            keys and values: read where they lie, whatever their stride
//
// Only the queries are copied, transposed and scaled. A query's result is a function of its sequence, its head and its
// index alone.

struct PackedScratch {
  alignas(64) float query[kMaxHeadSize * kMaxRows];  // scaled; strips of 16 queries, each [head_size] rows of 16
  alignas(64) float output[kMaxRows * kRowStride];   // sum of weights * values so far
  alignas(64) float scores[kTile * kScoreStride];    // of key and query, then weights
  alignas(64) float largest[kMaxRows];
  alignas(64) float total[kMaxRows];
  alignas(64) float rescale[kMaxRows];
};

// Keys [first, first + count) of the sequence, and their values.
struct PackedTile {
  int64_t first;
  int count;
  Matrix keys;
  Values<float> values;
};

static inline size_t row_offset(const PackedItem& item, int64_t index, int64_t stride) {
  return static_cast<size_t>((item.first_token + index) * stride);
}

// Lanes beyond the last query repeat it; nobody reads what comes out of them.
static void load_queries(const PackedProblem& problem, const PackedItem& item, PackedScratch& scratch) {
  const Vec scale = broadcast(problem.scale);
  const float* queries = problem.query + row_offset(item, item.first_query, problem.query_stride) +
                         static_cast<size_t>(item.head) * problem.head_size;
  for (int first = 0; first < item.num_queries; first += kWidth) {
    const float* rows[kWidth];
    for (int i = 0; i < kWidth; ++i) rows[i] = queries + smaller(first + i, item.num_queries - 1) * problem.query_stride;
    float* columns = scratch.query + first / kStrip * kStrip * problem.head_size + first % kStrip;
    for (int d = 0; d < problem.head_size; d += 8) {
      Vec loaded[8];
      load_columns(rows, d, loaded);
#pragma GCC unroll 8
      for (int k = 0; k < 8; ++k) store(columns + (d + k) * kStrip, multiply(loaded[k], scale));
    }
  }
}

static void start_queries(const PackedProblem& problem, const PackedItem& item, PackedScratch& scratch) {
  load_queries(problem, item, scratch);
  for (int q = 0; q < kMaxRows; ++q) scratch.largest[q] = -__builtin_inff();
  for (int q = 0; q < kMaxRows; ++q) scratch.total[q] = 0.0f;
  for (int q = 0; q < item.num_queries; ++q) {
    for (int d = 0; d < problem.head_size; d += kWidth) store(scratch.output + q * kRowStride + d, zero());
  }
}

static void score_keys(const PackedItem& item, const PackedTile& tile, PackedScratch& scratch) {
  const float* strips[kMaxRows / kStrip];
  const int num_strips = (item.num_queries + kStrip - 1) / kStrip;
  for (int s = 0; s < num_strips; ++s) strips[s] = scratch.query + s * kStrip * tile.keys.size;
  for_row_groups(tile.count, [&](auto count, int row) {
    constexpr int kRows = count.value;
    const Matrix keys{tile.keys.rows + row * tile.keys.stride, tile.keys.stride, tile.keys.size};
    score_range<kRows, kStripsAtOnce<kRows>>(keys, Strips16<float>{strips, kStrip}, 0, num_strips,
                                             scratch.scores + row * kScoreStride, NothingAhead{});
  });
}

// Else a windowed query could have no largest score yet, and a weight of exp(infinity - infinity).
static_assert(kTile >= kMaxRows, "every query of an item sees a key of the item's first tile");

// Turns scores into weights for the kWidth queries from `query` on. Masked: some of them do not see some keys of the tile.
template <bool Masked>
static inline void soften_queries(const PackedItem& item, const PackedTile& tile, int64_t window, int query,
                                  PackedScratch& scratch) {
  float* scores = scratch.scores + query;
  const Vec before = load(scratch.largest + query);
  Vec largest = before;
  for (int k = 0; k < tile.count; ++k) {
    Vec x = load(scores + k * kScoreStride);
    if constexpr (Masked) {
      const int64_t offset = tile.first + k - item.first_query - query;  // lane that stands at the key's own position
      const int first = static_cast<int>(larger(int64_t{0}, offset - window));
      const int last = static_cast<int>(larger(int64_t{0}, smaller(int64_t{kWidth}, offset + window + 1)));
      x = keep_lanes(x, first, last, broadcast(-__builtin_inff()));
      store(scores + k * kScoreStride, x);
    }
    largest = maximum(x, largest);
  }
  const Vec rescale = exponential(subtract(before, largest));
  Vec sums = zero();
  for (int k = 0; k < tile.count; ++k) {
    const Vec weights = exponential(subtract(load(scores + k * kScoreStride), largest));  // 0 where masked
    store(scores + k * kScoreStride, weights);
    sums = add(sums, weights);
  }
  const Vec total = load(scratch.total + query);
  store(scratch.largest + query, largest);
  store(scratch.rescale + query, select_less(zero(), total, rescale, broadcast(1.0f)));  // 0 so far stays 0
  store(scratch.total + query, multiply_add(total, rescale, sums));
}

// What the queries have so far, in terms of their new largest scores.
static void rescale_outputs(const PackedProblem& problem, const PackedItem& item, PackedScratch& scratch) {
  for (int q = 0; q < item.num_queries; ++q) {
    if (scratch.rescale[q] == 1.0f) continue;
    const Vec factor = broadcast(scratch.rescale[q]);
    float* output = scratch.output + q * kRowStride;
    for (int d = 0; d < problem.head_size; d += kWidth) store(output + d, multiply(load(output + d), factor));
  }
}

static void add_outputs(const PackedProblem& problem, const PackedItem& item, const PackedTile& tile, PackedScratch& scratch) {
  for_row_groups(item.num_queries, [&](auto count, int row) {
    constexpr int kRows = count.value;
    int first[kRows];
    int last[kRows];
    for (int r = 0; r < kRows; ++r) {
      const int64_t offset = item.first_query + row + r - tile.first;  // key at the query's own position
      first[r] = static_cast<int>(smaller(int64_t{tile.count}, larger(int64_t{0}, offset - problem.window)));
      last[r] = static_cast<int>(larger(int64_t{0}, smaller(int64_t{tile.count}, offset + problem.window + 1)));
    }
    add_seen_values<TokenMajor, kRows>(scratch.scores + row, tile.values, first, last, scratch.output + row * kRowStride,
                                         NothingAhead{});
  });
}

static void attend_packed_tile(const PackedProblem& problem, const PackedItem& item, const PackedTile& tile,
                               PackedScratch& scratch) {
  score_keys(item, tile, scratch);
  const bool all_see_all = tile.first + tile.count - 1 - item.first_query <= problem.window &&
                           item.first_query + item.num_queries - 1 - tile.first <= problem.window;
  for (int query = 0; query < item.num_queries; query += kWidth) {
    if (all_see_all) {
      soften_queries<false>(item, tile, problem.window, query, scratch);
    } else {
      soften_queries<true>(item, tile, problem.window, query, scratch);
    }
  }
  rescale_outputs(problem, item, scratch);
  add_outputs(problem, item, tile, scratch);
}

// A template for the sake of the half vector, which only the widest instruction set has.
template <class Element>
static inline void write_scaled(const Element* from, Vec factor, Element* to, int size) {
  int d = 0;
  for (; d + kWidth <= size; d += kWidth) store(to + d, multiply(load(from + d), factor));
  if constexpr (kWidth == 16) {
    if (d < size) store_first_half(to + d, multiply(load_first_half(from + d), factor));
  }
}

static void finish_queries(const PackedProblem& problem, const PackedItem& item, const PackedScratch& scratch) {
  const int64_t stride = static_cast<int64_t>(problem.num_heads) * problem.head_size;
  float* output =
      problem.output + row_offset(item, item.first_query, stride) + static_cast<size_t>(item.head) * problem.head_size;
  for (int q = 0; q < item.num_queries; ++q) {
    write_scaled(scratch.output + q * kRowStride, broadcast(1.0f / scratch.total[q]), output + q * stride, problem.head_size);
  }
}

static void attend_packed(const PackedProblem& problem, const PackedItem& item) {
  PackedScratch scratch;
  start_queries(problem, item, scratch);
  const int kv_head = item.head / (problem.num_heads / problem.kv_num_heads);
  const size_t head = static_cast<size_t>(kv_head) * problem.head_size;
  const int64_t last = smaller(int64_t{item.length}, item.first_query + item.num_queries + problem.window);
  PackedTile tile;
  tile.values.stride = static_cast<size_t>(problem.key_stride);
  tile.values.size = problem.head_size;
  for (tile.first = larger(int64_t{0}, item.first_query - problem.window); tile.first < last; tile.first += kTile) {
    tile.count = static_cast<int>(smaller(int64_t{kTile}, last - tile.first));
    const size_t offset = row_offset(item, tile.first, problem.key_stride) + head;
    tile.keys = {problem.key + offset, static_cast<size_t>(problem.key_stride), problem.head_size};
    for (int s = 0; s * kStrip < tile.count; ++s)
      tile.values.strips[s] = problem.value + offset + static_cast<size_t>(s * kStrip * problem.key_stride);
    attend_packed_tile(problem, item, tile, scratch);
  }
  finish_queries(problem, item, scratch);
}
