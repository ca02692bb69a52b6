// Attention of one work item over the paged cache. Included inside a translation unit's own namespace.
//
// Online softmax (Milakov & Gimelshein, 2018) over tiles of keys and values, as in FlashAttention (Dao et al., 2022), on
// blocks found through a block table (PagedAttention, Kwon et al., 2023). The tiles of a span are summed up from nothing and
// then combined with the spans before it, so that the spans of a long context can be computed by several threads:
//
//   positions   0 ........ 63 | 64 ....... 127 | ...  511 | 512 ...      tiles and spans are aligned to absolute positions
//   row p       m, l, o       -> rescale, add   -> ...     | m, l, o ->  m: largest score, l: sum of weights, o: weighted values
//                                         span 0 ----------+-- combine, in order --> result
//
// A row's result is a function of its query, its position and the visible cache content only: tiles and spans do not move
// with the chunk, tokens a row does not see are never added, and every sum runs in one fixed order (see micro_kernels.inl),
// whichever thread computes which span.

// What a row has so far.
struct Sums {
  float* output;  // weighted values
  float largest;  // score
  float total;    // of weights
};

struct Scratch {
  alignas(64) float query[kMaxRows * kRowStride];   // scaled
  alignas(64) float output[kMaxRows * kRowStride];  // of the span at hand
  alignas(64) float before[kMaxRows * kRowStride];  // of the spans before it
  alignas(64) float scores[kRowsOfMicroKernel * kScoreStride];
  Visible visible[kMaxRows];  // to each row
  Sums span[kMaxRows];
  Sums sums[kMaxRows];
};

// The token (row of the packed tensors) of a query of the item.
static inline size_t token_of(const AttentionProblem& problem, const WorkItem& item, int query) {
  return static_cast<size_t>(problem.cumulative_sequence_length[item.sequence]) + item.first_query + query;
}

// Calls body(row, query, head) for each row of the item; the heads of a query are neighbouring rows.
template <class Body>
static inline void for_rows(const WorkItem& item, const Body& body) {
  for (int query = 0, row = 0; query < item.num_queries; ++query) {
    for (int head = item.first_head; head < item.first_head + item.num_heads; ++head, ++row) body(row, query, head);
  }
}

static inline void clear(Sums& sums, int head_size) {
  for (int d = 0; d < head_size; d += kWidth) store(sums.output + d, zero());
  sums.largest = -__builtin_inff();
  sums.total = 0.0f;
}

// Nothing, or the head's sink, which is one more score that has no value.
static inline void start(const AttentionProblem& problem, int head, Sums& sums) {
  clear(sums, problem.head_size);
  if (problem.head_sink == nullptr) return;
  sums.largest = problem.head_sink[head];
  sums.total = 1.0f;
}

// Adds the sums of one span to those of the spans before it. A span of which the row sees nothing changes nothing; the first
// that it sees is taken as it is.
static inline void combine(const Sums& span, int head_size, Sums& sums) {
  if (span.total == 0.0f) return;
  if (sums.total == 0.0f) {
    for (int d = 0; d < head_size; d += kWidth) store(sums.output + d, load(span.output + d));
    sums.total = span.total;
    sums.largest = span.largest;
    return;
  }
  const float largest = span.largest > sums.largest ? span.largest : sums.largest;
  const float old_factor = exponential(sums.largest - largest);
  const float new_factor = exponential(span.largest - largest);
  const Vec factor = broadcast(old_factor);
  const Vec span_factor = broadcast(new_factor);
  for (int d = 0; d < head_size; d += kWidth) {
    store(sums.output + d, multiply_add(load(span.output + d), span_factor, multiply(load(sums.output + d), factor)));
  }
  sums.total = sums.total * old_factor + span.total * new_factor;
  sums.largest = largest;
}

static inline void finish(const AttentionProblem& problem, size_t token, int head, const Sums& sums) {
  float* __restrict output = problem.output + (token * problem.num_heads + head) * problem.head_size;
  const float factor = 1.0f / sums.total;
  for (int d = 0; d < problem.head_size; ++d) output[d] = sums.output[d] * factor;
}

static void start_rows(const AttentionProblem& problem, const WorkItem& item, Scratch& scratch) {
  for_rows(item, [&](int row, int query, int head) {
    const size_t token = token_of(problem, item, query);
    float* scaled = scratch.query + row * kRowStride;
    change_row(problem.query_change, problem.query + token * problem.query_stride + head * problem.head_size,
               problem.head_size, problem.positions[token], scaled);
    for (int d = 0; d < problem.head_size; ++d) scaled[d] *= problem.scale;
    scratch.visible[row] = visible_to(problem, item, query);
    scratch.span[row].output = scratch.output + row * kRowStride;
    clear(scratch.span[row], problem.head_size);
    scratch.sums[row].output = scratch.before + row * kRowStride;
    start(problem, head, scratch.sums[row]);
  });
}

// At the end of a span: its sums go to the others, or to where the parts of a split attention are collected.
static void close_span(const AttentionProblem& problem, const WorkItem& item, Scratch& scratch) {
  const int rows = item.num_queries * item.num_heads;
  for (int row = 0; row < rows; ++row) {
    Sums& span = scratch.span[row];
    if (item.partial == nullptr) {
      combine(span, problem.head_size, scratch.sums[row]);
    } else {
      float* partial = item.partial + row * problem.partial_stride;
      for (int d = 0; d < problem.head_size; d += kWidth) store(partial + d, load(span.output + d));
      partial[problem.partial_stride - 2] = span.largest;
      partial[problem.partial_stride - 1] = span.total;
    }
    clear(span, problem.head_size);
  }
}

// The scales of kWidth tokens of a tile.
static inline Vec load_scales(const float* const* strips, int vector) {
  return load(strips[vector * kWidth / kStrip] + vector * kWidth % kStrip);
}

// Turns a row's scores of tokens of the tile into weights, and rescales what the row has so far.
template <class Element>
static inline void soften(const AttentionProblem& problem, const Tile<Element>& tile, Span tokens, float* scores, Sums& sums) {
  const int first_vector = tokens.first / kWidth;
  const int last_vector = (tokens.last + kWidth - 1) / kWidth;
  const bool cut = tokens.first % kWidth != 0 || tokens.last % kWidth != 0;
  const Vec nothing = broadcast(-__builtin_inff());
  Vec peaks = nothing;
  for (int v = first_vector; v < last_vector; ++v) {
    Vec x = load(scores + v * kWidth);
    if constexpr (kHasScales<Element>) x = multiply(x, load_scales(tile.key_scales, v));
    if (problem.softcap != 0.0f) {
      const Vec cap = broadcast(problem.softcap);
      x = multiply(cap, hyperbolic_tangent(divide(x, cap)));
    }
    if (cut) x = keep_lanes(x, tokens.first - v * kWidth, tokens.last - v * kWidth, nothing);
    store(scores + v * kWidth, x);
    peaks = maximum(peaks, x);
  }
  const float peak = largest_lane(peaks);
  const float largest = peak > sums.largest ? peak : sums.largest;
  Vec weights_sum = zero();
  for (int v = first_vector; v < last_vector; ++v) {
    const Vec weights = exponential(subtract(load(scores + v * kWidth), broadcast(largest)));  // 0 where masked
    weights_sum = add(weights_sum, weights);
    if constexpr (kHasScales<Element>) {
      store(scores + v * kWidth, multiply(weights, load_scales(tile.value_scales, v)));
    } else {
      store(scores + v * kWidth, weights);
    }
  }
  const float rescale = largest == sums.largest ? 1.0f : exponential(sums.largest - largest);
  sums.total = sums.total * rescale + sum_lanes(weights_sum);
  sums.largest = largest;
  if (rescale != 1.0f) {
    const Vec factor = broadcast(rescale);
    for (int d = 0; d < problem.head_size; d += kWidth) store(sums.output + d, multiply(load(sums.output + d), factor));
  }
}

// Rows [row, row + Rows) of the item against one tile. Positions rise with the row, and so do both ends of what it sees.
template <int Rows, class Element, class ValuesFirst, class KeysFirst>
static inline void attend_tile(const AttentionProblem& problem, const Tile<Element>& tile, int row, Scratch& scratch,
                               const ValuesFirst& values_ahead, const KeysFirst& keys_ahead) {
  int first[Rows];
  int last[Rows];
  for (int r = 0; r < Rows; ++r) {
    const Visible visible = scratch.visible[row + r];
    first[r] = static_cast<int>(smaller(larger(visible.first - tile.first_position, int64_t{0}), int64_t{kTile}));
    last[r] = static_cast<int>(smaller(larger(visible.last - tile.first_position, int64_t{0}), int64_t{kTile}));
  }
  if (first[0] >= last[Rows - 1]) return;
  float* scores = scratch.scores;
  const Matrix queries{scratch.query + row * kRowStride, kRowStride, problem.head_size};
  score_range<Rows, kStripsAtOnce<Rows>>(queries, Strips16<Element>{tile.keys, problem.block_size}, first[0] / kStrip,
                                         (last[Rows - 1] + kStrip - 1) / kStrip, scores, values_ahead);
  for (int r = 0; r < Rows; ++r) {
    if (first[r] < last[r]) soften(problem, tile, {first[r], last[r]}, scores + r * kScoreStride, scratch.span[row + r]);
  }
  add_seen_values<RowMajor, Rows>(scores, tile.values, first, last, scratch.output + row * kRowStride, keys_ahead);
}

template <class Element>
static void attend(const AttentionProblem& problem, const WorkItem& item, const WorkItem* after) {
  Scratch scratch;
  const int rows = item.num_queries * item.num_heads;
  const Visible visible = visible_to_item(problem, item);
  start_rows(problem, item, scratch);
  Tile<Element> tile{};
  Tile<Element> next{};
  next.values.stride = static_cast<size_t>(problem.head_size);
  next.values.size = problem.head_size;
  locate_first(problem, item, next);
  for (int64_t position = next.first_position; position < visible.last; position += kTile) {
    tile = next;
    const bool last = position + kTile >= visible.last;
    if (!last) {
      next.first_position += kTile;
      locate(problem, item, visible, next);
    } else if (after != nullptr) {
      locate_first(problem, *after, next);
    }
    if (last && item.writes) {
      const int64_t token = problem.cumulative_sequence_length[item.sequence];
      scatter<Element>(problem, token, token + 1, item.kv_head);
    }
    if constexpr (kHasScales<Element>) ask_for_scales(next);
    const ValuesAhead<Element> values_ahead{tile};
    const KeysAhead<Element> keys_ahead = KeysAhead<Element>::of(problem, next);
    for_row_groups(rows, [&](auto count, int row) {
      if (row == 0) {
        attend_tile<count.value>(problem, tile, row, scratch, values_ahead, keys_ahead);
      } else {
        attend_tile<count.value>(problem, tile, row, scratch, NothingAhead{}, NothingAhead{});
      }
    });
    if (last || (position + kTile) % kSpan == 0) close_span(problem, item, scratch);
  }
  if (item.partial != nullptr) return;
  for_rows(item, [&](int row, int query, int head) {
    finish(problem, token_of(problem, item, query), head, scratch.sums[row]);
  });
}

// The parts of a split attention, [num_spans][rows][partial_stride], in order.
static void combine_parts(const AttentionProblem& problem, const WorkItem& item, const float* parts) {
  const int rows = item.num_queries * item.num_heads;
  alignas(64) float output[kRowStride];
  for_rows(item, [&](int row, int query, int head) {
    Sums sums{output, 0.0f, 0.0f};
    start(problem, head, sums);
    for (int64_t span = 0; span < item.last_span - item.first_span; ++span) {
      float* part = const_cast<float*>(parts) + static_cast<size_t>(span * rows + row) * problem.partial_stride;
      combine({part, part[problem.partial_stride - 2], part[problem.partial_stride - 1]}, problem.head_size, sums);
    }
    finish(problem, token_of(problem, item, query), head, sums);
  });
}
