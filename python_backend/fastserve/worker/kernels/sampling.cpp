#include "sampling.h"

#include <algorithm>
#include <cmath>
#include <functional>
#include <limits>
#include <vector>

#include "isa/kernels.h"
#include "sampling_problem.h"

namespace fastserve {
namespace {

constexpr float kNothing = -std::numeric_limits<float>::infinity();
constexpr double kReached = 1.0 + 1e-9;  // so that no rounding makes a search end one token early
constexpr float kStep = 4.0f;  // by which the search for a nucleus goes down: e^-4 is 2 %

// A row, its blocks' largest values and room for weights; the calling thread's, so that nothing is allocated at every token.
struct Scan {
  const float* row = nullptr;
  int64_t size = 0;
  float largest = kNothing;  // NaN when an element is
  std::vector<float> maxima;
  std::vector<double> weights;
  std::vector<double> sums;

  int64_t blocks() const { return static_cast<int64_t>(maxima.size()); }
  int64_t end(int64_t block) const { return std::min(size, (block + 1) * kSampleBlock); }
};

Scan& scan(const Kernels& kernels, const float* row, int64_t size) {
  thread_local Scan found;
  found.row = row;
  found.size = size;
  found.maxima.resize(static_cast<size_t>((size + kSampleBlock - 1) / kSampleBlock));
  found.largest = kernels.block_maxima(row, size, found.maxima.data());
  return found;
}

// Calls body(id, value) for every element of at least `lowest`, in id order; blocks without any are passed over.
template <class Body>
void for_each_from(const Scan& found, float lowest, const Body& body) {
  for (int64_t block = 0; block < found.blocks(); ++block) {
    if (found.maxima[static_cast<size_t>(block)] < lowest) continue;
    for (int64_t id = block * kSampleBlock; id < found.end(block); ++id) {
      if (found.row[id] >= lowest) body(id, found.row[id]);
    }
  }
}

// The k-th largest element, of a row of more than k.
float kth_largest(const Scan& found, int64_t k) {
  std::vector<float> best;  // k of the largest so far, and some others
  const size_t room = static_cast<size_t>(2 * k + kSampleBlock);
  const auto prune = [&] {
    std::nth_element(best.begin(), best.begin() + (k - 1), best.end(), std::greater<float>());
    best.resize(static_cast<size_t>(k));
    return best.back();
  };
  float threshold = kNothing;  // what is below it is not among the k largest
  for (int64_t block = 0; block < found.blocks(); ++block) {
    if (found.maxima[static_cast<size_t>(block)] < threshold) continue;
    for (int64_t id = block * kSampleBlock; id < found.end(block); ++id) {
      if (found.row[id] >= threshold) best.push_back(found.row[id]);
    }
    if (best.size() >= room) threshold = prune();
  }
  return prune();
}

// The nucleus: the fewest tokens, likeliest first and of equals the last first, before whose last one the probability is below
// top_p. Everything else gets the weight 0, and sums and total are those of the nucleus.
double keep_top_p(Scan& found, const SampleScale& scale, double top_p, double total) {
  struct Candidate {
    float value;
    int64_t id;
  };
  std::vector<Candidate> candidates;
  for (float depth = kStep;; depth *= 2.0f) {  // deeper until it holds the nucleus
    const float lowest = (static_cast<float>(scale.largest) - depth) * scale.temperature;
    candidates.clear();
    double mass = 0.0;
    for_each_from(found, lowest, [&](int64_t id, float value) {
      const double weight = found.weights[static_cast<size_t>(id)];
      if (weight == 0.0) return;
      candidates.push_back({value, id});
      mass += weight;
    });
    if (mass >= top_p * total * kReached || !(lowest > -std::numeric_limits<float>::max()) || depth > 1400.0f) break;
  }
  std::sort(candidates.begin(), candidates.end(), [&](const Candidate& a, const Candidate& b) {
    const float x = a.value / scale.temperature;
    const float y = b.value / scale.temperature;
    return x != y ? x > y : a.id > b.id;
  });
  std::vector<int64_t> kept;
  double before = 0.0;
  for (const Candidate& candidate : candidates) {
    if (!(before < top_p)) break;
    kept.push_back(candidate.id);
    before += found.weights[static_cast<size_t>(candidate.id)] / total;
  }
  std::sort(kept.begin(), kept.end());
  std::vector<double> weights;
  for (const int64_t id : kept) weights.push_back(found.weights[static_cast<size_t>(id)]);
  std::fill(found.weights.begin(), found.weights.end(), 0.0);
  std::fill(found.sums.begin(), found.sums.end(), 0.0);
  double sum = 0.0;
  for (size_t i = 0; i < kept.size(); ++i) {
    found.weights[static_cast<size_t>(kept[i])] = weights[i];
    found.sums[static_cast<size_t>(kept[i] / kSampleBlock)] += weights[i];
    sum += weights[i];
  }
  return sum;
}

// The first token, in id order, up to which there is more than `target` of weight; the last that has any where rounding left
// less than that.
int64_t token_at(const Scan& found, double target) {
  double before = 0.0;
  int64_t last = -1;
  for (int64_t block = 0; block < found.blocks(); ++block) {
    const double sum = found.sums[static_cast<size_t>(block)];
    if (sum == 0.0) continue;
    const bool here = before + sum > target;
    double cumulative = before;
    for (int64_t id = block * kSampleBlock; id < found.end(block); ++id) {
      const double weight = found.weights[static_cast<size_t>(id)];
      if (weight == 0.0) continue;
      last = id;
      cumulative += weight;
      if (here && cumulative > target) return id;
    }
    if (here) return last;
    before += sum;
  }
  return last;
}

double weigh(const Kernels& kernels, Scan& found, const SampleScale& scale) {
  found.weights.resize(static_cast<size_t>(found.size));
  found.sums.resize(found.maxima.size());
  return kernels.weigh(found.row, found.size, scale, found.weights.data(), found.sums.data());
}

}  // namespace

int64_t largest_token(const float* row, int64_t vocab_size) {
  const Scan& found = scan(choose_kernels(), row, vocab_size);
  if (!std::isfinite(found.largest)) return -1;
  for (int64_t block = 0;; ++block) {
    if (found.maxima[static_cast<size_t>(block)] != found.largest) continue;
    return std::find(row + block * kSampleBlock, row + found.end(block), found.largest) - row;
  }
}

double log_sum_exp(const float* row, int64_t vocab_size) {
  const Kernels& kernels = choose_kernels();
  Scan& found = scan(kernels, row, vocab_size);
  if (!std::isfinite(found.largest)) return static_cast<double>(found.largest);
  return static_cast<double>(found.largest) +
         std::log(weigh(kernels, found, {1.0f, kNothing, static_cast<double>(found.largest)}));
}

int64_t draw_token(const float* row, int64_t vocab_size, const DrawParameters& parameters) {
  const Kernels& kernels = choose_kernels();
  Scan& found = scan(kernels, row, vocab_size);
  if (!std::isfinite(found.largest)) return -1;
  const float largest = found.largest / parameters.temperature;
  SampleScale scale{parameters.temperature, kNothing, static_cast<double>(largest)};
  if (parameters.top_k > 0 && parameters.top_k < vocab_size)
    scale.lowest = kth_largest(found, parameters.top_k) / parameters.temperature;
  double total = weigh(kernels, found, scale);
  if (parameters.top_p < 1.0) total = keep_top_p(found, scale, parameters.top_p, total);
  if (parameters.min_p > 0.0) {
    const float lowest = static_cast<float>(static_cast<double>(largest) + std::log(parameters.min_p));
    total = 0.0;
    for (int64_t block = 0; block < found.blocks(); ++block) {
      double sum = 0.0;
      for (int64_t id = block * kSampleBlock; id < found.end(block); ++id) {
        double& weight = found.weights[static_cast<size_t>(id)];
        if (weight != 0.0 && row[id] / parameters.temperature < lowest) weight = 0.0;
        sum += weight;
      }
      found.sums[static_cast<size_t>(block)] = sum;
      total += sum;
    }
  }
  return token_at(found, parameters.number * total);
}

}  // namespace fastserve
