// fastserve::PagedAttention: causal attention of a packed batch over a paged key/value cache, mirroring the signature of
// com.microsoft::PagedAttention (which has no CPU kernel) so that a graph changes provider by changing the domain.
//
//   tokens     | seq 0: 3 new | seq 1: 1 new | seq 2: 200 new | ...      packed, no padding
//   cumulative   0              3              4                204
//
// Query, key and value are three inputs, or side by side in the first one. The position of token i of sequence s is
// past_seqlens[s] + i.
// 1. The heads of queries and keys are normalised (q_norm_weight, k_norm_weight) and rotated (do_rotary, by the row of
//    cos_cache and sin_cache at their position), each where asked for.
// 2. The keys and values of all new tokens go to their slots (slot_mapping, or where the block table puts them).
// 3. A token attends to cache positions 0 .. its own, all read back from the cache: with a half precision or int8 cache a prompt fed
//    in pieces sees exactly what it would see fed at once.
//
// key_cache and value_cache are inputs written in place: they must be bound by the caller (never produced by a node, never
// an initializer), belong to one node alone, and not be read by anyone else during the run. What a sequence with one new token
// writes, no other sequence of the run reads.
#include "paged_attention_op.h"

#include <algorithm>
#include <atomic>
#include <string>
#include <thread>

#include "isa/kernels.h"
#include "op_inputs.h"
#include "op_schema.h"
#include "paged_attention_inputs.h"
#include "parallel_for.h"
#include "work_plan.h"

namespace fastserve {
namespace {

// Attributes of the mirrored op that ask for something this kernel does not do.
void refuse_unsupported(const ort::Api& api, const ort::KernelInfo* info) {
  struct Fixed {
    const char* name;
    int64_t value;
  };
  for (const Fixed fixed : {Fixed{"rotary_offset", 0}, {"v_head_size", 0}, {"is_causal", 1}}) {
    const int64_t value = read_int(api, info, fixed.name, fixed.value);
    if (value != fixed.value)
      refuse_attribute(kPagedAttentionSchema, fixed.name, std::to_string(value),
                       std::to_string(fixed.value) + " (no other value is supported)");
  }
  for (const char* name : {"k_quant_type", "v_quant_type"}) {
    const std::string value = read_string(api, info, name, "NONE");
    if (value != "NONE") refuse_attribute(kPagedAttentionSchema, name, "\"" + value + "\"", "\"NONE\"");
  }
  for (const char* name : {"k_cache_dtype", "v_cache_dtype", "kv_cache_layout"}) {
    const std::string value = read_string(api, info, name, "");
    if (!value.empty())
      refuse_attribute(kPagedAttentionSchema, name, "\"" + value + "\"", "absent (the caches' element type and shape say it)");
  }
}

PagedAttentionAttributes read_attributes(const ort::Api& api, const ort::KernelInfo* info) {
  const AttentionAttributes attention = read_attention_attributes(api, info, kPagedAttentionSchema, 1);
  const float softcap = read_float(api, info, "softcap", 0.0f);
  if (!(softcap >= 0.0f && softcap <= 1e30f))
    refuse_attribute(kPagedAttentionSchema, "softcap", std::to_string(softcap), "0 (off) or more");
  refuse_unsupported(api, info);
  return {attention, read_head_change_attributes(api, info, kPagedAttentionSchema), softcap};
}

constexpr int kSharesOfThread = 16;  // an item may keep one thread busy for this part of what all have to do, unsplit

int hardware_threads() {
  static const int threads = static_cast<int>(std::min(kMostThreads, size_t{std::max(1u, std::thread::hardware_concurrency())}));
  return threads;
}

struct PagedAttentionKernel {
  static const OpSchema& schema() { return kPagedAttentionSchema; }

  PagedAttentionKernel(const ort::Api& ort_api, const ort::KernelInfo* info)
      : api(ort_api), attributes(read_attributes(ort_api, info)), kernels(choose_kernels()) {}

  void compute(ort::KernelContext* context) const {
    PagedAttentionCall call{};
    AttentionProblem& problem = call.problem;
    read_inputs(api, context, attributes, call);
    problem.output = make_output(api, context, {problem.num_tokens, static_cast<int64_t>(problem.num_heads) * problem.head_size});
    const auto [scatter, attend] = call.cache_type == ort::kFloat     ? kernels.float_cache
                                   : call.cache_type == ort::kFloat16 ? kernels.half_cache
                                                                      : kernels.int8_cache;
    const size_t heads = static_cast<size_t>(problem.kv_num_heads);
    WorkPlan& plan = plan_work(problem, kSharesOfThread * hardware_threads());
    parallel_for(api, context, plan.writes.size() * heads, [&](size_t i) {
      const NewTokens tokens = plan.writes[i / heads];
      scatter(problem, tokens.first, tokens.last, static_cast<int>(i % heads));
    });
    // What a thread computes after its turn is a guess: the others take a turn each meanwhile.
    const size_t others = std::min(plan.turns.size(), static_cast<size_t>(hardware_threads()));
    parallel_for(api, context, plan.turns.size(), [&](size_t turn) {
      const size_t last = plan.turns[turn].last;
      const WorkItem* next = turn + others < plan.turns.size() ? &plan.items[plan.turns[turn + others].first] : nullptr;
      for (size_t i = plan.turns[turn].first; i < last; ++i) {
        const WorkItem& item = plan.items[i];
        attend(problem, item, i + 1 < last ? &plan.items[i + 1] : next);
        if (item.split < 0) continue;
        SplitAttention& split = plan.splits[static_cast<size_t>(item.split)];
        // Whoever finishes last sees what the others wrote.
        if (split.unfinished.fetch_sub(1, std::memory_order_acq_rel) == 1) kernels.combine_parts(problem, split.whole, split.parts);
      }
    });
  }

  const ort::Api& api;
  const PagedAttentionAttributes attributes;
  const Kernels& kernels;
};

}  // namespace

const ort::CustomOp& paged_attention_op() {
  static const ort::CustomOp op = define_op<PagedAttentionKernel>();
  return op;
}

}  // namespace fastserve
