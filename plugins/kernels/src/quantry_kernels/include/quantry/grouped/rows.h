// Single rows as numbers: y[i] = W[ids[i]], decoded as the rest of their panel is; a lookup reads a few KiB.
#pragma once
#include "source.h"

QUANTRY_BEGIN

template <class S>
void embedding_rows(const S& source, int dtype, const int64_t* ids, int64_t count, void* y, int threads) {
  const GroupedWeight& w = source.w;
  const Output out{y, w.g.columns, nullptr, dtype, nullptr, w.column_order()};
  parallel(useful_threads(count * w.padded * kRows, threads), [&](Team team) {
    Range mine = team.share(count);
    alignas(64) float slab[kSlab * kRows], values[kSlab];
    for (int64_t i = mine.begin; i < mine.end; ++i) {
      const int64_t row = w.stored_row(ids[i]);
      for (int64_t k = 0; k < w.g.columns; k += kSlab) {
        const int64_t columns = min_of(kSlab, w.g.columns - k);
        source.decode_float(row / kRows, k, static_cast<int>((columns + kChunk - 1) / kChunk), slab, kRows);
        for (int64_t j = 0; j < columns; ++j) values[j] = slab[j * kRows + row % kRows];
        out.put(i, k, columns, values);
      }
    }
  });
}

QUANTRY_END
