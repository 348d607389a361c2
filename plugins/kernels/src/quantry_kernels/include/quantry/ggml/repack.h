// Whole weights: [batch, rows, columns] in file order ↔ planes of [batch, panels of 16 rows, columns].
// Panels are independent, so threads share them out; a panel is read and written once.
#pragma once
#include "../threads.h"
#include "pack.h"

QUANTRY_BEGIN

struct RepackArgs {
  int64_t batch, rows, columns;
  uint8_t* blocks;   // [batch, rows, columns / kBlock × kBlockBytes]
  uint8_t *codes, *high, *meta;
  int threads;
};

template <class F>
struct PanelOf {   // where panel `index` of all matrices lies
  uint8_t *blocks, *codes, *high, *meta;
  int rows;
  int64_t row_bytes, count;   // count: blocks of a row

  QUANTRY_INLINE PanelOf(const RepackArgs& a, int64_t index) {
    int64_t per_matrix = (a.rows + kRows - 1) / kRows, first = index % per_matrix * kRows;
    int64_t chunks = index * (a.columns / kChunk);
    count = a.columns / F::kBlock;
    row_bytes = count * F::kBlockBytes;
    blocks = a.blocks + (index / per_matrix * a.rows + first) * row_bytes;
    rows = static_cast<int>(min_of(kRows, a.rows - first));
    codes = a.codes + chunks * kLowBytes<F>;
    high = F::kHigh ? a.high + chunks * kHighBytes<F> : nullptr;
    meta = a.meta + index * meta_bytes<F>(a.columns);
  }
};

template <class F, class Body>
QUANTRY_INLINE void each_panel(const RepackArgs& a, const Body& body) {
  int64_t panels = a.batch * ((a.rows + kRows - 1) / kRows);
  parallel(useful_threads(plane_bytes<F>(panels, a.columns), a.threads), [&](Team team) {
    Range mine = team.share(panels);
    for (int64_t p = mine.begin; p < mine.end; ++p) body(PanelOf<F>(a, p));
  });
}

template <class F>
void pack_panels(const RepackArgs& a) {
  each_panel<F>(a, [&](const PanelOf<F>& p) {
    if (p.rows < kRows) {   // rows that do not exist have zero codes and zero scales
      int64_t chunks = a.columns / kChunk;
      memset(p.codes, 0, static_cast<size_t>(chunks * kLowBytes<F>));
      if (F::kHigh) memset(p.high, 0, static_cast<size_t>(chunks * kHighBytes<F>));
      memset(p.meta, 0, static_cast<size_t>(meta_bytes<F>(a.columns)));
    }
    for (int64_t b = 0; b < p.count; ++b)
      for (int r = 0; r < p.rows; ++r)
        pack_block<F>(p.blocks + r * p.row_bytes + b * F::kBlockBytes, lane_of_block<F>(p.codes, p.high, p.meta, b, r));
  });
}

template <class F>
void unpack_panels(const RepackArgs& a) {
  each_panel<F>(a, [&](const PanelOf<F>& p) {
    for (int64_t b = 0; b < p.count; ++b)
      for (int r = 0; r < p.rows; ++r)
        unpack_block<F>(p.blocks + r * p.row_bytes + b * F::kBlockBytes, lane_of_block<F>(p.codes, p.high, p.meta, b, r));
  });
}

QUANTRY_END
