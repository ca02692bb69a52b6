// Eight floats in an AVX2 register (with FMA and F16C). Included inside a translation unit's own namespace.
// Every operation is one correctly rounded IEEE operation on each lane, so results do not depend on grouping.

using Vec = __m256;
constexpr int kWidth = 8;
constexpr int kAccumulators = 12;    // of 16 registers
constexpr int kRowsOfMicroKernel = 6;

static inline Vec zero() { return _mm256_setzero_ps(); }
static inline Vec broadcast(float x) { return _mm256_set1_ps(x); }
static inline Vec load(const float* p) { return _mm256_loadu_ps(p); }
static inline Vec load(const uint16_t* p) { return _mm256_cvtph_ps(_mm_loadu_si128(reinterpret_cast<const __m128i*>(p))); }
// columns[k] lane i = rows[i][first + k]: eight columns of kWidth rows.
static inline void load_columns(const float* const* rows, int first, Vec* columns) {
  for (int half = 0; half < 2; ++half) {
    Vec halves[4];  // of four columns: rows i and i + 4
#pragma GCC unroll 4
    for (int i = 0; i < 4; ++i) {
      const Vec x = _mm256_castps128_ps256(_mm_loadu_ps(rows[i] + first + half * 4));
      halves[i] = _mm256_insertf128_ps(x, _mm_loadu_ps(rows[i + 4] + first + half * 4), 1);
    }
    const __m256d low_01 = _mm256_castps_pd(_mm256_unpacklo_ps(halves[0], halves[1]));
    const __m256d high_01 = _mm256_castps_pd(_mm256_unpackhi_ps(halves[0], halves[1]));
    const __m256d low_23 = _mm256_castps_pd(_mm256_unpacklo_ps(halves[2], halves[3]));
    const __m256d high_23 = _mm256_castps_pd(_mm256_unpackhi_ps(halves[2], halves[3]));
    columns[half * 4] = _mm256_castpd_ps(_mm256_unpacklo_pd(low_01, low_23));
    columns[half * 4 + 1] = _mm256_castpd_ps(_mm256_unpackhi_pd(low_01, low_23));
    columns[half * 4 + 2] = _mm256_castpd_ps(_mm256_unpacklo_pd(high_01, high_23));
    columns[half * 4 + 3] = _mm256_castpd_ps(_mm256_unpackhi_pd(high_01, high_23));
  }
}
static inline void store(float* p, Vec x) { _mm256_storeu_ps(p, x); }
static inline void store(uint16_t* p, Vec x) {
  _mm_storeu_si128(reinterpret_cast<__m128i*>(p), _mm256_cvtps_ph(x, _MM_FROUND_TO_NEAREST_INT | _MM_FROUND_NO_EXC));
}
static inline Vec add(Vec a, Vec b) { return _mm256_add_ps(a, b); }
static inline Vec subtract(Vec a, Vec b) { return _mm256_sub_ps(a, b); }
static inline Vec multiply(Vec a, Vec b) { return _mm256_mul_ps(a, b); }
static inline Vec divide(Vec a, Vec b) { return _mm256_div_ps(a, b); }
static inline Vec multiply_add(Vec a, Vec b, Vec c) { return _mm256_fmadd_ps(a, b, c); }
static inline Vec maximum(Vec a, Vec b) { return _mm256_max_ps(a, b); }  // b where either is NaN
static inline Vec absolute(Vec x) { return _mm256_andnot_ps(_mm256_set1_ps(-0.0f), x); }
// a < b ? x : y; y where a or b is NaN
static inline Vec select_less(Vec a, Vec b, Vec x, Vec y) { return _mm256_blendv_ps(y, x, _mm256_cmp_ps(a, b, _CMP_LT_OQ)); }
// lane i: NaN where a or b is NaN, else that of flags
static inline Vec flag_nans(Vec flags, Vec a, Vec b) { return _mm256_or_ps(flags, _mm256_cmp_ps(a, b, _CMP_UNORD_Q)); }
// lane i: first <= i < last ? x : fill
static inline Vec keep_lanes(Vec x, int first, int last, Vec fill) {
  const __m256i lane = _mm256_setr_epi32(0, 1, 2, 3, 4, 5, 6, 7);
  const __m256i below = _mm256_cmpgt_epi32(_mm256_set1_epi32(first), lane);
  const __m256i inside = _mm256_andnot_si256(below, _mm256_cmpgt_epi32(_mm256_set1_epi32(last), lane));
  return _mm256_blendv_ps(fill, x, _mm256_castsi256_ps(inside));
}
// x holds 1.5 * 2^23 + n: gives 2^n. The shift leaves only n's low bits, which become the exponent.
static inline Vec power_of_two(Vec x) {
  return _mm256_castsi256_ps(_mm256_slli_epi32(_mm256_add_epi32(_mm256_castps_si256(x), _mm256_set1_epi32(127)), 23));
}
// Sum and maximum of all lanes: lane i and lane i + half, until one is left.
static inline float sum_lanes(Vec x) {
  __m128 y = _mm_add_ps(_mm256_castps256_ps128(x), _mm256_extractf128_ps(x, 1));
  y = _mm_add_ps(y, _mm_movehl_ps(y, y));
  return _mm_cvtss_f32(_mm_add_ss(y, _mm_movehdup_ps(y)));
}
static inline float largest_lane(Vec x) {
  __m128 y = _mm_max_ps(_mm256_castps256_ps128(x), _mm256_extractf128_ps(x, 1));
  y = _mm_max_ps(y, _mm_movehl_ps(y, y));
  return _mm_cvtss_f32(_mm_max_ss(y, _mm_movehdup_ps(y)));
}
static inline Vec load(const int8_t* p) {
  return _mm256_cvtepi32_ps(_mm256_cvtepi8_epi32(_mm_loadl_epi64(reinterpret_cast<const __m128i*>(p))));
}
