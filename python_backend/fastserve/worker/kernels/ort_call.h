// Calling ONNX Runtime from C++: failures become exceptions inside the library and statuses again at its border.
#pragma once

#include <stdexcept>
#include <string>

#include "ort_abi.h"

namespace fastserve {

// The model, or the runtime that feeds it, broke the op's contract. what() is the whole message a user sees.
class InvalidInput : public std::runtime_error {
 public:
  using std::runtime_error::runtime_error;
};

// A call into ONNX Runtime failed; owns nothing, the status goes back to the runtime.
struct ApiFailure {
  ort::Status* status;
};

inline void check(ort::Status* status) {
  if (status != nullptr) throw ApiFailure{status};
}

// Runs `body` and turns what it throws into a status; null is success.
template <class Body>
ort::Status* guarded(const ort::Api& api, const char* where, Body body) noexcept {
  try {
    body();
    return nullptr;
  } catch (const ApiFailure& failure) {
    return failure.status;
  } catch (const InvalidInput& error) {
    return api.CreateStatus(ort::kInvalidArgument, error.what());
  } catch (const std::exception& error) {
    return api.CreateStatus(ort::kFail, (std::string(where) + ": " + error.what()).c_str());
  }
}

}  // namespace fastserve
