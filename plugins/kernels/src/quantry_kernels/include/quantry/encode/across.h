// Reductions across the lanes of a vector, for results that do not depend on the order: the smallest and the largest.
#pragma once
#include "lanes.h"

QUANTRY_BEGIN

template <int N, int... Lane>
struct LaneList : LaneList<N - 1, N - 1, Lane...> {};
template <int... Lane>
struct LaneList<0, Lane...> {
  // Lane l of the result is lane l ^ By of v.
  template <int By>
  QUANTRY_INLINE static Floats crossed(Floats v) { return __builtin_shufflevector(v, v, (Lane ^ By)...); }
};

// combine(combine(v[0], v[1]), …) in every lane.
template <int By = kWide / 2, class Combine>
QUANTRY_INLINE Floats across(Floats v, Combine&& combine) {
  if constexpr (By > 0) return across<By / 2>(combine(v, LaneList<kWide>::template crossed<By>(v)), combine);
  return v;
}

QUANTRY_INLINE Floats smaller(Floats a, Floats b) { return a < b ? a : b; }
QUANTRY_INLINE Floats larger(Floats a, Floats b) { return a > b ? a : b; }

QUANTRY_INLINE Floats smallest(Floats v) {
  return across(v, [](Floats a, Floats b) QUANTRY_LAMBDA { return smaller(a, b); });
}
QUANTRY_INLINE Floats largest(Floats v) {
  return across(v, [](Floats a, Floats b) QUANTRY_LAMBDA { return larger(a, b); });
}

// The largest magnitude of each of `blocks` blocks of Block neighbours in x; zeros up to `batch`, for whole vectors of them.
template <int Block>
QUANTRY_INLINE void block_magnitudes(const float* x, int blocks, int batch, float* most) {
  for (int i = 0; i < blocks; i++, x += Block) {
    Floats so_far = magnitude(read(x));
    for (int k = kWide; k < Block; k += kWide) so_far = larger(so_far, magnitude(read(x + k)));
    most[i] = largest(so_far)[0];
  }
  for (int i = blocks; i < batch; i++) most[i] = 0;
}

QUANTRY_END
