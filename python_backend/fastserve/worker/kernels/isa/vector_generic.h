// Four floats in the compiler's portable vector type (SSE2 on x86-64, NEON on aarch64). Included inside a translation
// unit's own namespace. Every operation is a fixed sequence of IEEE operations on each lane.

typedef float Vec __attribute__((vector_size(16)));
typedef int32_t IntVec __attribute__((vector_size(16)));
typedef uint16_t HalfVec __attribute__((vector_size(8)));
constexpr int kWidth = 4;
#if defined(__aarch64__)
constexpr int kAccumulators = 24;    // of 32 registers
constexpr int kRowsOfMicroKernel = 6;
#else
constexpr int kAccumulators = 8;     // of 16 registers
constexpr int kRowsOfMicroKernel = 2;
#endif

// Float to IEEE half, to nearest, ties to even, as F16C does.
static inline uint16_t float_to_half(float x) {
  uint32_t bits;
  memcpy(&bits, &x, sizeof x);
  const uint32_t sign = (bits >> 16) & 0x8000u;
  const uint32_t magnitude = bits & 0x7fffffffu;
  uint32_t half;
  if (magnitude > 0x7f800000u) {
    half = 0x7e00u | ((magnitude >> 13) & 0x3ffu);  // a quiet NaN
  } else if (magnitude >= 0x477ff000u) {
    half = 0x7c00u;  // 65520 and above round to infinity
  } else if (magnitude >= 0x38800000u) {
    half = (magnitude - 0x38000000u + 0xfffu + ((magnitude >> 13) & 1u)) >> 13;
  } else {
    float scaled;  // subnormal: adding 2^-1 aligns the last kept bit with the last bit of the sum, which rounds
    memcpy(&scaled, &magnitude, sizeof scaled);
    scaled += 0.5f;
    memcpy(&half, &scaled, sizeof scaled);
    half -= 0x3f000000u;
  }
  return static_cast<uint16_t>(sign | half);
}

static inline Vec zero() { return Vec{0.0f, 0.0f, 0.0f, 0.0f}; }
static inline Vec broadcast(float x) { return Vec{x, x, x, x}; }
static inline Vec load(const float* p) {
  Vec x;
  memcpy(&x, p, sizeof x);
  return x;
}
// IEEE half to float, exact: the exponent is rebiased by a multiplication, which also normalises subnormals.
static inline Vec load(const uint16_t* p) {
  HalfVec halves;
  memcpy(&halves, p, sizeof halves);
  const IntVec bits = __builtin_convertvector(halves, IntVec);
  const IntVec magnitude = bits & 0x7fff;
  const Vec finite = reinterpret_cast<Vec>(magnitude << 13) * 0x1p112f;
  const IntVec special = (magnitude << 13) | 0x7f800000;  // infinity or NaN
  return reinterpret_cast<Vec>((magnitude >= 0x7c00 ? special : reinterpret_cast<IntVec>(finite)) | ((bits & 0x8000) << 16));
}
// columns[k] lane i = rows[i][first + k]: eight columns of kWidth rows.
static inline void load_columns(const float* const* rows, int first, Vec* columns) {
  for (int k = 0; k < 8; ++k) columns[k] = Vec{rows[0][first + k], rows[1][first + k], rows[2][first + k], rows[3][first + k]};
}
static inline void store(float* p, Vec x) { memcpy(p, &x, sizeof x); }
static inline void store(uint16_t* p, Vec x) {
  for (int i = 0; i < kWidth; ++i) p[i] = float_to_half(x[i]);
}
static inline Vec add(Vec a, Vec b) { return a + b; }
static inline Vec subtract(Vec a, Vec b) { return a - b; }
static inline Vec multiply(Vec a, Vec b) { return a * b; }
static inline Vec divide(Vec a, Vec b) { return a / b; }
#if defined(__aarch64__)
static inline Vec multiply_add(Vec a, Vec b, Vec c) { return vfmaq_f32(c, a, b); }
#else
static inline Vec multiply_add(Vec a, Vec b, Vec c) { return a * b + c; }
#endif
static inline Vec maximum(Vec a, Vec b) { return a > b ? a : b; }  // b where either is NaN
static inline Vec absolute(Vec x) { return reinterpret_cast<Vec>(reinterpret_cast<IntVec>(x) & 0x7fffffff); }
// a < b ? x : y; y where a or b is NaN
static inline Vec select_less(Vec a, Vec b, Vec x, Vec y) { return a < b ? x : y; }
// lane i: NaN where a or b is NaN, else that of flags
static inline Vec flag_nans(Vec flags, Vec a, Vec b) {
  return reinterpret_cast<Vec>(reinterpret_cast<IntVec>(flags) | (a != a) | (b != b));
}
// lane i: first <= i < last ? x : fill
static inline Vec keep_lanes(Vec x, int first, int last, Vec fill) {
  const IntVec lane = {0, 1, 2, 3};
  return ((lane >= first) & (lane < last)) ? x : fill;
}
// x holds 1.5 * 2^23 + n: gives 2^n. The shift leaves only n's low bits, which become the exponent.
static inline Vec power_of_two(Vec x) { return reinterpret_cast<Vec>((reinterpret_cast<IntVec>(x) + 127) << 23); }
// Sum and maximum of all lanes: lane i and lane i + half, until one is left.
static inline float sum_lanes(Vec x) { return (x[0] + x[2]) + (x[1] + x[3]); }
static inline float largest_lane(Vec x) {
  const float even = x[0] > x[2] ? x[0] : x[2];
  const float odd = x[1] > x[3] ? x[1] : x[3];
  return even > odd ? even : odd;
}
static inline Vec load(const int8_t* p) {
  typedef int8_t ByteVec __attribute__((vector_size(4)));
  ByteVec bytes;
  memcpy(&bytes, p, sizeof bytes);
  return __builtin_convertvector(bytes, Vec);
}
