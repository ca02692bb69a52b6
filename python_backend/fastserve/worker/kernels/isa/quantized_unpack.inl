// From weights of 4 bits to the int8 weights that they stand for. Included inside a translation unit's own namespace, after
// quantized_rows.inl.

// Some neighbouring bytes of a group row in the compiler's portable vector types. Two neighbouring levels are the bytes of a
// pair: times their channel's step, at most 255, the lower one never carries into the upper one.
constexpr int kUnpackedChannels = kUnpackedBytes / kGroupInputs;
typedef uint8_t Bytes __attribute__((vector_size(kUnpackedBytes)));
typedef uint16_t Pairs __attribute__((vector_size(kUnpackedBytes)));
typedef uint32_t Channels __attribute__((vector_size(kUnpackedBytes)));
typedef uint8_t ChannelBytes __attribute__((vector_size(kUnpackedChannels)));
typedef uint16_t ChannelPairs __attribute__((vector_size(2 * kUnpackedChannels)));

// Vectors are passed by reference: how they are by value depends on the instruction set.
static inline void load_channels(const int8_t* p, Channels& channels) {
  ChannelBytes bytes;
  memcpy(&bytes, p, sizeof bytes);
  // In two steps: compilers take a conversion to four times the size apart.
  channels = __builtin_convertvector(__builtin_convertvector(bytes, ChannelPairs), Channels);
}

static inline void store_weights(const Pairs& levels, const Pairs& steps, const Bytes& offsets, int8_t* p) {
  const Bytes weights = reinterpret_cast<Bytes>(levels * steps) - offsets;
  memcpy(p, &weights, sizeof weights);
}

// A block of 4 bits a weight: int8 = level * step - offset, without rounding. ends: its steps and offsets; weights: 8 group rows.
static inline void unpack_block(const int8_t* ends, const int8_t* levels, int8_t* weights) {
#pragma GCC unroll 4
  for (int first = 0; first < kGroupBytes; first += kUnpackedBytes) {
    Channels step, offset;
    load_channels(ends + first / kGroupInputs, step);
    load_channels(ends + kPanelChannels + first / kGroupInputs, offset);
    step |= step << 16;
    offset |= offset << 8;
    offset |= offset << 16;
    const Pairs steps = reinterpret_cast<Pairs>(step);
    const Bytes offsets = reinterpret_cast<Bytes>(offset);
#pragma GCC unroll 4
    for (int row = 0; row < kBlockGroups / 2; ++row) {
      Pairs both;
      memcpy(&both, levels + row * kGroupBytes + first, sizeof both);
      int8_t* lower = weights + 2 * row * kGroupBytes + first;
      store_weights(both & 0x0f0f, steps, offsets, lower);
      store_weights(both >> 4 & 0x0f0f, steps, offsets, lower + kGroupBytes);
    }
  }
}

// Where the parts of a panel of 4 bits a weight begin.
struct PackedPanel {
  const int8_t* ends;
  const int8_t* levels;
};

static inline int64_t count_blocks(int64_t num_groups) { return (num_groups + kBlockGroups - 1) / kBlockGroups; }

static inline PackedPanel locate(const int8_t* packed, int64_t blocks) {
  return {packed + kGroupBytes, packed + kGroupBytes + (blocks + 1) / 2 * kGroupBytes};
}

static void unpack(const int8_t* packed, int64_t num_groups, int8_t* panel) {
  const int64_t blocks = count_blocks(num_groups);
  const PackedPanel from = locate(packed, blocks);
  memcpy(panel, packed, kGroupBytes);
  for (int64_t block = 0; block < blocks; ++block) {
    unpack_block(from.ends + block * kEndBytes, from.levels + block * kLevelBytes,
                 panel + kGroupBytes + block * kBlockGroups * kGroupBytes);
  }
}
