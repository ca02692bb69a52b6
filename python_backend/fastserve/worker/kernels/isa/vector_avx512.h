// Sixteen floats in an AVX-512 register. Included inside a translation unit's own namespace.
// Every operation is one correctly rounded IEEE operation on each lane, so results do not depend on grouping.

using Vec = __m512;
constexpr int kWidth = 16;
constexpr int kAccumulators = 24;    // of 32 registers
constexpr int kRowsOfMicroKernel = 6;

static inline Vec zero() { return _mm512_setzero_ps(); }
static inline Vec broadcast(float x) { return _mm512_set1_ps(x); }
static inline Vec load(const float* p) { return _mm512_loadu_ps(p); }
static inline Vec widen(__m256i x) { return _mm512_cvtph_ps(x); }
static inline Vec load(const uint16_t* p) { return widen(_mm256_loadu_si256(reinterpret_cast<const __m256i*>(p))); }
static inline Vec load_first_half(const float* p) { return _mm512_maskz_loadu_ps(0x00ff, p); }
static inline Vec load_first_half(const uint16_t* p) { return widen(_mm256_maskz_loadu_epi16(0x00ff, p)); }
// columns[k] lane i = rows[i][first + k]: eight columns of kWidth rows.
static inline void load_columns(const float* const* rows, int first, Vec* columns) {
  Vec quarters[2][4];  // of four columns: rows i, i + 4, i + 8 and i + 12
#pragma GCC unroll 4
  for (int i = 0; i < 4; ++i) {
#pragma GCC unroll 2
    for (int half = 0; half < 2; ++half) {
      Vec x = _mm512_castps128_ps512(_mm_loadu_ps(rows[i] + first + half * 4));
      x = _mm512_insertf32x4(x, _mm_loadu_ps(rows[i + 4] + first + half * 4), 1);
      x = _mm512_insertf32x4(x, _mm_loadu_ps(rows[i + 8] + first + half * 4), 2);
      quarters[half][i] = _mm512_insertf32x4(x, _mm_loadu_ps(rows[i + 12] + first + half * 4), 3);
    }
  }
#pragma GCC unroll 2
  for (int half = 0; half < 2; ++half) {
    const Vec* q = quarters[half];
    const __m512d low_01 = _mm512_castps_pd(_mm512_unpacklo_ps(q[0], q[1]));
    const __m512d high_01 = _mm512_castps_pd(_mm512_unpackhi_ps(q[0], q[1]));
    const __m512d low_23 = _mm512_castps_pd(_mm512_unpacklo_ps(q[2], q[3]));
    const __m512d high_23 = _mm512_castps_pd(_mm512_unpackhi_ps(q[2], q[3]));
    columns[half * 4] = _mm512_castpd_ps(_mm512_unpacklo_pd(low_01, low_23));
    columns[half * 4 + 1] = _mm512_castpd_ps(_mm512_unpackhi_pd(low_01, low_23));
    columns[half * 4 + 2] = _mm512_castpd_ps(_mm512_unpacklo_pd(high_01, high_23));
    columns[half * 4 + 3] = _mm512_castpd_ps(_mm512_unpackhi_pd(high_01, high_23));
  }
}
static inline void store(float* p, Vec x) { _mm512_storeu_ps(p, x); }
static inline void store_first_half(float* p, Vec x) { _mm512_mask_storeu_ps(p, 0x00ff, x); }
static inline __m256i narrow(Vec x) { return _mm512_cvtps_ph(x, _MM_FROUND_TO_NEAREST_INT | _MM_FROUND_NO_EXC); }
static inline void store(uint16_t* p, Vec x) { _mm256_storeu_si256(reinterpret_cast<__m256i*>(p), narrow(x)); }
static inline void store_first_half(uint16_t* p, Vec x) { _mm256_mask_storeu_epi16(p, 0x00ff, narrow(x)); }
static inline Vec add(Vec a, Vec b) { return _mm512_add_ps(a, b); }
static inline Vec subtract(Vec a, Vec b) { return _mm512_sub_ps(a, b); }
static inline Vec multiply(Vec a, Vec b) { return _mm512_mul_ps(a, b); }
static inline Vec divide(Vec a, Vec b) { return _mm512_div_ps(a, b); }
static inline Vec multiply_add(Vec a, Vec b, Vec c) { return _mm512_fmadd_ps(a, b, c); }
static inline Vec maximum(Vec a, Vec b) { return _mm512_max_ps(a, b); }  // b where either is NaN
static inline Vec absolute(Vec x) { return _mm512_abs_ps(x); }
// a < b ? x : y; y where a or b is NaN
static inline Vec select_less(Vec a, Vec b, Vec x, Vec y) {
  return _mm512_mask_blend_ps(_mm512_cmp_ps_mask(a, b, _CMP_LT_OQ), y, x);
}
// lane i: NaN where a or b is NaN, else that of flags
static inline Vec flag_nans(Vec flags, Vec a, Vec b) {
  return _mm512_mask_mov_ps(flags, _mm512_cmp_ps_mask(a, b, _CMP_UNORD_Q), _mm512_set1_ps(__builtin_nanf("")));
}
// lane i: first <= i < last ? x : fill
static inline Vec keep_lanes(Vec x, int first, int last, Vec fill) {
  const __m512i lane = _mm512_setr_epi32(0, 1, 2, 3, 4, 5, 6, 7, 8, 9, 10, 11, 12, 13, 14, 15);
  const __mmask16 kept = static_cast<__mmask16>(_mm512_cmpge_epi32_mask(lane, _mm512_set1_epi32(first)) &
                                                _mm512_cmplt_epi32_mask(lane, _mm512_set1_epi32(last)));
  return _mm512_mask_blend_ps(kept, fill, x);
}
// x holds 1.5 * 2^23 + n: gives 2^n. The shift leaves only n's low bits, which become the exponent.
static inline Vec power_of_two(Vec x) {
  return _mm512_castsi512_ps(_mm512_slli_epi32(_mm512_add_epi32(_mm512_castps_si512(x), _mm512_set1_epi32(127)), 23));
}
// Sum and maximum of all lanes: lane i and lane i + half, until one is left.
static inline float sum_lanes(Vec x) {
  const __m256 halves = _mm256_add_ps(_mm512_castps512_ps256(x), _mm512_extractf32x8_ps(x, 1));
  __m128 y = _mm_add_ps(_mm256_castps256_ps128(halves), _mm256_extractf128_ps(halves, 1));
  y = _mm_add_ps(y, _mm_movehl_ps(y, y));
  return _mm_cvtss_f32(_mm_add_ss(y, _mm_movehdup_ps(y)));
}
static inline float largest_lane(Vec x) {
  const __m256 halves = _mm256_max_ps(_mm512_castps512_ps256(x), _mm512_extractf32x8_ps(x, 1));
  __m128 y = _mm_max_ps(_mm256_castps256_ps128(halves), _mm256_extractf128_ps(halves, 1));
  y = _mm_max_ps(y, _mm_movehl_ps(y, y));
  return _mm_cvtss_f32(_mm_max_ss(y, _mm_movehdup_ps(y)));
}
static inline Vec load(const int8_t* p) {
  return _mm512_cvtepi32_ps(_mm512_cvtepi8_epi32(_mm_loadu_si128(reinterpret_cast<const __m128i*>(p))));
}
static inline Vec load_first_half(const int8_t* p) {
  return _mm512_cvtepi32_ps(_mm512_cvtepi8_epi32(_mm_loadl_epi64(reinterpret_cast<const __m128i*>(p))));
}
