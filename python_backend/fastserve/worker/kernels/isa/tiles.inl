// Where the keys and values of a tile lie, and what is asked for ahead of use.
// Included inside a translation unit's own namespace, after micro_kernels.inl.

constexpr int kLine = 64;  // bytes

struct Visible {
  int64_t first;
  int64_t last;  // exclusive
};

template <class Element>
struct Tile {
  int64_t first_position;
  const Element* keys[kTile / kStrip];  // each [head_size] rows of 16 tokens, block_size apart
  Values<Element> values;
  const float* key_scales[kTile / kStrip];  // of a strip's 16 tokens; only where elements have scales
  const float* value_scales[kTile / kStrip];
};

template <class Element>
constexpr bool kHasScales = sizeof(Element) == 1;

// Where one block of one head begins.
template <class Element>
static inline Element* block_of(const AttentionProblem& problem, void* cache, int32_t block, int kv_head) {
  const size_t index = static_cast<size_t>(block) * problem.kv_num_heads + kv_head;
  return static_cast<Element*>(cache) + index * problem.block_elements;
}

// The scales of its tokens.
static inline float* scales_of(const AttentionProblem& problem, int8_t* block) {
  return reinterpret_cast<float*>(block + static_cast<size_t>(problem.head_size) * problem.block_size);
}

// Cache positions that a query of the item sees.
static inline Visible visible_to(const AttentionProblem& problem, const WorkItem& item, int query) {
  const int64_t position = static_cast<int64_t>(problem.past_seqlens[item.sequence]) + item.first_query + query;
  return {larger(int64_t{0}, position - problem.window + 1), position + 1};
}

// Cache positions that some query of the item sees, inside the item's spans.
static inline Visible visible_to_item(const AttentionProblem& problem, const WorkItem& item) {
  return {larger(visible_to(problem, item, 0).first, item.first_span * kSpan),
          smaller(visible_to(problem, item, item.num_queries - 1).last, item.last_span * kSpan)};
}

// Finds the strips of the tile that hold positions in [visible.first, visible.last); other pointers stay as they are.
template <class Element>
static inline void locate(const AttentionProblem& problem, const WorkItem& item, Visible visible, Tile<Element>& tile) {
  const int32_t* block_at = problem.block_table + item.sequence * problem.max_blocks;
  const uint32_t first = static_cast<uint32_t>(tile.first_position);  // 32 bits, which divide in half the time
  const uint32_t block_size = static_cast<uint32_t>(problem.block_size);
  uint32_t offset = first % block_size;
  block_at += first / block_size;
  for (int s = 0; s < kTile / kStrip; ++s, offset += kStrip) {
    if (offset == block_size) {
      offset = 0;
      ++block_at;
    }
    const int64_t position = tile.first_position + s * kStrip;
    if (position + kStrip <= visible.first || position >= visible.last) continue;
    const int32_t block = *block_at;
    Element* keys = block_of<Element>(problem, problem.key_cache, block, item.kv_head);
    Element* values = block_of<Element>(problem, problem.value_cache, block, item.kv_head);
    tile.keys[s] = keys + offset;
    tile.values.strips[s] = values + offset * problem.head_size;
    if constexpr (kHasScales<Element>) {
      tile.key_scales[s] = scales_of(problem, keys) + offset;
      tile.value_scales[s] = scales_of(problem, values) + offset;
    }
  }
}

// The first tile of an item.
template <class Element>
static inline void locate_first(const AttentionProblem& problem, const WorkItem& item, Tile<Element>& tile) {
  const Visible visible = visible_to_item(problem, item);
  tile.first_position = visible.first / kTile * kTile;
  locate(problem, item, visible, tile);
}

// A block of one head is often just one memory page or less, where the processor's own prefetching ends. So the scores of a
// tile ask for its values, line by line, and the sums of its values for the keys of the next tile.
//
// Always inline: GCC takes a function that only prefetches for one without effects, and drops its calls.
#define FASTSERVE_ALWAYS_INLINE __attribute__((always_inline))

// While dimensions [d, d + kDimsAhead) of a strip's keys are multiplied: as much of the strip's values, which lie side by side.
template <class Element>
struct ValuesAhead {
  const Tile<Element>& tile;
  FASTSERVE_ALWAYS_INLINE void operator()(int strip, int d) const {
    const Element* values = tile.values.strips[strip] + d * kStrip;
#pragma GCC unroll 4
    for (size_t i = 0; i < kDimsAhead * kStrip; i += kLine / sizeof(Element)) __builtin_prefetch(values + i);
  }
};

// While a token's values are added: its share of the lines of the next tile's keys.
template <class Element>
struct KeysAhead {
  const Tile<Element>& tile;
  int lines;      // of a strip
  size_t stride;  // elements from one line to the next

  static KeysAhead of(const AttentionProblem& problem, const Tile<Element>& tile) {
    const int bytes = problem.block_size * static_cast<int>(sizeof(Element));  // from one dimension to the next
    const int dims = bytes < kLine ? kLine / bytes : 1;                        // of one line
    return {tile, (problem.head_size + dims - 1) / dims, static_cast<size_t>(dims) * problem.block_size};
  }
  FASTSERVE_ALWAYS_INLINE void operator()(int strip, int token) const {
    const int last = (token + 1) * lines / kStrip;
    for (int line = token * lines / kStrip; line < last; ++line) __builtin_prefetch(tile.keys[strip] + line * stride);
  }
};

// The scales of the next tile's strips, all at once: they are few.
static inline FASTSERVE_ALWAYS_INLINE void ask_for_scales(const Tile<int8_t>& tile) {
  for (int s = 0; s < kTile / kStrip; ++s) {
    __builtin_prefetch(tile.key_scales[s]);
    __builtin_prefetch(tile.value_scales[s]);
  }
}
