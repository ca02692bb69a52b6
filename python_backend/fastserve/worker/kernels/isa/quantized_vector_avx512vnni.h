// One group row of weights in an AVX-512 register, multiplied by VNNI: unsigned activations, signed weights, four products a
// lane added to 32 bits without saturation. Included inside a translation unit's own namespace.

using Activation = uint8_t;
using Weights = __m512i;
using Factors = __m512i;
using Sum = __m512i;  // of 16 channels
constexpr int kOffset = 128;
constexpr int kParts = 1;
constexpr int kTileRows = 6;  // times kTileParts: 24 of 32 registers
constexpr int kTileParts = 4;
constexpr int kUnpackedBytes = 64;  // at once, of weights of 4 bits

static inline Sum no_sum() { return _mm512_setzero_si512(); }
static inline Weights load_weights(const int8_t* p) { return _mm512_loadu_si512(p); }
// Takes back what kOffset adds to every activation, hence -128 times the channel's weights to its sum.
static inline Sum first_sum(const int8_t* channel_sums) {
  return _mm512_sub_epi32(no_sum(), _mm512_slli_epi32(load_weights(channel_sums), 7));
}
static inline Factors broadcast_group(const Activation* p) {
  int32_t group;
  memcpy(&group, p, sizeof group);
  return _mm512_set1_epi32(group);
}
static inline Sum multiply_add(Factors a, Weights b, Sum sum) { return _mm512_dpbusd_epi32(sum, a, b); }
static inline void store_sums(int32_t* p, Sum sum) { _mm512_storeu_si512(p, sum); }
