// Norms and gated activations of rows. Included inside a translation unit's own namespace, after a vector_*.h and
// vector_math.inl. What a row gives depends on nothing but the row: sums run over its elements in one fixed order.

static inline Vec load_some(const float* p, int64_t count) {  // zeros behind them
  if (count >= kWidth) return load(p);
  float lanes[kWidth] = {};
  memcpy(lanes, p, static_cast<size_t>(count) * sizeof(float));
  return load(lanes);
}

static inline void store_some(float* p, Vec x, int64_t count) {
  if (count >= kWidth) return store(p, x);
  float lanes[kWidth];
  store(lanes, x);
  memcpy(p, lanes, static_cast<size_t>(count) * sizeof(float));
}

// The sum of n elements.
static inline float sum_row(const float* x, int64_t n) {
  Vec sum = zero();
  for (int64_t i = 0; i < n; i += kWidth) sum = add(sum, load_some(x + i, n - i));
  return sum_lanes(sum);
}

// The sum of (x - mean)^2 over n elements.
static inline float sum_squares(const float* x, int64_t n, float mean) {
  const Vec centre = broadcast(mean);
  Vec sums[2] = {zero(), zero()};
  int64_t i = 0;
  for (; i + 2 * kWidth <= n; i += 2 * kWidth) {
    const Vec first = subtract(load(x + i), centre), second = subtract(load(x + i + kWidth), centre);
    sums[0] = multiply_add(first, first, sums[0]);
    sums[1] = multiply_add(second, second, sums[1]);
  }
  for (; i < n; i += kWidth) {
    const int used = static_cast<int>(n - i < kWidth ? n - i : kWidth);
    const Vec rest = keep_lanes(subtract(load_some(x + i, n - i), centre), 0, used, zero());
    sums[0] = multiply_add(rest, rest, sums[0]);
  }
  return sum_lanes(add(sums[0], sums[1]));
}

static inline void add_rows(const float* x, const float* skip, int64_t n, float* sum) {
  for (int64_t i = 0; i < n; i += kWidth) store_some(sum + i, add(load_some(x + i, n - i), load_some(skip + i, n - i)), n - i);
}

static void normalize(const NormProblem& problem, int64_t first_row, int64_t last_row) {
  const int64_t n = problem.n;
  for (int64_t row = first_row; row < last_row; ++row) {
    const float* x = problem.x + row * n;
    float* output = problem.output + row * n;
    if (problem.skip != nullptr) {
      float* sum = problem.sum != nullptr ? problem.sum + row * n : output;
      add_rows(x, problem.skip + row * n, n, sum);
      x = sum;
    }
    const float mean = problem.centred ? sum_row(x, n) / static_cast<float>(n) : 0.0f;
    const float variance = sum_squares(x, n, mean) / static_cast<float>(n);
    const Vec centre = broadcast(mean);
    const Vec factor = broadcast(1.0f / __builtin_sqrtf(variance + problem.epsilon));
    for (int64_t i = 0; i < n; i += kWidth) {
      Vec y = multiply(multiply(subtract(load_some(x + i, n - i), centre), factor), load_some(problem.weight + i, n - i));
      if (problem.bias != nullptr) y = add(y, load_some(problem.bias + i, n - i));
      store_some(output + i, y, n - i);
    }
  }
}

// x / (1 + e^-x)
static inline Vec silu(Vec x) {
  const Vec bounded = subtract(zero(), maximum(broadcast(-88.0f), x));
  return divide(x, add(broadcast(1.0f), exponential(bounded)));
}

// x / 2 * (1 + tanh(sqrt(2 / pi) * (x + 0.044715 x^3))) (Hendrycks & Gimpel, 2016)
static inline Vec gelu_tanh(Vec x) {
  const Vec cubic = multiply(multiply_add(multiply(x, x), broadcast(0.044715f), broadcast(1.0f)), x);
  const Vec bend = hyperbolic_tangent(multiply(cubic, broadcast(0.797884560802865f)));
  return multiply(multiply(x, broadcast(0.5f)), add(bend, broadcast(1.0f)));
}

template <Vec (*Activation)(Vec)>
static inline void gate_rows(const GateProblem& problem, int64_t first_row, int64_t last_row) {
  const int64_t n = problem.n;
  for (int64_t row = first_row; row < last_row; ++row) {
    const float* gates = problem.x + row * 2 * n;
    float* output = problem.output + row * n;
    for (int64_t i = 0; i < n; i += kWidth) {
      store_some(output + i, multiply(Activation(load_some(gates + i, n - i)), load_some(gates + n + i, n - i)), n - i);
    }
  }
}

static void gate(const GateProblem& problem, int64_t first_row, int64_t last_row) {
  problem.gate == kSilu ? gate_rows<silu>(problem, first_row, last_row) : gate_rows<gelu_tanh>(problem, first_row, last_row);
}
