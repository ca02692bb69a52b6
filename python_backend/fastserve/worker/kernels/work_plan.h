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
  std::atomic<int64_t> unfinished;  // parts

  SplitAttention(const WorkItem& item, float* where) : whole(item), parts(where), unfinished(item.last_span - item.first_span) {}
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
// isa/attend.inl). The partial results live in memory of the calling thread, until its next plan.
WorkPlan plan_work(const AttentionProblem& problem, int shares);

}  // namespace fastserve
