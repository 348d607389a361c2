// Groups of neighbours and the importance of their columns, one group a lane: what a search sums over a group has one order,
// whatever the width of the vectors.
#pragma once
#include "lanes.h"

QUANTRY_BEGIN

// Element r of the group in lane l is at [r · kWide + l].
template <int Group>
struct GroupLanes {
  alignas(64) float x[Group * kWide], weight[Group * kWide];

  // The `count` ≤ kWide groups from `from` on; the first is group number `first` of a matrix of `columns`, a multiple of
  // Group. Lanes beyond repeat the last group.
  QUANTRY_INLINE void load(const float* from, int count, const float* importance, int64_t first, int64_t columns) {
    for (int lane = 0; lane < kWide; lane++) {
      const int g = lane < count ? lane : count - 1;
      const float* weights = importance + (first + g) * Group % columns;
      for (int r = 0; r < Group; r++) {
        x[r * kWide + lane] = from[g * Group + r];
        weight[r * kWide + lane] = weights[r];
      }
    }
  }
};

QUANTRY_END
