// dx[M, K] = dy[M, N] · W[N, K] on the same panels, for every source of linear.h. The sum runs over rows of W, so a slab of
// 256 columns of a few panels is decoded, turned around, and fed to the f32 micro-kernel with rows of W as its depth.
// Threads own slabs; the order over N is fixed.
#pragma once
#include "linear.h"

QUANTRY_BEGIN

constexpr int kTurnedPanels = 4;   // 64 rows of W at a time: 64 KiB of f32, half of what stays in L2 beside C

struct BackwardArgs {
  Matrix dy;         // [M, N]
  Output dx;         // [M, K]
  char* scratch;
  ColumnOrder rows = {};   // stored row n of W belongs to column rows.at(n) of dy
};

// All tiles of dy as [N rounded up to panels][R] f32, then per thread C [M ≤ kPassRows][256] and the turned slab.
QUANTRY_INLINE int64_t gradient_bytes(int64_t m, int64_t rows) { return round_up(m * round_up(rows, kRows) * 4, 64); }
constexpr int64_t kTurnedBytes = kTurnedPanels * kRows * kSlab * 4;
QUANTRY_INLINE int64_t backward_thread_bytes(int64_t m) { return min_of(m, kPassRows) * kSlab * 4 + kTurnedBytes; }
inline int64_t backward_scratch(int64_t m, int64_t rows, int threads) {
  return gradient_bytes(m, rows) + threads * backward_thread_bytes(m);
}

inline void widen_gradient(const Matrix& dy, const ColumnOrder& order, const RowTiles& tiles, float* base, Range which) {
  const int64_t padded = round_up(dy.columns, kRows);
  with_dtype(dy.dtype, [&](auto d) {
    constexpr int D = d;
    for (int64_t t = which.begin; t < which.end; ++t) {
      int height = tiles.height(t);
      float* tile = base + tiles.first(t) * padded;
      for (int m = 0; m < height; ++m) {
        auto row = dy.row<D>(tiles.first(t) + m);
        for (int64_t n = 0; n < padded; ++n)
          tile[n * height + m] = n < dy.columns ? one_as_float<D>(row[order.at(n)]) : 0.0f;   // padding rows of W count nothing
      }
    }
  });
}

// turned[column / kTileColumns][16·panels][kTileColumns] = columns k … of consecutive panels.
template <class S>
void decode_turned(const S& w, int64_t first_panel, int64_t panels, int64_t k, int chunks, float* turned) {
  alignas(64) float slab[kSlab * kRows];
  for (int64_t p = 0; p < panels; ++p) {
    w.decode_float(first_panel + p, k, chunks, slab, kRows);
    for (int column = 0; column < chunks * kChunk; ++column) {
      float* to = turned + (column / kTileColumns * panels + p) * kRows * kTileColumns + column % kTileColumns;
      for (int r = 0; r < kRows; ++r) to[r * kTileColumns] = slab[column * kRows + r];
    }
  }
}

template <class S>
void linear_dx(const S& w, const BackwardArgs& a, int threads) {
  const int64_t rows = a.dy.rows, padded = round_up(a.dy.columns, kRows), panels = padded / kRows;
  if (rows == 0 || w.columns == 0) return;
  RowTiles tiles(rows, kRowsFloat);
  const int64_t slabs = (w.columns + kSlab - 1) / kSlab;
  parallel(useful_threads(w.bytes() * rows, threads), [&](Team team) {
    float* dy = reinterpret_cast<float*>(a.scratch);
    widen_gradient(a.dy, a.rows, tiles, dy, team.share(tiles.count));
    team.barrier();
    char* mine = a.scratch + gradient_bytes(rows, a.dy.columns) + team.id * backward_thread_bytes(rows);
    float* turned = reinterpret_cast<float*>(mine);
    float* c = reinterpret_cast<float*>(mine + kTurnedBytes);
    Range share = team.share(slabs);
    for (int64_t s = share.begin; s < share.end; ++s) {
      const int64_t k = s * kSlab;
      const int chunks = static_cast<int>(min_of(kSlab, w.columns - k) / kChunk);
      const int blocks = chunks * kChunk / kTileColumns;
      for (int64_t t0 = 0; t0 < tiles.count;) {
        int64_t t1 = tiles.pass_end(t0, kPassRows), row0 = tiles.first(t0), height = tiles.first(t1) - row0;
        memset(c, 0, static_cast<size_t>(blocks * height) * kTileColumns * 4);   // c[block][row][kTileColumns]
        for (int64_t p = 0; p < panels; p += kTurnedPanels) {
          int64_t count = min_of(kTurnedPanels, panels - p);
          decode_turned(w, p, count, k, chunks, turned);
          for (int b = 0; b < blocks; ++b)
            for (int64_t t = t0; t < t1; ++t)
              micro_float_rows(tiles.height(t), dy + tiles.first(t) * padded + p * kRows * tiles.height(t),
                               turned + b * count * kRows * kTileColumns, count * kRows,
                               c + (b * height + tiles.first(t) - row0) * kTileColumns);
        }
        for (int b = 0; b < blocks; ++b)
          for (int64_t i = 0; i < height; ++i)
            a.dx.put(row0 + i, k + b * kTileColumns, max_of(0, min_of(kTileColumns, a.dx.columns - k - b * kTileColumns)),
                     c + (b * height + i) * kTileColumns);
        t0 = t1;
      }
    }
  });
}

QUANTRY_END
