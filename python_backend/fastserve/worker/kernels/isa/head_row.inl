// The row of one head as attention uses it: normalised, then rotated. Included inside a translation unit's own namespace.
//
// Plain loops that the compiler vectorises. Each element is the same IEEE operations whatever the instruction set and
// whoever runs beside it.

constexpr int kPartialSums = 8;  // divides every head size

// to = from * weight / sqrt(mean of squares + epsilon)
static inline void normalise_row(const float* from, const float* weight, float epsilon, int size, float* to) {
  float squares[kPartialSums] = {};
  for (int d = 0; d < size; d += kPartialSums) {
    for (int k = 0; k < kPartialSums; ++k) squares[k] += from[d + k] * from[d + k];
  }
  for (int half = kPartialSums / 2; half > 0; half /= 2) {
    for (int k = 0; k < half; ++k) squares[k] += squares[k + half];
  }
  const float factor = 1.0f / __builtin_sqrtf(squares[0] / static_cast<float>(size) + epsilon);
  for (int d = 0; d < size; ++d) to[d] = weight[d] * (from[d] * factor);
}

// Turns each pair (a, b) of the row by its angle: (a cos - b sin, b cos + a sin).
static inline void rotate_row(const HeadChange& change, int64_t position, float* __restrict row) {
  const int pairs = change.rotary_size / 2;
  const float* __restrict cosines = change.cosines + position * pairs;
  const float* __restrict sines = change.sines + position * pairs;
  if (change.interleaved) {
    for (int i = 0; i < pairs; ++i) {
      const float a = row[2 * i];
      const float b = row[2 * i + 1];
      row[2 * i] = a * cosines[i] - b * sines[i];
      row[2 * i + 1] = b * cosines[i] + a * sines[i];
    }
    return;
  }
  float* __restrict second_half = row + pairs;
  for (int i = 0; i < pairs; ++i) {
    const float a = row[i];
    const float b = second_half[i];
    row[i] = a * cosines[i] - b * sines[i];
    second_half[i] = b * cosines[i] + a * sines[i];
  }
}

// Writes the changed row of `size` elements to `to`; `position` is the token's in its sequence.
static inline void change_row(const HeadChange& change, const float* from, int size, int64_t position, float* to) {
  if (change.norm_weight != nullptr) {
    normalise_row(from, change.norm_weight, change.norm_epsilon, size, to);
  } else {
    memcpy(to, from, static_cast<size_t>(size) * sizeof *to);
  }
  if (change.cosines != nullptr) rotate_row(change, position, to);
}
