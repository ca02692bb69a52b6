// Writing new keys and values into their slots. Included inside a translation unit's own namespace.

template <class Source, class Element>
static inline void convert_row(const Source* from, Element* to, int size) {
  int d = 0;
  for (; d + kWidth <= size; d += kWidth) store(to + d, load(from + d));
  if constexpr (kWidth == 16) {
    if (d < size) store_first_half(to + d, load_first_half(from + d));
  }
}

// The keys of up to 16 tokens, dim by dim: tokens of one block fill neighbouring addresses.
template <class Element>
static void scatter_keys(const AttentionProblem& problem, const Element* const* rows, Element* const* places, int count) {
  for (int d = 0; d < problem.head_size; ++d) {
    for (int t = 0; t < count; ++t) places[t][static_cast<size_t>(d) * problem.block_size] = rows[t][d];
  }
}

// Contract: slots are -1 or inside the pool, and no two tokens of a run share one.
template <class Element>
static void scatter(const AttentionProblem& problem, int64_t chunk, int kv_head) {
  const int size = problem.head_size;
  const size_t head_elements = static_cast<size_t>(size) * problem.block_size;
  const int64_t first = chunk * kStrip;
  const int64_t last = smaller(first + kStrip, problem.num_tokens);
  Element converted[kStrip][kMaxHeadSize];
  const Element* rows[kStrip];
  Element* key_places[kStrip];
  int count = 0;
  for (int64_t token = first; token < last; ++token) {
    const int32_t slot = problem.slots[token];
    if (slot < 0) continue;
    const size_t head = static_cast<size_t>(slot / problem.block_size) * problem.kv_num_heads + kv_head;
    const int offset = slot % problem.block_size;
    const size_t source = static_cast<size_t>(token * problem.key_stride) + static_cast<size_t>(kv_head) * size;
    convert_row(problem.value + source,
                static_cast<Element*>(problem.value_cache) + head * head_elements + static_cast<size_t>(offset) * size, size);
    float key[kMaxHeadSize];
    change_row(problem.key_change, problem.key + source, size, problem.positions[token], key);
    convert_row(key, converted[count], size);
    rows[count] = converted[count];
    key_places[count] = static_cast<Element*>(problem.key_cache) + head * head_elements + offset;
    ++count;
  }
  scatter_keys(problem, rows, key_places, count);
}
