// A copy of the numbers that something was made of, to tell whether it would be made of the same ones now.
#pragma once

#include <cstddef>
#include <cstring>
#include <vector>

namespace fastserve {

// Addresses say nothing: other runs put other numbers there. A list of numbers is a function that calls what it is given with
// each array of them, (first, count), in the same order and of the same types whenever it is called; how long an array is must
// follow from those before it.
class KeptNumbers {
 public:
  // Whether the list's numbers are those that were kept last; no if none were.
  template <class List>
  bool are(const List& list) const {
    size_t at = 0;
    bool same = !bytes_.empty();
    list([&](const auto* first, size_t count) {
      const size_t size = count * sizeof(*first);
      same = same && size <= bytes_.size() - at && (size == 0 || std::memcmp(bytes_.data() + at, first, size) == 0);
      at += same ? size : 0;
    });
    return same && at == bytes_.size();
  }

  // At least one number.
  template <class List>
  void keep(const List& list) {
    bytes_.clear();
    list([&](const auto* first, size_t count) {
      const unsigned char* const bytes = reinterpret_cast<const unsigned char*>(first);
      bytes_.insert(bytes_.end(), bytes, bytes + count * sizeof(*first));
    });
  }

  void forget() { bytes_.clear(); }

 private:
  std::vector<unsigned char> bytes_;
};

}  // namespace fastserve
