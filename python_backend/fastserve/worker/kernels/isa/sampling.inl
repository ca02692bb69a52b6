// Passes over a row of logits. Included inside a translation unit's own namespace.
//
// Weights are made by plain loops that the compiler vectorises, each element by the same IEEE operations and each sum in one fixed
// order of lanes and blocks, and a maximum has no order: what is drawn does not depend on the instruction set.

constexpr int kSumLanes = 8;

constexpr int kMaximaApart = 4;  // vectors that take turns, so that a load waits for no comparison before it
constexpr int kFloatsAhead = 8 * kSampleBlock;  // asked for early: the processor's own prefetching stops at a page's end
constexpr int kFloatsOfLine = 16;

// The largest of values [0, count), count <= kSampleBlock; NaN where one of them is. Both are found without a branch, and what
// follows is asked for, be it the next row or nothing of ours.
static inline float largest_of_block(const float* values, int64_t count) {
  constexpr int kAtOnce = kMaximaApart * kWidth;
  for (int line = 0; line < kSampleBlock; line += kFloatsOfLine) __builtin_prefetch(values + kFloatsAhead + line);
  Vec largest[kMaximaApart];
  Vec broken[kMaximaApart / 2];
  for (int k = 0; k < kMaximaApart; ++k) largest[k] = broadcast(-__builtin_inff());
  for (int k = 0; k < kMaximaApart / 2; ++k) broken[k] = zero();
  int64_t i = 0;
  for (; i + kAtOnce <= count; i += kAtOnce) {
    Vec x[kMaximaApart];
    for (int k = 0; k < kMaximaApart; ++k) {
      x[k] = load(values + i + k * kWidth);
      largest[k] = maximum(x[k], largest[k]);
    }
    for (int k = 0; k < kMaximaApart / 2; ++k) broken[k] = flag_nans(broken[k], x[2 * k], x[2 * k + 1]);
  }
  float found = largest_lane(maximum(maximum(largest[0], largest[1]), maximum(largest[2], largest[3])));
  float nan_or_zero = sum_lanes(add(broken[0], broken[1]));
  for (; i < count; ++i) {
    found = values[i] > found ? values[i] : found;
    nan_or_zero = values[i] != values[i] ? values[i] : nan_or_zero;
  }
  return found + nan_or_zero;
}

// maxima[b]: of block b; NaN where one of its elements is. Returns the largest of all, NaN where one is.
static float block_maxima(const float* values, int64_t count, float* maxima) {
  float largest = -__builtin_inff();
  float broken = 0.0f;
  for (int64_t first = 0; first < count; first += kSampleBlock) {
    const float maximum = largest_of_block(values + first, smaller(count - first, int64_t{kSampleBlock}));
    maxima[first / kSampleBlock] = maximum;
    largest = maximum > largest ? maximum : largest;
    broken = maximum != maximum ? maximum : broken;
  }
  return largest + broken;
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
