// What one call of PagedAttention has to do, as plain data shared by the op (which validates it) and the kernels.
//
// Only plain data and constants may live here: this header is compiled into translation units with different
// instruction sets, where an inline function could be emitted with the wrong one (the one-definition-rule trap).
#pragma once

#include <cstddef>
#include <cstdint>

namespace fastserve {

constexpr int kStrip = 16;         // tokens whose keys lie side by side; block_size is a multiple of it
constexpr int kTile = 64;          // positions whose softmax is rescaled at once; tiles are aligned to absolute positions
constexpr int kSpan = 512;         // positions that are summed up on their own, from nothing; spans are whole tiles
constexpr int kScaleBytes = 4;     // of an int8 cache, for each token and head
constexpr int kMaxHeadSize = 256;  // head_size is a multiple of 8 up to this
constexpr int kMaxRows = 64;       // query rows (queries x heads) of one work item

// What happens to each head's row of a query or key first: RMSNorm (Zhang & Sennrich, 2019), then rotary position embedding
// (Su et al., 2021) of its first rotary_size elements.
struct HeadChange {
  const float* norm_weight;  // [head_size], or null: not normalised
  float norm_epsilon;
  const float* cosines;  // [max_len, rotary_size / 2] by position, or null: not rotated
  const float* sines;
  int rotary_size;
  bool interleaved;  // pairs are neighbours (2 i, 2 i + 1), else halves (i, i + rotary_size / 2)
};

// Row-major tensors, already validated. "slot" = block * block_size + offset.
//
//   key_cache   [num_blocks, kv_num_heads, head_size, block_size]    one block of one head, head_size rows:
//                  dim 0: | t0 t1 t2 ... t15 |      a vector load covers one dim of consecutive tokens
//                  dim 1: | t0 t1 t2 ... t15 |
//   value_cache [num_blocks, kv_num_heads, block_size, head_size]    one block of one head, block_size rows:
//                  t0: | d0 d1 d2 ... |
//                  t1: | d0 d1 d2 ... |
//
// With int8 elements both caches are [num_blocks, kv_num_heads, (head_size + 4) * block_size] bytes: what one block of one head
// holds as above, and then block_size floats, the scale of each token. What is stored stands for element * scale.
struct AttentionProblem {
  const float* query;    // [num_tokens] rows of num_heads * head_size floats, query_stride apart
  const float* key;      // [num_tokens] rows of kv_num_heads * head_size floats, key_stride apart
  const float* value;    // as key
  int64_t query_stride;  // floats; all three may be columns of one tensor
  int64_t key_stride;    // of keys and of values
  HeadChange query_change;
  HeadChange key_change;
  void* key_cache;  // float, IEEE half or int8
  void* value_cache;
  float* output;                              // [num_tokens, num_heads * head_size]
  const int32_t* cumulative_sequence_length;  // [num_seqs + 1]
  const int32_t* past_seqlens;                // [num_seqs]
  const int32_t* block_table;                 // [num_seqs, max_blocks]
  const int32_t* slots;                       // [num_tokens], -1: do not write
  const int32_t* positions;                   // [num_tokens], each token's in its sequence
  const float* head_sink;                     // [num_heads] or null
  int64_t num_tokens;
  int64_t num_seqs;
  int64_t max_blocks;
  int64_t num_blocks;
  int64_t window;  // a query at p sees positions > p - window; INT64_MAX / 2 when there is none
  int partial_stride;  // floats of one row of partial results: head_size of them and two more, rounded up to whole strips
  int num_heads;
  int kv_num_heads;
  int head_size;
  int block_size;
  int64_t block_elements;  // of one block of one head, scales included
  float scale;
  float softcap;  // 0: off
};

// The attention of consecutive queries of one sequence over some query heads that share one key/value head: over all they
// see, or over one span of it.
struct WorkItem {
  int32_t sequence;
  int32_t kv_head;
  int32_t first_head;    // query head
  int32_t num_heads;     // query heads, all of the group of kv_head
  int32_t first_query;   // index among the sequence's new tokens
  int32_t num_queries;   // num_queries * num_heads <= kMaxRows
  int64_t first_span;    // spans [first_span, last_span) of kSpan positions
  int64_t last_span;
  int32_t split;         // which split attention it is a part of; -1: none, it covers all that its queries see
  float* partial;        // of a part: where its rows' partial results go, partial_stride floats each
  bool writes;           // its sequence has one new token, whose key and value the item puts into their slot itself
  int64_t cost;          // relative work, for balancing
};

}  // namespace fastserve
