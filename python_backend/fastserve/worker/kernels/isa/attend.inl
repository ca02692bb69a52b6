// Attention of one work item over the paged cache. Included inside a translation unit's own namespace.
//
// Online softmax (Milakov & Gimelshein, 2018) over tiles of keys and values, as in FlashAttention (Dao et al., 2022), on
// blocks found through a block table (PagedAttention, Kwon et al., 2023):
//
//   positions   0 ........ 63 | 64 ....... 127 | 128 ...        tiles are aligned to absolute positions
//   row p       m, l, o       -> rescale, add   -> ...            m: largest score, l: sum of weights, o: weighted values
//
// A row's result is a function of its query, its position and the visible cache content only: tiles do not move with the
// chunk, tokens a row does not see are never added, and every sum runs in one fixed order (see micro_kernels.inl).

struct Scratch {
  alignas(64) float query[kMaxRows * kRowStride];   // scaled
  alignas(64) float output[kMaxRows * kRowStride];  // sum of weights * values so far
  alignas(64) float scores[kRowsOfMicroKernel * kScoreStride];
  float largest[kMaxRows];
  float total[kMaxRows];
};

template <class Element>
struct Tile {
  int64_t first_position;
  const Element* keys[kTile / kStrip];  // each [head_size] rows of 16 tokens, block_size apart
  Values<Element> values;
};

struct Visible {
  int64_t first;
  int64_t last;  // exclusive
};

// Cache positions that row `row` of the item sees.
static inline Visible visible_to(const AttentionProblem& problem, const WorkItem& item, int row) {
  const int64_t position = static_cast<int64_t>(problem.past_seqlens[item.sequence]) + item.first_query + row / item.num_heads;
  return {larger(int64_t{0}, position - problem.window + 1), position + 1};
}

// The query token (row of the packed tensors) behind a row of the item.
static inline size_t token_of(const AttentionProblem& problem, const WorkItem& item, int row) {
  return static_cast<size_t>(problem.cumulative_sequence_length[item.sequence]) + item.first_query + row / item.num_heads;
}

static void start_rows(const AttentionProblem& problem, const WorkItem& item, Scratch& scratch) {
  const int rows = item.num_queries * item.num_heads;
  for (int row = 0; row < rows; ++row) {
    const size_t token = token_of(problem, item, row);
    const size_t head = static_cast<size_t>(item.first_head + row % item.num_heads);
    float* scaled = scratch.query + row * kRowStride;
    float* output = scratch.output + row * kRowStride;
    change_row(problem.query_change, problem.query + token * problem.query_stride + head * problem.head_size, problem.head_size,
               problem.positions[token], scaled);
    for (int d = 0; d < problem.head_size; ++d) scaled[d] *= problem.scale;
    for (int d = 0; d < problem.head_size + kStrip / 2; ++d) output[d] = 0.0f;
    // A sink is one more logit that has no value.
    scratch.largest[row] =
        problem.head_sink != nullptr ? problem.head_sink[item.first_head + row % item.num_heads] : -__builtin_inff();
    scratch.total[row] = problem.head_sink != nullptr ? 1.0f : 0.0f;
  }
}

static void finish_rows(const AttentionProblem& problem, const WorkItem& item, const Scratch& scratch) {
  const int rows = item.num_queries * item.num_heads;
  for (int row = 0; row < rows; ++row) {
    const float* sums = scratch.output + row * kRowStride;
    const size_t head = static_cast<size_t>(item.first_head + row % item.num_heads);
    float* output = problem.output + (token_of(problem, item, row) * problem.num_heads + head) * problem.head_size;
    for (int d = 0; d < problem.head_size; ++d) output[d] = sums[d] / scratch.total[row];
  }
}

// Finds the strips of the tile that hold positions in [visible.first, visible.last); other pointers stay unset.
template <class Element>
static inline void locate(const AttentionProblem& problem, const WorkItem& item, Visible visible, Tile<Element>& tile) {
  const int32_t* blocks = problem.block_table + item.sequence * problem.max_blocks;
  const size_t head_elements = static_cast<size_t>(problem.head_size) * problem.block_size;
  for (int s = 0; s < kTile / kStrip; ++s) {
    const int64_t position = tile.first_position + s * kStrip;
    if (position + kStrip <= visible.first || position >= visible.last) continue;
    const size_t head = static_cast<size_t>(blocks[position / problem.block_size]) * problem.kv_num_heads + item.kv_head;
    const size_t offset = static_cast<size_t>(position % problem.block_size);
    tile.keys[s] = static_cast<const Element*>(problem.key_cache) + head * head_elements + offset;
    tile.values.strips[s] = static_cast<const Element*>(problem.value_cache) + head * head_elements + offset * problem.head_size;
  }
}

// Asks for the strips of a tile ahead of use: a block of one head is often just one memory page, where the processor's own
// prefetching ends.
template <class Element>
static inline void prefetch(const AttentionProblem& problem, Visible visible, const Tile<Element>& tile) {
  constexpr int kLine = 64 / sizeof(Element);
  for (int s = 0; s < kTile / kStrip; ++s) {
    const int64_t position = tile.first_position + s * kStrip;
    if (position + kStrip <= visible.first || position >= visible.last) continue;
    for (int d = 0; d < problem.head_size; ++d) __builtin_prefetch(tile.keys[s] + static_cast<size_t>(d) * problem.block_size);
    for (int i = 0; i < kStrip * problem.head_size; i += kLine) __builtin_prefetch(tile.values.strips[s] + i);
  }
}

// Turns a row's scores of tokens [first, last) of the tile into weights, and rescales what the row has so far.
static inline void soften(const AttentionProblem& problem, int first, int last, float* scores, float* output, float& largest,
                          float& total) {
  const int first_vector = first / kWidth;
  const int last_vector = (last + kWidth - 1) / kWidth;
  const Vec nothing = broadcast(-__builtin_inff());
  Vec peaks = nothing;
  for (int v = first_vector; v < last_vector; ++v) {
    Vec x = load(scores + v * kWidth);
    if (problem.softcap != 0.0f) {
      const Vec cap = broadcast(problem.softcap);
      x = multiply(cap, hyperbolic_tangent(divide(x, cap)));
    }
    x = keep_lanes(x, first - v * kWidth, last - v * kWidth, nothing);
    store(scores + v * kWidth, x);
    peaks = maximum(peaks, x);
  }
  const float peak = largest_lane(peaks);
  const float new_largest = peak > largest ? peak : largest;
  Vec sums = zero();
  for (int v = first_vector; v < last_vector; ++v) {
    const Vec weights = exponential(subtract(load(scores + v * kWidth), broadcast(new_largest)));  // 0 where masked
    store(scores + v * kWidth, weights);
    sums = add(sums, weights);
  }
  const float rescale = new_largest == largest ? 1.0f : exponential(largest - new_largest);
  total = total * rescale + sum_lanes(sums);
  largest = new_largest;
  if (rescale != 1.0f) {
    const Vec factor = broadcast(rescale);
    for (int d = 0; d < problem.head_size; d += kWidth) store(output + d, multiply(load(output + d), factor));
  }
}

// Rows [row, row + Rows) of the item against one tile. Positions rise with the row, and so do both ends of what it sees.
template <int Rows, class Element>
static inline void attend_tile(const AttentionProblem& problem, const WorkItem& item, const Tile<Element>& tile, int row,
                               Scratch& scratch) {
  int first[Rows];
  int last[Rows];
  for (int r = 0; r < Rows; ++r) {
    const Visible visible = visible_to(problem, item, row + r);
    first[r] = static_cast<int>(smaller(larger(visible.first - tile.first_position, int64_t{0}), int64_t{kTile}));
    last[r] = static_cast<int>(smaller(larger(visible.last - tile.first_position, int64_t{0}), int64_t{kTile}));
  }
  if (first[0] >= last[Rows - 1]) return;
  float* scores = scratch.scores;
  float* output = scratch.output + row * kRowStride;
  const Matrix queries{scratch.query + row * kRowStride, kRowStride, problem.head_size};
  score_range<Rows, kStripsAtOnce<Rows>>(queries, tile.keys, first[0] / kStrip, (last[Rows - 1] + kStrip - 1) / kStrip,
                                         problem.block_size, scores);
  for (int r = 0; r < Rows; ++r) {
    if (first[r] >= last[r]) continue;
    soften(problem, first[r], last[r], scores + r * kScoreStride, output + r * kRowStride, scratch.largest[row + r],
           scratch.total[row + r]);
  }
  add_seen_values<RowMajor, Rows>(scores, tile.values, first, last, output);
}

template <class Element>
static void attend(const AttentionProblem& problem, const WorkItem& item) {
  Scratch scratch;
  const int rows = item.num_queries * item.num_heads;
  const Visible visible{visible_to(problem, item, 0).first, visible_to(problem, item, rows - 1).last};
  start_rows(problem, item, scratch);
  Tile<Element> tile{};
  Tile<Element> next{};
  next.values.stride = static_cast<size_t>(problem.head_size);
  next.values.size = problem.head_size;
  next.first_position = visible.first / kTile * kTile;
  locate(problem, item, visible, next);
  while (next.first_position < visible.last) {
    tile = next;
    next.first_position += kTile;
    locate(problem, item, visible, next);
    if (rows <= kRowsOfMicroKernel) prefetch(problem, visible, next);
    for_row_groups(rows, [&](auto count, int row) { attend_tile<count.value>(problem, item, tile, row, scratch); });
  }
  finish_rows(problem, item, scratch);
}
