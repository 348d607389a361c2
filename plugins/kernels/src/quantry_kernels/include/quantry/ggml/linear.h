// y[M, N] = x[M, K] · W[N, K]ᵀ (+ bias) on panels, any M.
//
//   M ≤ 8:  each thread runs its panels with the fused small kernels.
//   M > 8:  per kTileColumns rows of W, 256 columns at a time: decode into L1, then the micro-kernel for every tile of x;
//           the outputs wait in C [≤ 504 rows][kTileColumns] f32 (63 KiB with 32 columns), which is scratch of the thread.
//
// Scratch: activations of all tiles, then C of each thread. With M = 1 and K ≤ kStackColumns none is needed: every thread
// quantizes x for itself on its stack, which is cheaper than a barrier.
// Rounding: Exact keeps x as given and sums f32 products; else x is rounded to int8 (activations.h) and dots are integers.
#pragma once
#include "../micro_float.h"
#include "../output.h"
#include "../threads.h"
#include "decode.h"
#include "small_float.h"
#include "small_int8.h"

QUANTRY_BEGIN

constexpr int kSmallRows = 8;
constexpr int kPassRows = 504;          // 42 × 12 and 84 × 6 rows
constexpr int kStackColumns = 8192;     // 32 KiB of f32 on the stack

struct LinearArgs {
  Matrix x;
  Planes w;
  int64_t rows;      // of W
  Output out;
  int threads;
  char* scratch;     // 64-byte aligned; linear_scratch() bytes
};

template <class F, bool Exact>
constexpr int64_t tile_row_bytes(int64_t columns) {
  return Exact ? TileFloat::row_bytes(columns) : TileInt8<F>::row_bytes(columns);
}

QUANTRY_INLINE int64_t round_up(int64_t n, int64_t step) { return (n + step - 1) / step * step; }

template <class F, bool Exact>
int64_t activation_bytes(int64_t m, int64_t columns) { return round_up(m * tile_row_bytes<F, Exact>(columns), 64); }

QUANTRY_INLINE int64_t tile_sum_bytes(int64_t m) { return round_up(min_of(m, kPassRows) * kTileColumns * 4, 64); }

template <class F, bool Exact>
int64_t linear_scratch(int64_t m, int64_t columns, int threads) {
  if (m == 1 && columns <= kStackColumns) return 0;
  return activation_bytes<F, Exact>(m, columns) + (m > kSmallRows ? threads * tile_sum_bytes(m) : 0);
}

template <class F, bool Exact>
QUANTRY_INLINE void prepare(const Matrix& x, const RowTiles& tiles, void* base, Range which) {
  if constexpr (Exact) widen_tiles(x, tiles, base, which, F::kMins);
  else quantize_tiles<F>(x, tiles, base, which);
}

// Outputs of one panel for one tile of R rows.
template <class F, bool Exact, int R>
QUANTRY_INLINE void small_panel(const LinearArgs& a, void* tiles, int64_t panel, int64_t first_row) {
  alignas(64) float sums[R * kRows];
  int64_t columns = a.x.columns;
  if constexpr (Exact) micro_small_float<F, R>(a.w, panel, columns, TileFloat(tiles, columns, first_row, R), sums);
  else micro_small_int8<F, R>(a.w, panel, columns, TileInt8<F>(tiles, columns, first_row, R), sums);
  int64_t count = min_of(kRows, a.rows - panel * kRows);
  for (int m = 0; m < R; ++m) a.out.put(first_row + m, panel * kRows, count, sums + m * kRows);
}

template <class F, bool Exact>
void linear_small(const LinearArgs& a, Team team) {
  constexpr int most = Exact ? kSmallRowsFloat : F::kHigh == 2 ? kSmallRowsSixBit : kSmallRowsInt8;
  RowTiles tiles(a.x.rows, most);
  alignas(64) char local[tile_row_bytes<F, Exact>(kStackColumns)];
  void* base = a.scratch;
  if (a.x.rows == 1 && a.x.columns <= kStackColumns) {
    base = local;
    prepare<F, Exact>(a.x, tiles, base, {0, 1});
  } else {
    prepare<F, Exact>(a.x, tiles, base, team.share(tiles.count));
    team.barrier();
  }
  Range mine = team.share((a.rows + kRows - 1) / kRows);
  for (int64_t p = mine.begin; p < mine.end; ++p)
    for (int64_t t = 0; t < tiles.count; ++t)
      with_count<most>(tiles.height(t), [&](auto r) QUANTRY_LAMBDA {
        constexpr int R = r;
        small_panel<F, Exact, R>(a, base, p, tiles.first(t));
      });
}

template <class F>
QUANTRY_INLINE void run_tile(const SlabInt8& slab, void* base, int64_t columns, int64_t k, int chunks, int64_t first_row,
                             int height, float* c) {
  TileInt8<F> t(base, columns, first_row, height);
  int64_t block = k / kActBlock<F> * height;
  TileSlab x{t.codes + k * height, t.scale + block, t.start + k / F::kGroup * height,
             static_cast<const float*>(t.sums) + (F::kSuper ? 4 * block : block)};
  with_count<kRowsInt8>(height, [&](auto r) QUANTRY_LAMBDA {
    constexpr int R = r;
    micro_int8<KindOf<F>, R>(slab, x, chunks * kChunk / F::kGroup, c);
  });
}

template <class F, bool Exact>
void linear_panels(const LinearArgs& a, Team team) {
  const int64_t columns = a.x.columns, panels = (a.rows + kRows - 1) / kRows;
  RowTiles tiles(a.x.rows, Exact ? kRowsFloat : kRowsInt8);
  prepare<F, Exact>(a.x, tiles, a.scratch, team.share(tiles.count));
  team.barrier();
  char* after = a.scratch + activation_bytes<F, Exact>(a.x.rows, columns);
  float* c = reinterpret_cast<float*>(after + team.id * tile_sum_bytes(a.x.rows));
  union {   // of one slab: 32 KiB of f32, or 8 KiB of codes and their scales
    alignas(64) float dense[Exact ? kSlab * kTileColumns : 1];
    SlabInt8 coded;
  } slab;

  Range mine = team.share((panels + kTilePanels - 1) / kTilePanels);
  for (int64_t group = mine.begin; group < mine.end; ++group) {
    int64_t first = group * kTilePanels, count = min_of(kTileColumns, a.rows - first * kRows);
    for (int64_t t0 = 0; t0 < tiles.count;) {
      int64_t t1 = tiles.pass_end(t0, kPassRows), row0 = tiles.first(t0);
      memset(c, 0, static_cast<size_t>(tiles.first(t1) - row0) * kTileColumns * 4);
      for (int64_t k = 0; k < columns; k += kSlab) {
        int chunks = static_cast<int>(min_of(kSlab, columns - k) / kChunk);
        for (int slot = 0; slot < kTilePanels; ++slot) {
          int64_t panel = min_of(first + slot, panels - 1);   // an odd last panel is decoded twice, stored once
          Planes w = planes_at<F>(a.w, panel, columns, k);
          if constexpr (Exact) decode_float<F>(w, chunks, slab.dense + slot * kRows, kTileColumns);
          else decode_int8<F>(w, chunks, slab.coded, slot);
          for (int i = 0; i < chunks * kLowBytes<F>; i += kCell) prefetch(w.codes + chunks * kLowBytes<F> + i);
        }
        for (int64_t t = t0; t < t1; ++t) {
          int height = tiles.height(t);
          float* ct = c + (tiles.first(t) - row0) * kTileColumns;
          if constexpr (Exact) {
            TileFloat x(a.scratch, columns, tiles.first(t), height);
            micro_float_rows(height, x.x + k * height, slab.dense, chunks * kChunk, ct);
          } else {
            run_tile<F>(slab.coded, a.scratch, columns, k, chunks, tiles.first(t), height, ct);
          }
        }
      }
      for (int64_t i = row0; i < tiles.first(t1); ++i)
        a.out.put(i, first * kRows, count, c + (i - row0) * kTileColumns);
      t0 = t1;
    }
  }
}

template <class F, bool Exact>
void linear(const LinearArgs& a) {
  if (a.x.rows == 0 || a.rows == 0) return;
  int64_t bytes = plane_bytes<F>((a.rows + kRows - 1) / kRows, a.x.columns);
  bool small = a.x.rows <= kSmallRows;
  parallel(useful_threads(bytes * a.x.rows, a.threads), [&](Team team) {
    if (small) linear_small<F, Exact>(a, team);
    else linear_panels<F, Exact>(a, team);
  });
}

QUANTRY_END
