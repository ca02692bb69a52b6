// One parallel loop on ONNX Runtime's own threads.
#pragma once

#include <algorithm>
#include <atomic>
#include <cstdint>
#include <thread>

#include "ort_abi.h"
#include "ort_call.h"

namespace fastserve {

constexpr size_t kMostThreads = 256;  // that work on one loop

// Calls body(i) for i in [0, count), handed out one by one in order. Few runtime tasks that each take items until none is
// left: the runtime's own way of handing out costs more than the smallest items do.
template <class Body>
void parallel_for(const ort::Api& api, const ort::KernelContext* context, size_t count, const Body& body) {
  struct Loop {
    const Body& body;
    size_t count;
    std::atomic<size_t> next;
  } loop{body, count, {0}};
  const auto take_items = [](void* user_data, size_t) {
    Loop& shared = *static_cast<Loop*>(user_data);
    for (size_t i; (i = shared.next.fetch_add(1, std::memory_order_relaxed)) < shared.count;) shared.body(i);
  };
  if (count == 1) {
    body(0);
  } else if (count > 1) {
    check(api.KernelContext_ParallelFor(context, take_items, std::min(count, kMostThreads), 0, &loop));
  }
}

// Lets a thread that looks at a value again and again give way to the other thread of its core.
inline void pause_core() {
#if defined(FASTSERVE_X86)
  __builtin_ia32_pause();
#endif
}

// Calls first(i) for i in [0, first_count) and, when all of those calls have returned, second(i) for i in [0, second_count): two
// loops for one time of waking threads. Neither may throw. A thread that has nothing to do before the others' last calls of first
// have returned waits without sleeping.
template <class First, class Second>
void parallel_stages(const ort::Api& api, const ort::KernelContext* context, size_t first_count, const First& first,
                     size_t second_count, const Second& second) {
  constexpr int kPatience = 4096;  // looks, before others may have the processor
  std::atomic<size_t> done{0};
  parallel_for(api, context, first_count + second_count, [&](size_t i) {
    if (i < first_count) {
      first(i);
      done.fetch_add(1, std::memory_order_release);
      return;
    }
    // All calls of first are handed out before, each to a thread that is at it.
    for (int looks = 0; done.load(std::memory_order_acquire) < first_count; ++looks) {
      looks < kPatience ? pause_core() : std::this_thread::yield();
    }
    second(i - first_count);
  });
}

// The item of a loop that calls body(first, last) for `rows` rows, `at_once` at a time, the last call fewer. body must outlive it.
template <class Body>
auto rows_of_item(int64_t rows, int64_t at_once, const Body& body) {
  return [rows, at_once, &body](size_t item) {
    const int64_t first = static_cast<int64_t>(item) * at_once;
    body(first, std::min(rows, first + at_once));
  };
}

template <class Body>
void parallel_rows(const ort::Api& api, const ort::KernelContext* context, int64_t rows, int64_t at_once, const Body& body) {
  parallel_for(api, context, static_cast<size_t>((rows + at_once - 1) / at_once), rows_of_item(rows, at_once, body));
}

}  // namespace fastserve
