// Half a group row of weights in an AVX-512 register, widened to 16 bits, for processors without VNNI (vpmaddubsw would add
// two products in 16 bits, where they saturate). Included inside a translation unit's own namespace.

using Activation = int16_t;
using Weights = __m512i;
using Factors = __m512i;
using Sum = __m512i;  // of 8 channels, two neighbouring lanes each
constexpr int kOffset = 0;
constexpr int kParts = 2;
constexpr int kTileRows = 6;  // times kTileParts: 24 of 32 registers
constexpr int kTileParts = 4;
constexpr int kUnpackedBytes = 64;  // at once, of weights of 4 bits

static inline Sum no_sum() { return _mm512_setzero_si512(); }
static inline Sum first_sum(const int8_t*) { return no_sum(); }
static inline Weights load_weights(const int8_t* p) {
  return _mm512_cvtepi8_epi16(_mm256_loadu_si256(reinterpret_cast<const __m256i*>(p)));
}
static inline Factors broadcast_group(const Activation* p) {
  int64_t group;
  memcpy(&group, p, sizeof group);
  return _mm512_set1_epi64(group);
}
static inline Sum multiply_add(Factors a, Weights b, Sum sum) { return _mm512_add_epi32(sum, _mm512_madd_epi16(a, b)); }
static inline void store_sums(int32_t* p, Sum sum) {
  const __m512i pairs = _mm512_add_epi32(sum, _mm512_srli_epi64(sum, 32));
  _mm256_storeu_si256(reinterpret_cast<__m256i*>(p), _mm512_cvtepi64_epi32(pairs));
}
