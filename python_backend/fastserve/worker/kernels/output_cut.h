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
};

}  // namespace fastserve
