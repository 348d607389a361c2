// Rows of x are cut into tiles of nearly equal height: with T = ceil(M / most), tile i holds rows iM/T … (i+1)M/T. A full
// kernel never runs on padding, and there is no tiny last tile, which would be bound by latency.
#pragma once
#include "target.h"

QUANTRY_BEGIN

struct RowTiles {
  int64_t rows, count;

  QUANTRY_INLINE RowTiles(int64_t rows, int most) : rows(rows), count((rows + most - 1) / most) {}
  QUANTRY_INLINE int64_t first(int64_t i) const { return i * rows / count; }
  QUANTRY_INLINE int height(int64_t i) const { return static_cast<int>(first(i + 1) - first(i)); }

  // The first tile of the pass after `tile`, so that a pass has at most `limit` rows (limit ≥ a tile's height).
  QUANTRY_INLINE int64_t pass_end(int64_t tile, int64_t limit) const {
    int64_t end = tile + 1;
    while (end < count && first(end + 1) - first(tile) <= limit) ++end;
    return end;
  }
};

QUANTRY_END
