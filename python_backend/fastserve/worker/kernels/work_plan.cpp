#include "work_plan.h"

#include <algorithm>

namespace fastserve {

std::vector<WorkItem> plan_work(const AttentionProblem& problem) {
  const int group = problem.num_heads / problem.kv_num_heads;  // query heads that share a key/value head
  const int heads_at_once = std::min(group, kMaxRows);
  const int queries_at_once = kMaxRows / heads_at_once;
  std::vector<WorkItem> items;
  for (int64_t s = 0; s < problem.num_seqs; ++s) {
    const int32_t tokens = problem.cumulative_sequence_length[s + 1] - problem.cumulative_sequence_length[s];
    for (int32_t first = 0; first < tokens; first += queries_at_once) {
      const int32_t queries = std::min<int32_t>(queries_at_once, tokens - first);
      const int64_t context = static_cast<int64_t>(problem.past_seqlens[s]) + first + queries;
      for (int head = 0; head < group; head += heads_at_once) {
        const int heads = std::min(heads_at_once, group - head);
        const int64_t cost = std::min(context, problem.window + queries) * (queries * heads + 2);  // + 2: reading the cache
        for (int kv_head = 0; kv_head < problem.kv_num_heads; ++kv_head) {
          items.push_back({static_cast<int32_t>(s), kv_head, kv_head * group + head, heads, first, queries, cost});
        }
      }
    }
  }
  std::stable_sort(items.begin(), items.end(), [](const WorkItem& a, const WorkItem& b) { return a.cost > b.cost; });
  return items;
}

}  // namespace fastserve
