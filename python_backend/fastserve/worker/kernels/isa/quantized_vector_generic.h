// One group row of weights, for any processor: the compiler vectorises over channels as it can. Included inside a translation
// unit's own namespace.

using Activation = int8_t;
struct Weights {
  const int8_t* row;
};
struct Factors {
  int16_t input[kGroupInputs];
};
struct Sum {
  int32_t channel[kPanelChannels];
};
constexpr int kOffset = 0;
constexpr int kParts = 1;
constexpr int kTileRows = 2;
constexpr int kTileParts = 1;
constexpr int kUnpackedBytes = 16;  // at once, of weights of 4 bits

static inline Sum no_sum() { return {}; }
static inline Sum first_sum(const int8_t*) { return no_sum(); }
static inline Weights load_weights(const int8_t* p) { return {p}; }
static inline Factors broadcast_group(const Activation* p) { return {{p[0], p[1], p[2], p[3]}}; }
static inline Sum multiply_add(Factors a, Weights b, Sum sum) {
  for (int c = 0; c < kPanelChannels; ++c) {
    for (int i = 0; i < kGroupInputs; ++i) {
      sum.channel[c] += static_cast<int16_t>(a.input[i] * static_cast<int16_t>(b.row[c * kGroupInputs + i]));
    }
  }
  return sum;
}
static inline void store_sums(int32_t* p, Sum sum) { memcpy(p, sum.channel, sizeof sum.channel); }
