// How the attention of a packed batch is cut into independent work items.
#pragma once

#include <vector>

#include "attention_problem.h"

namespace fastserve {

// Items cover every (query, head) exactly once, most expensive first, so that handing them out in order balances a long
// prefill against many decodes. The cut never changes a result (see isa/attend.inl).
std::vector<WorkItem> plan_work(const AttentionProblem& problem);

}  // namespace fastserve
