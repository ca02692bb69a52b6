// Half a group row of weights in an AVX register, multiplied by AVX-VNNI: unsigned activations, signed weights, four products
// a lane added to 32 bits without saturation. Included inside a translation unit's own namespace.

using Activation = uint8_t;
using Weights = __m256i;
using Factors = __m256i;
using Sum = __m256i;  // of 8 channels
constexpr int kOffset = 128;
constexpr int kParts = 2;
constexpr int kTileRows = 6;  // times kTileParts: 12 of 16 registers
constexpr int kTileParts = 2;
constexpr int kUnpackedBytes = 32;  // at once, of weights of 4 bits

static inline Sum no_sum() { return _mm256_setzero_si256(); }
static inline Weights load_weights(const int8_t* p) { return _mm256_loadu_si256(reinterpret_cast<const __m256i*>(p)); }
// Takes back what kOffset adds to every activation, hence -128 times the channel's weights to its sum.
static inline Sum first_sum(const int8_t* channel_sums) {
  return _mm256_sub_epi32(no_sum(), _mm256_slli_epi32(load_weights(channel_sums), 7));
}
static inline Factors broadcast_group(const Activation* p) {
  int32_t group;
  memcpy(&group, p, sizeof group);
  return _mm256_set1_epi32(group);
}
static inline Sum multiply_add(Factors a, Weights b, Sum sum) { return _mm256_dpbusd_avx_epi32(sum, a, b); }
static inline void store_sums(int32_t* p, Sum sum) { _mm256_storeu_si256(reinterpret_cast<__m256i*>(p), sum); }
