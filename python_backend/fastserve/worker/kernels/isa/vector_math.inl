// exp and tanh on Vec. Included inside a translation unit's own namespace, after a vector_*.h.

static inline int smaller(int a, int b) { return a < b ? a : b; }
static inline int larger(int a, int b) { return a < b ? b : a; }
static inline int64_t smaller(int64_t a, int64_t b) { return a < b ? a : b; }
static inline int64_t larger(int64_t a, int64_t b) { return a < b ? b : a; }

// e^x for x <= 88, about 1e-7 relative; 0 below -87.3 (also for -infinity), NaN for NaN.
// x = n ln 2 + r with |r| <= ln(2) / 2; e^r by its Taylor series to r^7 (the rest is below 6e-9 relative).
static inline Vec exponential(Vec x) {
  const Vec magic = broadcast(12582912.0f);  // 1.5 * 2^23: adding it rounds to an integer kept in the low mantissa bits
  const Vec lowest = broadcast(-87.33f);
  const Vec clamped = maximum(lowest, x);
  const Vec shifted = multiply_add(clamped, broadcast(1.44269504088896341f), magic);
  const Vec n = subtract(shifted, magic);
  Vec r = multiply_add(n, broadcast(-0.693359375f), clamped);  // ln 2 in two parts, the first exact in 9 bits
  r = multiply_add(n, broadcast(2.12194440e-4f), r);
  Vec y = broadcast(1.0f / 5040.0f);
  y = multiply_add(y, r, broadcast(1.0f / 720.0f));
  y = multiply_add(y, r, broadcast(1.0f / 120.0f));
  y = multiply_add(y, r, broadcast(1.0f / 24.0f));
  y = multiply_add(y, r, broadcast(1.0f / 6.0f));
  y = multiply_add(y, r, broadcast(0.5f));
  y = multiply_add(y, r, broadcast(1.0f));
  y = multiply_add(y, r, broadcast(1.0f));
  return select_less(x, lowest, zero(), multiply(y, power_of_two(shifted)));
}

// tanh x, about 2e-7 relative: Lambert's continued fraction cut after 9 for |x| < 1, 1 - 2 / (e^2x + 1) beyond.
static inline Vec hyperbolic_tangent(Vec x) {
  const Vec square = multiply(x, x);
  const Vec top = multiply_add(add(square, broadcast(105.0f)), square, broadcast(945.0f));
  const Vec bottom = multiply_add(multiply_add(broadcast(15.0f), square, broadcast(420.0f)), square, broadcast(945.0f));
  const Vec near_zero = divide(multiply(x, top), bottom);
  const Vec bounded = subtract(zero(), maximum(broadcast(-40.0f), subtract(zero(), x)));
  const Vec growth = exponential(add(bounded, bounded));
  const Vec far = subtract(broadcast(1.0f), divide(broadcast(2.0f), add(growth, broadcast(1.0f))));
  return select_less(absolute(x), broadcast(1.0f), near_zero, far);
}

static inline float exponential(float x) {
  float lanes[kWidth];
  store(lanes, exponential(broadcast(x)));
  return lanes[0];
}
