// One pass over a span of a panel for few rows of x (M ≤ 8): no decoded copy.
//   int8:  sums += (scale · scale_x) · Σ (q − middle) x, dots of a unit exact in i32, units added in f32 in the order of K
//   float: sums += scale · Σ (q − middle) x, all f32
// and correction · Σ x of the unit where the weight has zeros or biases.
#pragma once
#include "activations.h"
#include "scales.h"

QUANTRY_BEGIN

constexpr int kScaleSpan = 512;   // columns whose scales are expanded at a time: 2 KiB of them with units of 16

struct Span {
  CodePlanes planes;
  const CodeTable* table;
  int chunks, unit_chunks;     // of the span, of a unit (0: two units a chunk)
  const float* scale;          // [unit][16]; axis OUT: [column]
  const float* correction;     // likewise, or null
};

// Requests the code lines a little ahead of a chunk (panel.h says why once a chunk).
template <class C>
QUANTRY_INLINE void prefetch_low(const typename C::Chunk& chunk, int strip) {
  if (strip != 0) return;
  for (int i = 0; i < C::Chunk::cells(C::kLow); i += kCell) prefetch(chunk.low + kPrefetchBytes + i);
}

// a[m] += Σ over quads J0 … J0 + Quads of the chunk; x: the chunk's activations [8][R][4].
template <class C, int R, int J0, int Quads, int Sums>
QUANTRY_INLINE void dot_quads(vi (&a)[Sums], const typename C::Chunk& chunk, const CodeTable* table, const int8_t* x) {
  repeat<Quads>([&](auto j) QUANTRY_LAMBDA {
    constexpr int quad = J0 + j;
    vc w = C::template int8<quad>(chunk, table);
    repeat<R>([&](auto m) QUANTRY_LAMBDA {
      int32_t four;
      memcpy(&four, x + (quad * R + m) * 4, 4);
      vi& sum = a[Sums > R ? quad % 2 * R + m : int(m)];
      if constexpr (C::kFull) sum = dot4_full(sum, w, four);
      else sum = dot4(sum, w, four);
    });
  });
}

template <class C, bool Half, int R>
QUANTRY_NOINLINE void micro_units_int8(const Span& w, const UnitTileInt8& x, float* sums) {
  constexpr int chains = R <= 2 ? 2 : 1;   // a second chain of sums hides the latency when there are few rows
  for (int strip = 0; strip < kStrips; ++strip) {
    typename C::Chunk chunk(w.planes, 0, strip);
    const int8_t* codes = x.codes;
    vf acc[R];
    vi a[R * chains];
    repeat<R>([&](auto m) QUANTRY_LAMBDA { acc[m] = load(sums + m * kRows + strip * kLanes); });
    auto start = [&](int u) QUANTRY_LAMBDA {
      repeat<R>([&](auto m) QUANTRY_LAMBDA {
        a[m] = set1_int(x.start[u * R + m]);
        if constexpr (chains == 2) a[R + m] = zero_int();
      });
    };
    auto finish = [&](int u) QUANTRY_LAMBDA {
      vf s = load(w.scale + u * kRows + strip * kLanes);
      repeat<R>([&](auto m) QUANTRY_LAMBDA {
        if constexpr (chains == 2) a[m] = add_int(a[m], a[R + m]);
        acc[m] = fma(to_float(a[m]), mul(s, set1(x.scale[u * R + m])), acc[m]);
      });
      if (w.correction) {
        vf c = load(w.correction + u * kRows + strip * kLanes);
        repeat<R>([&](auto m) QUANTRY_LAMBDA { acc[m] = fma(c, set1(x.sums[u * R + m]), acc[m]); });
      }
    };
    if constexpr (Half) {
      for (int i = 0; i < w.chunks; ++i, chunk.next(), codes += kChunk * R) {
        prefetch_low<C>(chunk, strip);
        start(2 * i);
        dot_quads<C, R, 0, 4>(a, chunk, w.table, codes);
        finish(2 * i);
        start(2 * i + 1);
        dot_quads<C, R, 4, 4>(a, chunk, w.table, codes);
        finish(2 * i + 1);
      }
    } else {
      for (int u = 0, left = w.chunks; left > 0; ++u, left -= w.unit_chunks) {
        start(u);
        for (int n = left < w.unit_chunks ? left : w.unit_chunks; n > 0; --n, chunk.next(), codes += kChunk * R) {
          prefetch_low<C>(chunk, strip);
          dot_quads<C, R, 0, 8>(a, chunk, w.table, codes);
        }
        finish(u);
      }
    }
    repeat<R>([&](auto m) QUANTRY_LAMBDA { store(sums + m * kRows + strip * kLanes, acc[m]); });
  }
}

template <class C, int Mode, int R>
QUANTRY_NOINLINE void micro_units_float(const Span& w, const UnitTileFloat& x, float* sums) {
  constexpr int chains = R == 1 ? 4 : R <= 3 ? 2 : 1;   // independent sums per row, for the latency of an FMA
  for (int strip = 0; strip < kStrips; ++strip) {
    typename C::Chunk chunk(w.planes, 0, strip);
    const float *row = x.x, *scale = w.scale, *correction = w.correction;   // axis OUT: of the chunk's columns
    vf acc[R], part[R * chains];
    vc seen = as_codes(zero_int());
    repeat<R>([&](auto m) QUANTRY_LAMBDA { acc[m] = load(sums + m * kRows + strip * kLanes); });
    auto start = [&]() QUANTRY_LAMBDA { repeat<R * chains>([&](auto n) QUANTRY_LAMBDA { part[n] = zero(); }); };
    auto multiply = [&](auto column, vf q) QUANTRY_LAMBDA {
      constexpr int k = column;
      if constexpr (Mode == kOut) q = fma(q, set1(scale[k]), set1(correction[k]));
      repeat<R>([&](auto m) QUANTRY_LAMBDA {
        vf& sum = part[m * chains + k % chains];
        sum = fma(q, set1(row[k * R + m]), sum);
      });
    };
    auto finish = [&](int u) QUANTRY_LAMBDA {
      vf s = Mode == kOut ? set1(1.0f) : load(w.scale + u * kRows + strip * kLanes);
      repeat<R>([&](auto m) QUANTRY_LAMBDA {
        vf* p = part + m * chains;
        if constexpr (chains == 4) p[0] = add(add(p[0], p[1]), add(p[2], p[3]));
        if constexpr (chains == 2) p[0] = add(p[0], p[1]);
        acc[m] = fma(p[0], s, acc[m]);
      });
      if (Mode != kOut && w.correction) {
        vf c = load(w.correction + u * kRows + strip * kLanes);
        repeat<R>([&](auto m) QUANTRY_LAMBDA { acc[m] = fma(c, set1(x.sums[u * R + m]), acc[m]); });
      }
    };
    if constexpr (Mode == kHalf) {
      for (int i = 0; i < w.chunks; ++i, chunk.next(), row += kChunk * R) {
        prefetch_low<C>(chunk, strip);
        repeat<2>([&](auto h) QUANTRY_LAMBDA {
          constexpr int half = h;
          start();
          C::template each_float<C::kZero, half, 2>(chunk, w.table, multiply);
          finish(2 * i + half);
        });
        if constexpr (C::kNan) seen = C::broken(chunk, seen);
      }
    } else {
      for (int u = 0, left = w.chunks; left > 0; ++u, left -= w.unit_chunks) {
        start();
        for (int n = left < w.unit_chunks ? left : w.unit_chunks; n > 0; --n, chunk.next(), row += kChunk * R) {
          prefetch_low<C>(chunk, strip);
          C::template each_float<C::kZero, 0, 1>(chunk, w.table, multiply);
          if constexpr (C::kNan) seen = C::broken(chunk, seen);
          if constexpr (Mode == kOut) scale += kChunk, correction += kChunk;
        }
        finish(u);
      }
    }
    repeat<R>([&](auto m) QUANTRY_LAMBDA {
      if constexpr (C::kNan) acc[m] = C::with_nan(acc[m], seen);
      store(sums + m * kRows + strip * kLanes, acc[m]);
    });
  }
}

QUANTRY_END
