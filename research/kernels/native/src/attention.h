// Attention in float32 that holds no more than a block of scores for each thread: see research/kernels/attention.
#pragma once

#include <cstdint>

#include "pool.h"

namespace flagship {

struct AttentionShape {
  int64_t batch, length, keys, heads, groups, width;  // of queries (B, L, H, K), and of keys and values (B, M, G, K)
  bool causal;
  int64_t window;        // 0: none
  float softcap, scale;  // softcap 0: none

  // The keys that a query sees, but for segments: first(row) ≤ key < last(row). Neither falls from row to row.
  int64_t first(int64_t row) const {
    const int64_t place = row + keys - length;
    return window > 0 && place >= window ? place - window + 1 : 0;
  }
  int64_t last(int64_t row) const {
    const int64_t place = row + keys - length;
    const int64_t end = causal ? place + 1 : window > 0 ? place + window : keys;
    return end < 0 ? 0 : end < keys ? end : keys;
  }
};

// Segments are (B, L) and (B, M), or both null; sums is the log-sum-exp, (B, L, H).
struct AttentionForwardArrays {
  const float *q, *k, *v;
  const int32_t *query_segments, *key_segments;
  float *output, *sums;
};

struct AttentionBackwardArrays {
  const float *q, *k, *v;
  const int32_t *query_segments, *key_segments;
  const float *output, *sums, *to_output, *to_sums;
  float *to_q, *to_k, *to_v;
};

#define FLAGSHIP_ATTENTION                                                                  \
  void AttentionForward(const AttentionShape&, const AttentionForwardArrays&, const Pool&); \
  void AttentionBackward(const AttentionShape&, const AttentionBackwardArrays&, const Pool&);

namespace avx2 {
FLAGSHIP_ATTENTION
}
namespace avx512 {
FLAGSHIP_ATTENTION
}

}  // namespace flagship
