// Rows of x are cut into tiles of nearly equal height: with T = ceil(M / most), tile i holds rows iM/T … (i+1)M/T. A full
// kernel never runs on padding, and there is no tiny last tile, which would be bound by latency.
#pragma once
#include "target.h"

QUANTRY_BEGIN

struct RowTiles {
  int64_t rows, count, full = 0;   // the first `full` tiles have `size` rows each
  int size = 0;

  QUANTRY_INLINE RowTiles(int64_t rows, int most) : rows(rows), count((rows + most - 1) / most) {}
  // As many tiles of `size` rows as there are, the rest balanced in tiles of at most `few`.
  QUANTRY_INLINE RowTiles(int64_t rows, int size, int few)
      : rows(rows), count(rows / size + (rows % size + few - 1) / few), full(rows / size), size(size) {}

  QUANTRY_INLINE int64_t first(int64_t i) const {
    return i <= full ? (full ? i * size : 0) : full * size + (i - full) * (rows - full * size) / (count - full);
  }
  QUANTRY_INLINE int height(int64_t i) const { return static_cast<int>(first(i + 1) - first(i)); }

  // The first tile of the pass after `tile`, so that a pass has at most `limit` rows (limit ≥ a tile's height).
  QUANTRY_INLINE int64_t pass_end(int64_t tile, int64_t limit) const {
    int64_t end = tile + 1;
    while (end < count && first(end + 1) - first(tile) <= limit) ++end;
    return end;
  }
};

QUANTRY_END
