#include "work_plan.h"

#include <algorithm>
#include <iterator>
#include <memory>

#include "kept_numbers.h"

namespace fastserve {
namespace {

// Floats of one call's partial results, 16 MB: one sequence of 128K tokens needs less, and many items need no splitting.
constexpr size_t kMostPartials = size_t{4} << 20;

int64_t spans_end(int64_t positions) { return (positions + kSpan - 1) / kSpan; }

// Whether the sequence's new token is written by the items that attend with it, so that nobody waits until all tokens are
// written: it is the only one, and one item for each key/value head sees it.
bool writes_itself(const AttentionProblem& problem, int64_t sequence) {
  const int32_t first = problem.cumulative_sequence_length[sequence];
  return problem.cumulative_sequence_length[sequence + 1] - first == 1 &&
         problem.num_heads / problem.kv_num_heads <= kMaxRows;
}

std::vector<NewTokens> tokens_to_write(const AttentionProblem& problem) {
  std::vector<NewTokens> writes;
  for (int64_t s = 0; s < problem.num_seqs; ++s) {
    if (writes_itself(problem, s)) continue;
    const int64_t last = problem.cumulative_sequence_length[s + 1];
    for (int64_t first = problem.cumulative_sequence_length[s]; first < last; first += kStrip)
      writes.push_back({first, std::min(first + kStrip, last)});
  }
  return writes;
}

std::vector<WorkItem> cut(const AttentionProblem& problem) {
  const int group = problem.num_heads / problem.kv_num_heads;  // query heads that share a key/value head
  const int heads_at_once = std::min(group, kMaxRows);
  const int queries_at_once = kMaxRows / heads_at_once;
  std::vector<WorkItem> items;
  items.reserve(static_cast<size_t>((problem.num_seqs + problem.num_tokens / queries_at_once) * problem.kv_num_heads));
  for (int64_t s = 0; s < problem.num_seqs; ++s) {
    const int32_t tokens = problem.cumulative_sequence_length[s + 1] - problem.cumulative_sequence_length[s];
    for (int32_t first = 0; first < tokens; first += queries_at_once) {
      WorkItem item{};
      item.sequence = static_cast<int32_t>(s);
      item.first_query = first;
      item.num_queries = std::min<int32_t>(queries_at_once, tokens - first);
      item.split = -1;
      item.writes = writes_itself(problem, s);
      const int64_t position = static_cast<int64_t>(problem.past_seqlens[s]) + first;
      const int64_t seen = std::min(position + item.num_queries, problem.window + item.num_queries);
      item.first_span = std::max<int64_t>(0, position - problem.window + 1) / kSpan;
      item.last_span = spans_end(position + item.num_queries);
      for (int head = 0; head < group; head += heads_at_once) {
        item.num_heads = std::min(heads_at_once, group - head);
        item.cost = seen * (item.num_queries * item.num_heads + 2);  // + 2: reading the cache
        for (item.kv_head = 0; item.kv_head < problem.kv_num_heads; ++item.kv_head) {
          item.first_head = item.kv_head * group + head;
          items.push_back(item);
        }
      }
    }
  }
  return items;
}

// At least this many floats, unset; the calling thread's, until its next call.
float* partial_results(size_t size) {
  thread_local std::unique_ptr<float[]> memory;
  thread_local size_t capacity = 0;
  if (size > capacity) {
    memory.reset(new float[size]);
    capacity = size;
  }
  return memory.get();
}

size_t floats_of_parts(const AttentionProblem& problem, const WorkItem& item) {
  return static_cast<size_t>(item.last_span - item.first_span) * item.num_queries * item.num_heads * problem.partial_stride;
}

// Puts one item for each span of the split attention into the plan.
void add_parts(const AttentionProblem& problem, const WorkItem& whole, float* parts, WorkPlan& plan) {
  const size_t floats = floats_of_parts(problem, whole);
  const int64_t spans = whole.last_span - whole.first_span;
  for (int64_t span = 0; span < spans; ++span) {
    WorkItem part = whole;
    part.first_span = whole.first_span + span;
    part.last_span = part.first_span + 1;
    part.split = static_cast<int32_t>(plan.splits.size());
    part.partial = parts + static_cast<size_t>(span) * (floats / static_cast<size_t>(spans));
    part.cost = whole.cost / spans;
    part.writes = whole.writes && span == spans - 1;
    plan.items.push_back(part);
  }
  plan.splits.emplace_back(whole, parts);
}

// Neighbouring items of the same queries, whose blocks lie side by side, while they are no more than a fair share.
std::vector<Turn> take_turns(const std::vector<WorkItem>& items, int64_t fair_share) {
  std::vector<Turn> turns;
  turns.reserve(items.size());
  int64_t cost = 0;
  for (size_t i = 0; i < items.size(); ++i) {
    const WorkItem& item = items[i];
    cost += item.cost;
    if (i > 0 && cost <= fair_share && item.sequence == items[i - 1].sequence && item.first_query == items[i - 1].first_query) {
      turns.back().last = i + 1;
    } else {
      turns.push_back({i, i + 1});
      cost = item.cost;
    }
  }
  return turns;
}

WorkPlan new_plan(const AttentionProblem& problem, int shares) {
  const auto dearer = [](const WorkItem& a, const WorkItem& b) { return a.cost > b.cost; };
  std::vector<WorkItem> items = cut(problem);
  std::stable_sort(items.begin(), items.end(), dearer);  // what is dearest is split while there is room for its parts
  int64_t total = 0;
  for (const WorkItem& item : items) total += item.cost;
  std::vector<WorkItem> split;
  WorkPlan plan;
  plan.writes = tokens_to_write(problem);
  plan.items.reserve(items.size());
  size_t floats = 0;
  for (const WorkItem& item : items) {
    const size_t more = floats_of_parts(problem, item);
    if (item.last_span - item.first_span > 1 && item.cost > total / shares && floats + more <= kMostPartials) {
      split.push_back(item);
      floats += more;
    } else {
      plan.items.push_back(item);
    }
  }
  float* parts = partial_results(floats);
  for (const WorkItem& item : split) {
    add_parts(problem, item, parts, plan);
    parts += floats_of_parts(problem, item);
  }
  if (!split.empty()) std::stable_sort(plan.items.begin(), plan.items.end(), dearer);
  plan.turns = take_turns(plan.items, 2 * total / shares);
  return plan;
}

}  // namespace

WorkPlan& plan_work(const AttentionProblem& problem, int shares) {
  thread_local KeptNumbers made_of;
  thread_local WorkPlan plan;
  const auto numbers = [&](auto visit) {
    const int64_t sizes[] = {shares,         problem.num_heads, problem.kv_num_heads, problem.partial_stride,
                             problem.window, problem.num_seqs};
    visit(sizes, std::size(sizes));
    visit(problem.cumulative_sequence_length, static_cast<size_t>(problem.num_seqs) + 1);
    visit(problem.past_seqlens, static_cast<size_t>(problem.num_seqs));
  };
  if (!made_of.are(numbers)) {
    made_of.forget();  // the memory that the last plan points to may be gone even if making another one fails
    plan = new_plan(problem, shares);
    made_of.keep(numbers);
  }
  for (SplitAttention& split : plan.splits) split.begin();
  return plan;
}

}  // namespace fastserve
