// y[M, N] = x[M, K] · W[N, K]ᵀ (+ bias) on panels, any M, for every kind of packed weight.
//
//   M ≤ 8:  each thread runs its panels with the fused small kernels of the weight; with int8 or bf16 activations and
//           kernels of eight rows, any M: decoding a panel anew for each tile costs less than the sums of a slab in memory.
//   else:   per kTileColumns rows of W, 256 columns at a time: decode into L1, then the micro-kernel for every tile of x;
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
//   kMostPairs                                         most rows of small_pairs<R>; 0: none, small batches use floats
//   pair_row_bytes(), pairs(x, …), small_pairs<R>, decode_pairs, run_pairs<R>   the same for bf16 activations (micro_pairs.h),
//                                                      asked for only where kPairs and pairs_run()
//   prefetch_slab(panel, k, chunks)                    the codes after this slab
//
// Scratch: activations of all tiles, then C of each thread. With M = 1 and few columns none is needed: every thread
// prepares x for itself on its stack, which is cheaper than a barrier.
// M: kRounded makes x int8, dots within a block are integers; kWidened makes x f32, kPaired takes bf16 as it is: both keep x
// as given and sum f32 products.
#pragma once
#include "micro_float.h"
#include "micro_int8.h"
#include "micro_pairs.h"
#include "output.h"
#include "threads.h"
#include "tiles.h"

QUANTRY_BEGIN

enum Activations { kRounded = 0, kWidened = 1, kPaired = 2 };

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

template <class S, int M>
QUANTRY_INLINE int64_t activation_row_bytes(const S& w) {
  if constexpr (M == kPaired) return w.pair_row_bytes();
  else return M == kWidened ? w.float_row_bytes() : w.int8_row_bytes();
}

template <class S, int M>
QUANTRY_INLINE bool on_stack(const S& w, int64_t m) {
  return m == 1 && w.columns <= kStackColumns && activation_row_bytes<S, M == kPaired ? kWidened : M>(w) <= kStackBytes;
}

template <class S, int M>
QUANTRY_INLINE int64_t activation_bytes(const S& w, int64_t m) { return round_up(m * activation_row_bytes<S, M>(w), 64); }

QUANTRY_INLINE int64_t tile_sum_bytes(int64_t m) { return round_up(min_of(m, kPassRows) * kTileColumns * 4, 64); }

// kPaired needs no more than kWidened: callers that do not know the dtype yet ask for that.
template <class S, int M>
QUANTRY_INLINE int64_t linear_scratch(const S& w, int64_t m, int threads) {
  if (on_stack<S, M>(w, m)) return 0;
  return activation_bytes<S, M>(w, m) + (m > kSmallRows ? threads * tile_sum_bytes(m) : 0);
}

template <class S, int M>
QUANTRY_INLINE void prepare(const S& w, const Matrix& x, const RowTiles& tiles, void* base, Range which) {
  if constexpr (M == kPaired) w.pairs(x, tiles, base, which);
  else if constexpr (M == kWidened) w.widen(x, tiles, base, which);
  else w.quantize(x, tiles, base, which);
}

// Outputs of one panel for one tile of R rows.
template <class S, int M, int R>
QUANTRY_INLINE void small_panel(const S& w, const Output& out, const void* tiles, int64_t panel, int64_t first_row) {
  alignas(64) float sums[R * kRows];
  if constexpr (M == kPaired) w.template small_pairs<R>(panel, tiles, first_row, sums);
  else if constexpr (M == kWidened) w.template small_float<R>(panel, tiles, first_row, sums);
  else w.template small_int8<R>(panel, tiles, first_row, sums);
  int64_t count = min_of(kRows, w.rows - panel * kRows);
  for (int m = 0; m < R; ++m) out.put(first_row + m, panel * kRows, count, sums + m * kRows);
}

template <class S, int M>
constexpr int small_mode() {
  if constexpr (M == kPaired) return S::kMostPairs == 0 ? kWidened : kPaired;
  else return M;
}

template <class S, int M>
constexpr int most_rows() {
  if constexpr (M == kPaired) return S::kMostPairs;
  else return M == kWidened ? S::kMostFloat : S::kMostInt8;
}

// Whether tiles of eight rows serve any M: f32 sums gain from the taller tiles of the slab kernel.
template <class S, int M>
constexpr bool always_small() { return M != kWidened && most_rows<S, M>() == kSmallRows; }

// Small kernels exist for 1 … 4 rows and, where registers allow, for 8: five to seven rows are two tiles. Each instance costs
// seconds to compile and saves little.
template <class S, int M>
void linear_small(const S& w, const LinearArgs& a, Team team) {
  constexpr int most = most_rows<S, M>(), few = static_cast<int>(min_of(most, 4));
  const RowTiles tiles = most == kSmallRows ? RowTiles(a.x.rows, most, few) : RowTiles(a.x.rows, few);
  alignas(64) char local[kStackBytes];
  void* base = a.scratch;
  if (on_stack<S, M>(w, a.x.rows)) {
    base = local;
    prepare<S, M>(w, a.x, tiles, base, {0, 1});
  } else {
    prepare<S, M>(w, a.x, tiles, base, team.share(tiles.count));
    team.barrier();
  }
  Range mine = team.share((w.rows + kRows - 1) / kRows);
  for (int64_t t0 = 0; t0 < tiles.count;) {   // a pass of rows stays in the last-level cache while all panels meet it
    int64_t t1 = tiles.pass_end(t0, kPassRows);
    for (int64_t p = mine.begin; p < mine.end; ++p)
      for (int64_t t = t0; t < t1; ++t) {
        if constexpr (most == kSmallRows) {
          if (tiles.height(t) == most) {
            small_panel<S, M, most>(w, a.out, base, p, tiles.first(t));
            continue;
          }
        }
        with_count<few>(tiles.height(t), [&](auto r) QUANTRY_LAMBDA {
          constexpr int R = r;
          small_panel<S, M, R>(w, a.out, base, p, tiles.first(t));
        });
      }
    t0 = t1;
  }
}

// The lowest tile that more than kSmallRows rows are cut into.
constexpr int least_height(int most) {
  int least = most;
  for (int m = kSmallRows + 1; m <= kSmallRows + most; ++m) {
    int height = m / ((m + most - 1) / most);
    if (height < least) least = height;
  }
  return least;
}

template <class S, int M>
void linear_panels(const S& w, const LinearArgs& a, Team team) {
  const int64_t panels = (w.rows + kRows - 1) / kRows;
  RowTiles tiles(a.x.rows, M == kWidened ? kRowsFloat : kRowsInt8);
  prepare<S, M>(w, a.x, tiles, a.scratch, team.share(tiles.count));
  team.barrier();
  char* after = a.scratch + activation_bytes<S, M>(w, a.x.rows);
  float* c = reinterpret_cast<float*>(after + team.id * tile_sum_bytes(a.x.rows));
  union {   // of one slab: 32 KiB of f32, 8 KiB of codes or 16 KiB of pairs and their scales
    alignas(64) float dense[M == kWidened ? kSlab * kTileColumns : 1];
    SlabInt8 coded;
    SlabPairs paired;
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
          if constexpr (M == kPaired) w.decode_pairs(panel, k, chunks, slab.paired, slot);
          else if constexpr (M == kWidened) w.decode_float(panel, k, chunks, slab.dense + slot * kRows, kTileColumns);
          else w.decode_int8(panel, k, chunks, slab.coded, slot);
          w.prefetch_slab(panel, k, chunks);
        }
        for (int64_t t = t0; t < t1; ++t) {
          int height = tiles.height(t);
          float* ct = c + (tiles.first(t) - row0) * kTileColumns;
          if constexpr (M == kWidened) {
            micro_float_rows(height, w.float_tile(a.scratch, k, tiles.first(t), height), slab.dense, chunks * kChunk, ct);
          } else {
            with_count<kRowsInt8, least_height(kRowsInt8)>(height, [&](auto r) QUANTRY_LAMBDA {
              constexpr int R = r;
              if constexpr (M == kPaired) w.template run_pairs<R>(slab.paired, a.scratch, k, chunks, tiles.first(t), ct);
              else w.template run_int8<R>(slab.coded, a.scratch, k, chunks, tiles.first(t), ct);
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
template <class S, int M>
QUANTRY_INLINE void linear_team(const S& w, const LinearArgs& a, Team team) {
  if (a.x.rows == 0 || w.rows == 0) return;
  if constexpr (always_small<S, M>()) linear_small<S, M>(w, a, team);
  else if (a.x.rows > kSmallRows) linear_panels<S, M>(w, a, team);
  else linear_small<S, small_mode<S, M>()>(w, a, team);
}

template <class S>
constexpr auto pairs_of(int) -> decltype(S::kPairs) { return S::kPairs; }
template <class S>
constexpr bool pairs_of(long) { return false; }   // a source without the constant

// Calls body(Const<mode>): bf16 activations as they are where W and the processor allow it, else f32; or int8.
template <class S, class Body>
QUANTRY_INLINE void with_mode(bool exact, int dtype, Body&& body) {
  if (!exact) {
    if constexpr (S::kInt8) body(Const<kRounded>{});
    return;
  }
  if constexpr (kHasPairs && pairs_of<S>(0)) {
    if (dtype == QUANTRY_BF16 && pairs_run()) return body(Const<kPaired>{});
  }
  body(Const<kWidened>{});
}

template <class S, int M>
void linear(const S& w, const LinearArgs& a, int threads) {
  if (a.x.rows == 0 || w.rows == 0) return;
  parallel(useful_threads(w.bytes() * a.x.rows, threads), [&](Team team) { linear_team<S, M>(w, a, team); });
}

QUANTRY_END
