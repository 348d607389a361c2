// y[M, N] = x[M, K] · W[N, K]ᵀ for few rows (M ≤ 8) with x in f32: exact codes times x, the scale after the sum of a group.
#pragma once
#include "../activations.h"
#include "scales.h"
#include "small_int8.h"

QUANTRY_BEGIN

template <class F, int R>
QUANTRY_INLINE void slab_float(const Planes& w, int chunks, int strip, const TileFloat& x, float* sums) {
  constexpr int chains = R == 1 ? 4 : R <= 3 ? 2 : 1;   // independent sums per row, for the latency of an FMA
  constexpr int groups = kChunk / F::kGroup;
  vf acc[R];
  repeat<R>([&](auto m) QUANTRY_LAMBDA { acc[m] = load(sums + m * kRows); });
  each_chunk<F>(w, chunks, strip, [&](int i, const Chunk<F>& chunk, vf s0, vf s1, vf m0, vf m1) QUANTRY_LAMBDA {
    prefetch_codes<F>(w, i, strip);
    const float* row = x.x + i * kChunk * R;
    repeat<groups>([&](auto g) QUANTRY_LAMBDA {
      constexpr int group = g;
      vf part[R * chains];
      repeat<R * chains>([&](auto n) QUANTRY_LAMBDA { part[n] = zero(); });
      each_code_float<F, group, groups>(chunk, [&](auto column, vf q) QUANTRY_LAMBDA {
        constexpr int k = column;
        repeat<R>([&](auto m) QUANTRY_LAMBDA {
          vf& sum = part[m * chains + k % chains];
          sum = fma(q, set1(row[k * R + m]), sum);
        });
      });
      repeat<R>([&](auto m) QUANTRY_LAMBDA {
        vf* p = part + m * chains;
        if constexpr (chains == 4) p[0] = add(add(p[0], p[1]), add(p[2], p[3]));
        if constexpr (chains == 2) p[0] = add(p[0], p[1]);
        acc[m] = fma(p[0], group == 0 ? s0 : s1, acc[m]);
      });
    });
    repeat<R>([&](auto m) QUANTRY_LAMBDA {
      if constexpr (F::kMins) {
        repeat<groups>([&](auto g) QUANTRY_LAMBDA {
          constexpr int group = g;
          vf min = group == 0 ? m0 : m1, total = set1(x.sums[(groups * i + group) * R + m]);
          acc[m] = F::kSuper ? fnma(min, total, acc[m]) : fma(min, total, acc[m]);
        });
      }
    });
  });
  repeat<R>([&](auto m) QUANTRY_LAMBDA { store(sums + m * kRows, acc[m]); });
}

template <class F, int R>
QUANTRY_NOINLINE void micro_small_float(const Planes& weights, int64_t panel, int64_t columns, TileFloat x, float* sums) {
  for (int i = 0; i < R * kRows; ++i) sums[i] = 0.0f;
  for (int64_t k = 0; k < columns; k += kSlab) {
    Planes w = planes_at<F>(weights, panel, columns, k);
    int chunks = static_cast<int>(min_of(kSlab, columns - k) / kChunk);
    for (int strip = 0; strip < kStrips; ++strip) slab_float<F, R>(w, chunks, strip, x, sums + strip * kLanes);
    x.x += kSlab * R;
    x.sums += kSlab / F::kGroup * R;
  }
}

QUANTRY_END
