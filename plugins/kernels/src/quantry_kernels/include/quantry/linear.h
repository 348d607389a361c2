// y[M, N] = x[M, K] · W[N, K]ᵀ (+ bias) on panels, any M, for every kind of packed weight.
//
//   M ≤ 8:  each thread runs its panels with the fused small kernels of the weight.
//   M > 8:  per kTileColumns rows of W, 256 columns at a time: decode into L1, then the micro-kernel for every tile of x;
//           the outputs wait in C [≤ 504 rows][kTileColumns] f32 (63 KiB with 32 columns), which is scratch of the thread.
//
// A weight is a *source* S, cheap to copy:
//   rows, columns                                      N, and K rounded up to whole chunks of 32
//   kInt8; kMostInt8, kMostFloat                       whether int8 activations make sense; most rows of its small kernels
//   bytes()                                            of all planes, to balance threads
//   int8_row_bytes(), float_row_bytes()                of one row of activations; a tile of R rows has R of them
//   quantize(x, tiles, base, range), widen(…)          fill those tiles
//   small_int8<R>(panel, base, first_row, sums)        sums[R][16] of one panel; small_float<R> likewise
//   decode_float(panel, k, chunks, out, stride)        f32 weights, out[column · stride + row]
//   decode_int8(panel, k, chunks, slab, slot)          codes and scales for run_int8<R>(slab, base, k, chunks, first_row, c)
//   float_tile(base, k, first_row, height)             x [depth][height] from column k on
//   prefetch_slab(panel, k, chunks)                    the codes after this slab
//
// Scratch: activations of all tiles, then C of each thread. With M = 1 and few columns none is needed: every thread
// prepares x for itself on its stack, which is cheaper than a barrier.
// Exact keeps x as given and sums f32 products; else x is rounded to int8 and dots within a block are integers.
#pragma once
#include "micro_float.h"
#include "micro_int8.h"
#include "output.h"
#include "threads.h"
#include "tiles.h"

QUANTRY_BEGIN

constexpr int kSmallRows = 8;
constexpr int kPassRows = 504;          // 42 × 12 and 84 × 6 rows
constexpr int kStackColumns = 8192;
constexpr int kStackBytes = 40 * 1024;  // 8192 columns of f32 and their sums

struct LinearArgs {
  Matrix x;
  Output out;
  char* scratch;     // 64-byte aligned; linear_scratch() bytes
};

QUANTRY_INLINE int64_t round_up(int64_t n, int64_t step) { return (n + step - 1) / step * step; }

template <class S, bool Exact>
QUANTRY_INLINE int64_t activation_row_bytes(const S& w) { return Exact ? w.float_row_bytes() : w.int8_row_bytes(); }

template <class S, bool Exact>
QUANTRY_INLINE bool on_stack(const S& w, int64_t m) {
  return m == 1 && w.columns <= kStackColumns && activation_row_bytes<S, Exact>(w) <= kStackBytes;
}

template <class S, bool Exact>
QUANTRY_INLINE int64_t activation_bytes(const S& w, int64_t m) { return round_up(m * activation_row_bytes<S, Exact>(w), 64); }

QUANTRY_INLINE int64_t tile_sum_bytes(int64_t m) { return round_up(min_of(m, kPassRows) * kTileColumns * 4, 64); }

template <class S, bool Exact>
QUANTRY_INLINE int64_t linear_scratch(const S& w, int64_t m, int threads) {
  if (on_stack<S, Exact>(w, m)) return 0;
  return activation_bytes<S, Exact>(w, m) + (m > kSmallRows ? threads * tile_sum_bytes(m) : 0);
}

template <class S, bool Exact>
QUANTRY_INLINE void prepare(const S& w, const Matrix& x, const RowTiles& tiles, void* base, Range which) {
  if constexpr (Exact) w.widen(x, tiles, base, which);
  else w.quantize(x, tiles, base, which);
}

// Outputs of one panel for one tile of R rows.
template <class S, bool Exact, int R>
QUANTRY_INLINE void small_panel(const S& w, const Output& out, const void* tiles, int64_t panel, int64_t first_row) {
  alignas(64) float sums[R * kRows];
  if constexpr (Exact) w.template small_float<R>(panel, tiles, first_row, sums);
  else w.template small_int8<R>(panel, tiles, first_row, sums);
  int64_t count = min_of(kRows, w.rows - panel * kRows);
  for (int m = 0; m < R; ++m) out.put(first_row + m, panel * kRows, count, sums + m * kRows);
}

template <class S, bool Exact>
void linear_small(const S& w, const LinearArgs& a, Team team) {
  constexpr int most = Exact ? S::kMostFloat : S::kMostInt8;
  RowTiles tiles(a.x.rows, most);
  alignas(64) char local[kStackBytes];
  void* base = a.scratch;
  if (on_stack<S, Exact>(w, a.x.rows)) {
    base = local;
    prepare<S, Exact>(w, a.x, tiles, base, {0, 1});
  } else {
    prepare<S, Exact>(w, a.x, tiles, base, team.share(tiles.count));
    team.barrier();
  }
  Range mine = team.share((w.rows + kRows - 1) / kRows);
  for (int64_t p = mine.begin; p < mine.end; ++p)
    for (int64_t t = 0; t < tiles.count; ++t)
      with_count<most>(tiles.height(t), [&](auto r) QUANTRY_LAMBDA {
        constexpr int R = r;
        small_panel<S, Exact, R>(w, a.out, base, p, tiles.first(t));
      });
}

template <class S, bool Exact>
void linear_panels(const S& w, const LinearArgs& a, Team team) {
  const int64_t panels = (w.rows + kRows - 1) / kRows;
  RowTiles tiles(a.x.rows, Exact ? kRowsFloat : kRowsInt8);
  prepare<S, Exact>(w, a.x, tiles, a.scratch, team.share(tiles.count));
  team.barrier();
  char* after = a.scratch + activation_bytes<S, Exact>(w, a.x.rows);
  float* c = reinterpret_cast<float*>(after + team.id * tile_sum_bytes(a.x.rows));
  union {   // of one slab: 32 KiB of f32, or 8 KiB of codes and their scales
    alignas(64) float dense[Exact ? kSlab * kTileColumns : 1];
    SlabInt8 coded;
  } slab;

  Range mine = team.share((panels + kTilePanels - 1) / kTilePanels);
  for (int64_t group = mine.begin; group < mine.end; ++group) {
    int64_t first = group * kTilePanels, count = min_of(kTileColumns, w.rows - first * kRows);
    for (int64_t t0 = 0; t0 < tiles.count;) {
      int64_t t1 = tiles.pass_end(t0, kPassRows), row0 = tiles.first(t0);
      memset(c, 0, static_cast<size_t>(tiles.first(t1) - row0) * kTileColumns * 4);
      for (int64_t k = 0; k < w.columns; k += kSlab) {
        int chunks = static_cast<int>(min_of(kSlab, w.columns - k) / kChunk);
        for (int slot = 0; slot < kTilePanels; ++slot) {
          int64_t panel = min_of(first + slot, panels - 1);   // an odd last panel is decoded twice, stored once
          if constexpr (Exact) w.decode_float(panel, k, chunks, slab.dense + slot * kRows, kTileColumns);
          else w.decode_int8(panel, k, chunks, slab.coded, slot);
          w.prefetch_slab(panel, k, chunks);
        }
        for (int64_t t = t0; t < t1; ++t) {
          int height = tiles.height(t);
          float* ct = c + (tiles.first(t) - row0) * kTileColumns;
          if constexpr (Exact) {
            micro_float_rows(height, w.float_tile(a.scratch, k, tiles.first(t), height), slab.dense, chunks * kChunk, ct);
          } else {
            with_count<kRowsInt8>(height, [&](auto r) QUANTRY_LAMBDA {
              constexpr int R = r;
              w.template run_int8<R>(slab.coded, a.scratch, k, chunks, tiles.first(t), ct);
            });
          }
        }
      }
      for (int64_t i = row0; i < tiles.first(t1); ++i)
        a.out.put(i, first * kRows, count, c + (i - row0) * kTileColumns);
      t0 = t1;
    }
  }
}

// The share of one thread of a team; the team passes a barrier inside unless x fits the stack.
template <class S, bool Exact>
QUANTRY_INLINE void linear_team(const S& w, const LinearArgs& a, Team team) {
  if (a.x.rows == 0 || w.rows == 0) return;
  if (a.x.rows <= kSmallRows) linear_small<S, Exact>(w, a, team);
  else linear_panels<S, Exact>(w, a, team);
}

template <class S, bool Exact>
void linear(const S& w, const LinearArgs& a, int threads) {
  if (a.x.rows == 0 || w.rows == 0) return;
  parallel(useful_threads(w.bytes() * a.x.rows, threads), [&](Team team) { linear_team<S, Exact>(w, a, team); });
}

QUANTRY_END
