// Passes over a row of logits. Included inside a translation unit's own namespace.
//
// Plain loops that the compiler vectorises, each element by the same IEEE operations and each sum in one fixed order of
// lanes and blocks: what is drawn does not depend on the instruction set.

constexpr int kSumLanes = 8;

constexpr int kMaxLanes = 32;

// The largest of values [0, count), count <= kSampleBlock; NaN where one of them is. A lane keeps the last NaN it met apart: the
// loops stay free of branches and of anything that all lanes share, or the compiler would do one element at a time.
static inline float largest_of_block(const float* values, int64_t count) {
  float lanes[kMaxLanes];
  float broken[kMaxLanes];
  for (int k = 0; k < kMaxLanes; ++k) lanes[k] = -__builtin_inff();
  for (int k = 0; k < kMaxLanes; ++k) broken[k] = 0.0f;
  int64_t i = 0;
  for (; i + kMaxLanes <= count; i += kMaxLanes) {
    for (int k = 0; k < kMaxLanes; ++k) {
      const float value = values[i + k];
      lanes[k] = value > lanes[k] ? value : lanes[k];
      broken[k] = value != value ? value : broken[k];
    }
  }
  for (; i < count; ++i) {
    lanes[0] = values[i] > lanes[0] ? values[i] : lanes[0];
    broken[0] = values[i] != values[i] ? values[i] : broken[0];
  }
  for (int half = kMaxLanes / 2; half > 0; half /= 2) {
    for (int k = 0; k < half; ++k) lanes[k] = lanes[k + half] > lanes[k] ? lanes[k + half] : lanes[k];
    for (int k = 0; k < half; ++k) broken[k] = broken[k + half] != broken[k + half] ? broken[k + half] : broken[k];
  }
  return broken[0] != broken[0] ? broken[0] : lanes[0];
}

static void block_maxima(const float* values, int64_t count, float* maxima) {
  for (int64_t first = 0; first < count; first += kSampleBlock) {
    maxima[first / kSampleBlock] = largest_of_block(values + first, smaller(count - first, int64_t{kSampleBlock}));
  }
}

// e^x for x <= 0, about 1e-15 relative; 0 below -700 (also for -infinity).
// x = n ln 2 + r with |r| <= ln(2) / 2; e^r by its Taylor series to r^13 (the rest is below 5e-18).
static inline double exponential_of(double x) {
  const double clamped = x > -700.0 ? x : -700.0;
  const double magic = 6755399441055744.0;  // 1.5 * 2^52: adding it rounds to an integer kept in the low mantissa bits
  const double shifted = clamped * 1.4426950408889634074 + magic;
  const double n = shifted - magic;
  const double r = (clamped - n * 0.69314718036912381649) - n * 1.9082149292705877e-10;  // ln 2 in two parts
  double y = 1.0 / 6227020800.0;
  y = y * r + 1.0 / 479001600.0;
  y = y * r + 1.0 / 39916800.0;
  y = y * r + 1.0 / 3628800.0;
  y = y * r + 1.0 / 362880.0;
  y = y * r + 1.0 / 40320.0;
  y = y * r + 1.0 / 5040.0;
  y = y * r + 1.0 / 720.0;
  y = y * r + 1.0 / 120.0;
  y = y * r + 1.0 / 24.0;
  y = y * r + 1.0 / 6.0;
  y = y * r + 0.5;
  y = y * r + 1.0;
  y = y * r + 1.0;
  uint64_t bits;
  __builtin_memcpy(&bits, &shifted, sizeof bits);
  bits = (bits + 1023) << 52;  // only n's low bits are left, which become the exponent
  double power;
  __builtin_memcpy(&power, &bits, sizeof power);
  return x > -700.0 ? y * power : 0.0;
}

// weights[i] = e^(values[i] / temperature - largest), 0 for values below `lowest`; sums[b]: of block b. Returns their sum.
static double weigh(const float* values, int64_t count, const SampleScale& scale, double* weights, double* sums) {
  double total = 0.0;
  for (int64_t first = 0; first < count; first += kSampleBlock) {
    const int64_t last = smaller(first + kSampleBlock, count);
    for (int64_t i = first; i < last; ++i) {
      const float scaled = values[i] / scale.temperature;
      weights[i] = scaled >= scale.lowest ? exponential_of(static_cast<double>(scaled) - scale.largest) : 0.0;
    }
    double lanes[kSumLanes] = {};
    int64_t i = first;
    for (; i + kSumLanes <= last; i += kSumLanes) {
      for (int k = 0; k < kSumLanes; ++k) lanes[k] += weights[i + k];
    }
    for (; i < last; ++i) lanes[0] += weights[i];
    for (int half = kSumLanes / 2; half > 0; half /= 2) {
      for (int k = 0; k < half; ++k) lanes[k] += lanes[k + half];
    }
    sums[first / kSampleBlock] = lanes[0];
    total += lanes[0];
  }
  return total;
}
