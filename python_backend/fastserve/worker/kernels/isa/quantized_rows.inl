// From floats to quantised activations, and from sums of products back to floats: the only places of QuantizedMatMul that
// round. Included inside a translation unit's own namespace, after a quantized_vector_*.h.
//
// Plain loops that the compiler turns into vectors: each element is a fixed sequence of IEEE operations without contraction,
// so every instruction set gives the same bits.

typedef int32_t __attribute__((may_alias)) FloatBits;

constexpr int32_t kInfinityBits = 0x7f800000;
constexpr float kLevels = 127.0f;
constexpr float kSmallestPeak = 127.0f * 0x1p-126f;  // below it the scale would not be a normal number
constexpr float kRounder = 0x1.8p23f;                // adding it rounds to an integer, ties to even, kept in the low bits
constexpr int32_t kRounderBits = 0x4b400000;

static inline int32_t bits_of(float x) {
  int32_t bits;
  memcpy(&bits, &x, sizeof bits);
  return bits;
}

// The bits of the largest magnitude of the row; those of NaN are larger than those of infinity.
static inline int32_t peak_bits(const float* x, int64_t k) {
  const FloatBits* bits = reinterpret_cast<const FloatBits*>(x);
  int32_t peak = 0;
  for (int64_t i = 0; i < k; ++i) peak = (bits[i] & 0x7fffffff) > peak ? (bits[i] & 0x7fffffff) : peak;
  return peak;
}

static inline void quantize_row(const float* __restrict x, int64_t k, float factor, Activation* __restrict activations) {
  for (int64_t i = 0; i < k; ++i) {
    activations[i] = static_cast<Activation>(bits_of(x[i] * factor + kRounder) - kRounderBits + kOffset);
  }
}

// activation = round(x * (127 / peak)) + kOffset, row_scale = peak / 127. A row with an infinity or a NaN gets the scale
// NaN, which makes its whole output NaN; a row (almost) of zeros gets zeros.
static void quantize(const QuantizedProblem& problem, const float* x, int64_t row) {
  Activation* activations = static_cast<Activation*>(problem.activations) + row * problem.stride;
  const int32_t bits = peak_bits(x, problem.k);
  float peak;
  memcpy(&peak, &bits, sizeof peak);
  const bool finite = bits < kInfinityBits;
  if (finite && peak >= kSmallestPeak) {
    problem.row_scale[row] = peak / kLevels;
    quantize_row(x, problem.k, kLevels / peak, activations);
  } else {
    problem.row_scale[row] = finite ? 0.0f : __builtin_nanf("");
    for (int64_t i = 0; i < problem.k; ++i) activations[i] = static_cast<Activation>(kOffset);
  }
  const int64_t end = (problem.k + kRowAlignment - 1) / kRowAlignment * kRowAlignment;
  for (int64_t i = problem.k; i < end; ++i) activations[i] = 0;
}

static inline const int8_t* panel_of(const QuantizedProblem& problem, int64_t panel) {
  return problem.weight + (panel - problem.first_panel) * (1 + problem.num_groups) * kGroupBytes;
}

// Some neighbouring channels in the compiler's portable vector type: left to itself it vectorises these short loops badly.
template <int Channels>
struct Lanes {
  typedef int32_t Integers __attribute__((vector_size(Channels * sizeof(int32_t))));
  typedef float Floats __attribute__((vector_size(Channels * sizeof(float))));
};

// Channels [channel, channel + Channels * Strips) of `count` rows from `row` on, from their sums of products, sum_stride apart:
// output = float(sum) * weight_scale * row_scale + bias. Nothing is written past the last channel.
template <int Channels, int Strips>
static inline void finish(const QuantizedProblem& problem, int64_t row, int64_t count, int64_t channel, const int32_t* sums,
                          int sum_stride) {
  typedef typename Lanes<Channels>::Integers Integers;
  typedef typename Lanes<Channels>::Floats Floats;
  const int64_t left = problem.n - channel;
  Floats weight_scale[Strips] = {};
  Floats bias[Strips] = {};
  size_t bytes[Strips];
#pragma GCC unroll 4
  for (int s = 0; s < Strips; ++s) {
    const int64_t used = left - s * Channels < Channels ? left - s * Channels : Channels;
    bytes[s] = used > 0 ? static_cast<size_t>(used) * sizeof(float) : 0;
    memcpy(&weight_scale[s], problem.weight_scale + channel + s * Channels, bytes[s]);
    if (problem.bias != nullptr) memcpy(&bias[s], problem.bias + channel + s * Channels, bytes[s]);
  }
  float* output = problem.output + row * problem.n + channel;
  for (int64_t r = 0; r < count; ++r, output += problem.n) {
#pragma GCC unroll 4
    for (int s = 0; s < Strips; ++s) {
      Integers sum;
      memcpy(&sum, sums + r * sum_stride + s * Channels, sizeof sum);
      const Floats value = __builtin_convertvector(sum, Floats) * weight_scale[s] * problem.row_scale[row + r] + bias[s];
      if (left >= Channels * Strips) {
        memcpy(output + s * Channels, &value, sizeof value);
      } else {
        memcpy(output + s * Channels, &value, bytes[s]);
      }
    }
  }
}
