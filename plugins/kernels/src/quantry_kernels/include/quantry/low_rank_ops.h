// What adapters add, described once, and the function of one target that adds it.
#pragma once
#include <stdint.h>

constexpr int64_t kMostRanks = 1024;   // in all: what lies between the two products stands on the stack

// Layers that multiply the same x. a [R, columns]: their first matrices, one below the other, R = Σ ranks[i];
// bs[i] [ranks[i], widths[i]]. All f32 and contiguous.
struct QuantryLowRank {
  int32_t target, count;
  int64_t columns, bytes;   // bytes: of a and all bs, as a check
  const float* a;
  const int64_t *ranks, *widths;
  const float* const* bs;
};

struct QuantryLowRankOps {
  void (*add)(const QuantryLowRank& w, const float* x, float* const* ys, int threads);
};
