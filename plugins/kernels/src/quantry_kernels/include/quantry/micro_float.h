// Dense micro-kernel: c[R][columns] += x[depth][R]ᵀ · w[depth][columns], all f32; columns = kTileColumns.
#pragma once
#include "simd.h"

QUANTRY_BEGIN

template <int R>
QUANTRY_NOINLINE void micro_float(const float* x, const float* w, int64_t depth, float* c) {
  vf acc[R][kTileStrips];
  repeat<R>([&](auto m) QUANTRY_LAMBDA {
    repeat<kTileStrips>([&](auto s) QUANTRY_LAMBDA { acc[m][s] = load(c + m * kTileColumns + s * kLanes); });
  });
  for (int64_t k = 0; k < depth; ++k) {
    vf row[kTileStrips];
    repeat<kTileStrips>([&](auto s) QUANTRY_LAMBDA { row[s] = load(w + s * kLanes); });
    repeat<R>([&](auto m) QUANTRY_LAMBDA {
      vf value = set1(x[m]);   // one broadcast for all strips: as memory operands it would be a load each
      repeat<kTileStrips>([&](auto s) QUANTRY_LAMBDA { acc[m][s] = fma(row[s], value, acc[m][s]); });
    });
    x += R;
    w += kTileColumns;
  }
  repeat<R>([&](auto m) QUANTRY_LAMBDA {
    repeat<kTileStrips>([&](auto s) QUANTRY_LAMBDA { store(c + m * kTileColumns + s * kLanes, acc[m][s]); });
  });
}

// The instance for `height` rows, 1 … kRowsFloat.
QUANTRY_INLINE void micro_float_rows(int height, const float* x, const float* w, int64_t depth, float* c) {
  with_count<kRowsFloat>(height, [&](auto r) QUANTRY_LAMBDA {
    constexpr int R = r;
    micro_float<R>(x, w, depth, c);
  });
}

QUANTRY_END
