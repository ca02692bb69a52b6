// Blocks of a product's outputs, as plain data shared by the ops and the kernels.
//
// Only plain data may live here: this header is compiled into translation units with different instruction sets, where an
// inline function could be emitted with the wrong one (the one-definition-rule trap).
#pragma once

#include <cstdint>

namespace fastserve {

// Rows [first_row, last_row) times the channels of panels [first_panel, last_panel) of a packed weight.
struct OutputBlock {
  int64_t first_row;
  int64_t last_row;
  int64_t first_panel;
  int64_t last_panel;
};

}  // namespace fastserve
