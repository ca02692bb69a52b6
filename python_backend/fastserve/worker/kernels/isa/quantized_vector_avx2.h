// A quarter of a group row of weights in an AVX2 register, widened to 16 bits: vpmaddubsw would add two products in 16 bits,
// where they saturate. Included inside a translation unit's own namespace.

using Activation = int16_t;
using Weights = __m256i;
using Factors = __m256i;
using Sum = __m256i;  // of 4 channels, two neighbouring lanes each
constexpr int kOffset = 0;
constexpr int kParts = 4;
constexpr int kTileRows = 6;  // times kTileParts: 12 of 16 registers
constexpr int kTileParts = 2;
constexpr int kUnpackedBytes = 32;  // at once, of weights of 4 bits

static inline Sum no_sum() { return _mm256_setzero_si256(); }
static inline Sum first_sum(const int8_t*) { return no_sum(); }
static inline Weights load_weights(const int8_t* p) {
  return _mm256_cvtepi8_epi16(_mm_loadu_si128(reinterpret_cast<const __m128i*>(p)));
}
static inline Factors broadcast_group(const Activation* p) {
  int64_t group;
  memcpy(&group, p, sizeof group);
  return _mm256_set1_epi64x(group);
}
static inline Sum multiply_add(Factors a, Weights b, Sum sum) { return _mm256_add_epi32(sum, _mm256_madd_epi16(a, b)); }
static inline void store_sums(int32_t* p, Sum sum) {
  const __m256i pairs = _mm256_add_epi32(sum, _mm256_srli_epi64(sum, 32));
  const __m256i packed = _mm256_permutevar8x32_epi32(pairs, _mm256_setr_epi32(0, 2, 4, 6, 0, 2, 4, 6));
  _mm_storeu_si128(reinterpret_cast<__m128i*>(p), _mm256_castsi256_si128(packed));
}
