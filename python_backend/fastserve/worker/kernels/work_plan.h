// How the attention of a packed batch is cut into independent work items.
#pragma once

#include <atomic>
#include <cstddef>
#include <deque>
#include <vector>

#include "attention_problem.h"

namespace fastserve {

// An attention whose spans are items of their own.
struct SplitAttention {
  WorkItem whole;
  float* parts;                // [spans][rows][partial_stride]
  std::atomic<int64_t> unfinished;  // parts, once begun

  SplitAttention(const WorkItem& item, float* where) : whole(item), parts(where), unfinished(0) {}
  // Before each run of its plan.
  void begin() { unfinished.store(whole.last_span - whole.first_span, std::memory_order_relaxed); }
};

// Tokens [first, last), kStrip of them at most, of one sequence.
struct NewTokens {
  int64_t first;
  int64_t last;
};

// Items [first, last) of a plan, which one thread computes one after the other.
struct Turn {
  size_t first;
  size_t last;
};

struct WorkPlan {
  std::vector<NewTokens> writes;       // to be written before any item is computed; other tokens are written by their items
  std::vector<WorkItem> items;
  std::deque<SplitAttention> splits;
  std::vector<Turn> turns;             // of all items, most expensive first, so that handing them out in order balances
};

// Covers every (query, head) exactly once, and writes every new token once. What costs more than a fair share of the whole for
// one of `shares` takers, and spans more than kSpan positions, is split. Neither the cut nor the split changes a result (see
// isa/attend.inl). The plan and the memory of its partial results are the calling thread's, until its next plan. It is made anew
// only where something that it depends on, numbers of the sequences included, is not as in the thread's last call: the layers of
// a run share one.
WorkPlan& plan_work(const AttentionProblem& problem, int shares);

}  // namespace fastserve
