// bf16 activations on panels of the grouped families (micro_pairs.h): products of codes and x are exact, sums f32.
#pragma once
#include "decode.h"
#include "small.h"

#if QUANTRY_IS(QUANTRY_TARGET) == 3
QUANTRY_BEGIN

struct UnitTilePairs {   // x [K'/2][R] u32; per unit: sums [U][R] f32 = Σ x
  uint32_t* x;
  float* sums;

  static QUANTRY_INLINE int64_t row_bytes(const GroupedWeight& w) { return 2 * w.padded + 4 * w.units(); }

  QUANTRY_INLINE UnitTilePairs(void* base, const GroupedWeight& w, int64_t first_row, int height, int64_t k) {
    uint32_t* tile = reinterpret_cast<uint32_t*>(static_cast<char*>(base) + first_row * row_bytes(w));
    x = tile + k / 2 * height;
    sums = reinterpret_cast<float*>(tile + w.padded / 2 * height) + (k >> w.unit_shift) * height;
  }
};

inline void pair_unit_row(const GroupedWeight& w, const uint16_t* x, const UnitTilePairs& to, int height, int m) {
  const int32_t* perm = static_cast<const int32_t*>(w.g.perm);
  const int unit = w.unit();
  for (int64_t k = 0; k < w.padded; k += unit) {
    const int count = static_cast<int>(min_of(unit, w.padded - k));
    const int there = static_cast<int>(max_of(0, min_of(count, w.g.columns - k)));
    uint16_t values[kMostUnit] = {};
    if (perm == nullptr) memcpy(values, x + k, static_cast<size_t>(there) * 2);
    else for (int i = 0; i < there; ++i) values[i] = x[perm[k + i]];
    vf sum = zero();
    for (int i = 0; i < count; i += kLanes) sum = add(sum, load_bf16(values + i));
    to.sums[(k >> w.unit_shift) * height + m] = sum_lanes(sum);
    uint32_t* out = to.x + k / 2 * height + m;
    for (int i = 0; i < count; i += 4, out += 2 * height) {
      out[0] = values[i] | static_cast<uint32_t>(values[i + 2]) << 16;
      out[height] = values[i + 1] | static_cast<uint32_t>(values[i + 3]) << 16;
    }
  }
}

inline void pair_units(const GroupedWeight& w, const Matrix& x, const RowTiles& tiles, void* base, Range which) {
  for (int64_t t = which.begin; t < which.end; ++t) {
    const int height = tiles.height(t);
    UnitTilePairs to(base, w, tiles.first(t), height, 0);
    for (int m = 0; m < height; ++m) pair_unit_row(w, x.row<QUANTRY_BF16>(tiles.first(t) + m), to, height, m);
  }
}

// As micro_units_float (small.h), two columns at a time.
template <class C, bool Half, int R>
QUANTRY_NOINLINE void micro_units_pairs(const Span& w, const UnitTilePairs& x, float* sums) {
  constexpr int chains = R == 1 ? 4 : R <= 3 ? 2 : 1;   // independent sums per row, for the latency of a dot product
  typename C::Chunk chunk(w.planes, 0, 0);
  const uint32_t* row = x.x;
  vf acc[R], part[R * chains];
  vc seen = as_codes(zero_int());
  repeat<R>([&](auto m) QUANTRY_LAMBDA { acc[m] = load(sums + m * kRows); });
  auto start = [&]() QUANTRY_LAMBDA { repeat<R * chains>([&](auto n) QUANTRY_LAMBDA { part[n] = zero(); }); };
  auto multiply = [&](auto p, vc codes) QUANTRY_LAMBDA {
    constexpr int pair = p;
    repeat<R>([&](auto m) QUANTRY_LAMBDA {
      vf& sum = part[m * chains + pair % chains];
      sum = dot_pairs(sum, codes, set1_int(static_cast<int32_t>(row[pair * R + m])));
    });
  };
  auto pairs = [&](auto part_of, auto parts_of) QUANTRY_LAMBDA {
    constexpr int part = part_of, parts = parts_of;
    if constexpr (R <= 2) C::template each_pair_part<part, parts>(chunk, w.table, multiply);
    else C::template each_pair<part, parts>(chunk, w.table, multiply);
  };
  auto finish = [&](int u) QUANTRY_LAMBDA {
    vf s = load(w.scale + u * kRows);
    repeat<R>([&](auto m) QUANTRY_LAMBDA {
      vf* p = part + m * chains;
      if constexpr (chains == 4) p[0] = add(add(p[0], p[1]), add(p[2], p[3]));
      if constexpr (chains == 2) p[0] = add(p[0], p[1]);
      acc[m] = fma(p[0], s, acc[m]);
    });
    if (w.correction) {
      vf c = load(w.correction + u * kRows);
      repeat<R>([&](auto m) QUANTRY_LAMBDA { acc[m] = fma(c, set1(x.sums[u * R + m]), acc[m]); });
    }
  };
  if constexpr (Half) {
    for (int i = 0; i < w.chunks; ++i, chunk.next(), row += kChunk / 2 * R) {
      prefetch_low<C>(chunk, 0);
      repeat<2>([&](auto h) QUANTRY_LAMBDA {
        constexpr int half = h;
        start();
        pairs(Const<half>{}, Const<2>{});
        finish(2 * i + half);
      });
      if constexpr (C::kNan) seen = C::broken(chunk, seen);
    }
  } else {
    for (int u = 0, left = w.chunks; left > 0; ++u, left -= w.unit_chunks) {
      start();
      for (int n = left < w.unit_chunks ? left : w.unit_chunks; n > 0; --n, chunk.next(), row += kChunk / 2 * R) {
        prefetch_low<C>(chunk, 0);
        pairs(Const<0>{}, Const<1>{});
        if constexpr (C::kNan) seen = C::broken(chunk, seen);
      }
      finish(u);
    }
  }
  repeat<R>([&](auto m) QUANTRY_LAMBDA {
    if constexpr (C::kNan) acc[m] = C::with_nan(acc[m], seen);
    store(sums + m * kRows, acc[m]);
  });
}

// Codes and scales of panel `slot` of a slab. A row with a NaN code, which each_pair leaves out, gets a scale of NaN.
template <class C>
QUANTRY_NOINLINE void decode_unit_pairs(const DecodeSlab& w, int units, const float* correction, SlabPairs& slab,
                                        int slot) {
  typename C::Chunk chunk(w.planes, 0, 0);
  vc seen = as_codes(zero_int());
  uint8_t* cells = slab.cells[slot];
  for (int i = 0; i < w.chunks; ++i, chunk.next(), cells += kChunk / 2 * kCell) {
    C::template each_pair<0, 1>(chunk, w.table, [&](auto p, vc codes) QUANTRY_LAMBDA {
      constexpr int pair = p;
      store_codes(cells + pair * kCell, codes);
    });
    if constexpr (C::kNan) seen = C::broken(chunk, seen);
  }
  for (int u = 0; u < units; ++u) {
    const int to = u * kTileColumns + slot * kRows;
    vf s = load(w.scale + u * kRows);
    if constexpr (C::kNan) s = C::with_nan(s, seen);
    store(slab.scale + to, s);
    if (correction) store(slab.min + to, load(correction + u * kRows));
  }
}

QUANTRY_END
#endif
