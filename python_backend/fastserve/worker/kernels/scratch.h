// Memory that an op needs while it runs.
#pragma once

#include <algorithm>
#include <cstddef>
#include <new>

namespace fastserve {

// Uninitialised, aligned to cache lines.
class Scratch {
 public:
  explicit Scratch(size_t bytes) : data_(::operator new(std::max<size_t>(bytes, 1), kAlignment)) {}
  Scratch(const Scratch&) = delete;
  Scratch& operator=(const Scratch&) = delete;
  ~Scratch() { ::operator delete(data_, kAlignment); }
  void* data() const { return data_; }

 private:
  static constexpr std::align_val_t kAlignment{64};
  void* data_;
};

}  // namespace fastserve
