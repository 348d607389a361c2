// y_i[N_i] += (A x)_i · b_i: what adapters add to the results of layers that multiply the same x, for one row of x.
//
// All f32, products and sums FMA. Rows of A are shared out by fours, and behind a barrier the columns of all b_i by blocks:
// each number is computed by one thread, in an order that depends on the shape alone. The sum over the rank is made first and
// added to y once.
#pragma once
#include "low_rank_ops.h"
#include "simd.h"
#include "threads.h"

QUANTRY_BEGIN

constexpr int kInnerRows = 4;                   // × 2 steps of K: 8 sums, as many as FMA units × latency ask for
constexpr int kBlockVectors = 8;
constexpr int64_t kBlock = kBlockVectors * kLanes;   // columns: 256 or 512 bytes of each row of b

template <int W>
QUANTRY_NOINLINE void inner_rows(const float* a, const float* x, int64_t columns, float* inner) {
  vf acc[2 * W];
  repeat<2 * W>([&](auto i) QUANTRY_LAMBDA { acc[i] = zero(); });
  int64_t k = 0;
  for (; k + 2 * kLanes <= columns; k += 2 * kLanes)
    repeat<2>([&](auto half) QUANTRY_LAMBDA {
      const int64_t at = k + half * kLanes;
      vf v = load(x + at);
      repeat<W>([&](auto r) QUANTRY_LAMBDA { acc[half * W + r] = fma(load(a + r * columns + at), v, acc[half * W + r]); });
    });
  repeat<W>([&](auto r) QUANTRY_LAMBDA {
    float sum = sum_lanes(add(acc[r], acc[W + r]));
    for (int64_t j = k; j < columns; ++j) sum += a[r * columns + j] * x[j];
    inner[r] = sum;
  });
}

template <int V>
QUANTRY_NOINLINE void add_vectors(const float* b, int64_t width, const float* inner, int64_t ranks, float* y) {
  vf acc[V];
  repeat<V>([&](auto v) QUANTRY_LAMBDA { acc[v] = zero(); });
  for (int64_t r = 0; r < ranks; ++r) {
    vf factor = set1(inner[r]);
    repeat<V>([&](auto v) QUANTRY_LAMBDA { acc[v] = fma(factor, load(b + r * width + v * kLanes), acc[v]); });
  }
  repeat<V>([&](auto v) QUANTRY_LAMBDA { store(y + v * kLanes, add(load(y + v * kLanes), acc[v])); });
}

// Columns begin … end, begin a multiple of kBlock.
inline void add_columns(const float* b, int64_t width, const float* inner, int64_t ranks, float* y, Range mine) {
  int64_t n = mine.begin;
  for (; n + kBlock <= mine.end; n += kBlock) add_vectors<kBlockVectors>(b + n, width, inner, ranks, y + n);
  for (; n + kLanes <= mine.end; n += kLanes) add_vectors<1>(b + n, width, inner, ranks, y + n);
  for (; n < mine.end; ++n) {
    float sum = 0;
    for (int64_t r = 0; r < ranks; ++r) sum += inner[r] * b[r * width + n];
    y[n] += sum;
  }
}

inline void low_rank_team(const QuantryLowRank& w, const float* x, float* const* ys, float* inner, int64_t ranks, Team team) {
  const Range rows = team.share((ranks + kInnerRows - 1) / kInnerRows);
  for (int64_t r = rows.begin * kInnerRows; r < min_of(ranks, rows.end * kInnerRows); r += kInnerRows)
    with_count<kInnerRows>(static_cast<int>(min_of(kInnerRows, ranks - r)), [&](auto count) QUANTRY_LAMBDA {
      constexpr int W = count;
      inner_rows<W>(w.a + r * w.columns, x, w.columns, inner + r);
    });
  team.barrier();
  int64_t blocks = 0;
  for (int i = 0; i < w.count; ++i) blocks += (w.widths[i] + kBlock - 1) / kBlock;
  const Range mine = team.share(blocks);
  int64_t before = 0;
  for (int i = 0; i < w.count; ++i) {
    const int64_t width = w.widths[i];
    const Range part{max_of(0, mine.begin - before) * kBlock, min_of(width, (mine.end - before) * kBlock)};
    if (part.begin < part.end) add_columns(w.bs[i], width, inner, w.ranks[i], ys[i], part);
    before += (width + kBlock - 1) / kBlock;
    inner += w.ranks[i];
  }
}

inline void add_low_rank(const QuantryLowRank& w, const float* x, float* const* ys, int threads) {
  int64_t ranks = 0;
  for (int i = 0; i < w.count; ++i) ranks += w.ranks[i];
  float inner[kMostRanks];
  parallel(useful_threads(w.bytes, threads), [&](Team team) { low_rank_team(w, x, ys, inner, ranks, team); });
}

QUANTRY_END
