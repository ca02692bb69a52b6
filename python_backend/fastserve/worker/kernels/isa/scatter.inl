// Writing new keys and values into their slots. Included inside a translation unit's own namespace, after tiles.inl.

// Rounds the row to the cache's element type.
template <class Source, class Element>
static inline void convert_row(const Source* from, Element* to, int size) {
  int d = 0;
  for (; d + kWidth <= size; d += kWidth) store(to + d, load(from + d));
  if constexpr (kWidth == 16) {
    if (d < size) store_first_half(to + d, load_first_half(from + d));
  }
}

// kWidth elements of a row of `size` from `d` on, or the last 8 and zeros.
template <class Source>
static inline Vec load_end(const Source* from, int d, int size) {
  if constexpr (kWidth == 16) {
    if (d + kWidth > size) return load_first_half(from + d);
  }
  return load(from + d);
}

// Rounds the row to whole numbers, to nearest and ties to even; its largest element becomes kLargest or -kLargest. Returns the
// scale: NaN when an element is not finite, so that what attends to it shows.
template <class Integer>
static inline float quantise_row(const float* from, Integer* to, int size) {
  constexpr float kLargest = sizeof(Integer) == 1 ? 127.0f : 32767.0f;
  Vec peaks = zero();
  Vec broken = zero();
  for (int d = 0; d < size; d += kWidth) {
    const Vec x = absolute(load_end(from, d, size));
    peaks = maximum(x, peaks);
    broken = multiply_add(x, zero(), broken);
  }
  const float largest = largest_lane(peaks);
  const float inverse = largest > 1e-30f ? kLargest / largest : 0.0f;
  const float magic = 12582912.0f;  // 1.5 * 2^23: adding it rounds to an integer
  for (int d = 0; d < size; ++d) {
    const float rounded = (from[d] * inverse + magic) - magic;
    to[d] = static_cast<Integer>(static_cast<int32_t>(rounded >= -kLargest && rounded <= kLargest ? rounded : 0.0f));
  }
  return largest / kLargest + sum_lanes(broken);
}

// One token's row of one head, as the cache holds it.
template <class Element>
struct StoredRow {
  Element elements[kMaxHeadSize];
  float scale;
};

template <class Element>
static inline void to_stored(const float* row, int size, StoredRow<Element>& stored) {
  if constexpr (kHasScales<Element>) {
    stored.scale = quantise_row(row, stored.elements, size);
  } else {
    convert_row(row, stored.elements, size);
  }
}

// The keys of up to 16 tokens, dim by dim: tokens of one block fill neighbouring addresses.
template <class Element>
static void scatter_keys(const AttentionProblem& problem, const StoredRow<Element>* rows, Element* const* places, int count) {
  for (int d = 0; d < problem.head_size; ++d) {
    for (int t = 0; t < count; ++t) places[t][static_cast<size_t>(d) * problem.block_size] = rows[t].elements[d];
  }
}

// Contract: slots are -1 or inside the pool, and no two tokens of a run share one.
template <class Element>
static void scatter(const AttentionProblem& problem, int64_t first, int64_t last, int kv_head) {
  const int size = problem.head_size;
  StoredRow<Element> keys[kStrip];
  StoredRow<Element> value;
  Element* key_places[kStrip];
  int count = 0;
  for (int64_t token = first; token < last; ++token) {
    const int32_t slot = problem.slots[token];
    if (slot < 0) continue;
    Element* key_block = block_of<Element>(problem, problem.key_cache, slot / problem.block_size, kv_head);
    Element* value_block = block_of<Element>(problem, problem.value_cache, slot / problem.block_size, kv_head);
    const int offset = slot % problem.block_size;
    const size_t source = static_cast<size_t>(token * problem.key_stride) + static_cast<size_t>(kv_head) * size;
    float key[kMaxHeadSize];
    change_row(problem.key_change, problem.key + source, size, problem.positions[token], key);
    to_stored(key, size, keys[count]);
    to_stored(problem.value + source, size, value);
    memcpy(value_block + static_cast<size_t>(offset) * size, value.elements, static_cast<size_t>(size) * sizeof(Element));
    if constexpr (kHasScales<Element>) {
      scales_of(problem, key_block)[offset] = keys[count].scale;
      scales_of(problem, value_block)[offset] = value.scale;
    }
    key_places[count] = key_block + offset;
    ++count;
  }
  scatter_keys(problem, keys, key_places, count);
}
