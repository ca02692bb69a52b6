// How the ops that multiply cut their outputs into independent blocks. The cut never changes a result.
#pragma once

#include <algorithm>
#include <cstdint>
#include <thread>

#include "output_block.h"

namespace fastserve {

inline int64_t divide_up(int64_t a, int64_t b) { return (a + b - 1) / b; }

// About as many as ONNX Runtime uses.
inline int64_t num_threads() {
  static const int64_t threads = std::max(1u, std::thread::hardware_concurrency());
  return threads;
}

struct OutputCut {
  int64_t rows;    // of a block
  int64_t panels;  // of a block
  int64_t row_blocks;
  int64_t panel_blocks;
  bool rows_first;  // blocks of the same rows follow each other

  int64_t count() const { return row_blocks * panel_blocks; }
  OutputBlock block(int64_t index, int64_t num_rows, int64_t num_panels) const {
    const int64_t row = (rows_first ? index / panel_blocks : index % row_blocks) * rows;
    const int64_t panel = (rows_first ? index % panel_blocks : index / row_blocks) * panels;
    return {row, std::min(num_rows, row + rows), panel, std::min(num_panels, panel + panels)};
  }
  // Of the block that whoever has block `index` will probably get next, because they are handed out in order and the others get
  // one each meanwhile: its first panel; -1 if there will be none.
  int64_t next_panel(int64_t index) const {
    const int64_t next = index + std::min(num_threads(), count());
    if (next >= count()) return -1;
    return (rows_first ? next % panel_blocks : next / row_blocks) * panels;
  }
};

// At most `most` panels for each block, a multiple of `step`, of as many that no thread will be busy for much longer than the
// others. `most` is at least `step`.
inline int64_t even_panels(int64_t num_panels, int64_t row_blocks, int64_t most, int64_t step) {
  int64_t best = step;
  int64_t shortest = num_panels * row_blocks + step;
  for (int64_t panels = step; panels <= std::min(most, num_panels + step - 1); panels += step) {
    const int64_t longest = divide_up(divide_up(num_panels, panels) * row_blocks, num_threads()) * panels;  // of a thread
    if (longest <= shortest) {
      best = panels;
      shortest = longest;
    }
  }
  return best;
}

}  // namespace fastserve
