// Activations of the grouped families: as quantry/activations.h, with the unit of the weight (weight.h) known at run time.
//
//   int8:   codes [K'/4][R][4] i8; per unit: scale [U][R] f32, start [U][R] i32 = −zero · Σ codes,
//                                            sums [U][R] f32 = scale · Σ codes
//   float:  x [K'][R] f32;         per unit: sums [U][R] f32 = Σ x
//
// Columns are gathered by the weight's order here, and padded with zeros to K'. Units of 16 columns share the rounding of
// 32: both have its scale.
#pragma once
#include "../activations.h"
#include "weight.h"

QUANTRY_BEGIN

struct UnitTileInt8 {
  int8_t* codes;
  float* scale;
  int32_t* start;
  float* sums;

  static QUANTRY_INLINE int64_t row_bytes(const GroupedWeight& w) { return w.padded + 12 * w.units(); }

  // The part of the tile of `height` rows from column k on.
  QUANTRY_INLINE UnitTileInt8(void* base, const GroupedWeight& w, int64_t first_row, int height, int64_t k) {
    int8_t* tile = static_cast<int8_t*>(base) + first_row * row_bytes(w);
    const int64_t units = w.units() * height, unit = (k >> w.unit_shift) * height;
    float* all = reinterpret_cast<float*>(tile + w.padded * height);
    codes = tile + k * height;
    scale = all + unit;
    start = reinterpret_cast<int32_t*>(all + units) + unit;
    sums = all + 2 * units + unit;
  }
};

struct UnitTileFloat {
  float* x;
  float* sums;

  static QUANTRY_INLINE int64_t row_bytes(const GroupedWeight& w) { return 4 * w.padded + 4 * w.units(); }

  QUANTRY_INLINE UnitTileFloat(void* base, const GroupedWeight& w, int64_t first_row, int height, int64_t k) {
    float* tile = reinterpret_cast<float*>(static_cast<char*>(base) + first_row * row_bytes(w));
    x = tile + k * height;
    sums = tile + w.padded * height + (k >> w.unit_shift) * height;
  }
};

// values[count] = columns k … of a row in the weight's order; count is a multiple of 16.
template <int D>
QUANTRY_INLINE void fetch(const GroupedWeight& w, const typename Element<D>::Type* x, int64_t k, int count, float* values) {
  const int32_t* perm = static_cast<const int32_t*>(w.g.perm);
  if (perm == nullptr && k + count <= w.g.columns) {
    for (int i = 0; i < count; i += kLanes) store(values + i, load_as_float<D>(x + k + i));
    return;
  }
  const int there = static_cast<int>(max_of(0, min_of(count, w.g.columns - k)));
  for (int i = 0; i < there; ++i) values[i] = one_as_float<D>(x[perm ? perm[k + i] : k + i]);
  for (int i = there; i < count; ++i) values[i] = 0.0f;
}

template <int D>
inline void quantize_unit_row(const GroupedWeight& w, int zero, const typename Element<D>::Type* x, const UnitTileInt8& to,
                              int height, int m) {
  const int unit = w.unit(), block = unit < kChunk ? kChunk : unit;
  for (int64_t k = 0; k < w.padded; k += block) {
    const int count = static_cast<int>(min_of(block, w.padded - k));
    float values[kMostUnit];
    int8_t codes[kMostUnit];
    fetch<D>(w, x, k, count, values);
    const Rounding r = rounding_of<QUANTRY_F32>(values, count);
    for (int first = 0; first < count; first += unit) {
      const int last = first + unit < count ? first + unit : count;
      const int32_t sum = round_codes<QUANTRY_F32>(values, first, last, r, codes);
      const int64_t at = ((k + first) >> w.unit_shift) * height + m;
      to.scale[at] = r.scale;
      to.start[at] = -zero * sum;
      to.sums[at] = r.scale * static_cast<float>(sum);
    }
    int8_t* out = to.codes + (k * height + 4 * m);
    for (int i = 0; i < count / 4; ++i) memcpy(out + 4 * height * i, codes + 4 * i, 4);
  }
}

template <int D>
inline void widen_unit_row(const GroupedWeight& w, const typename Element<D>::Type* x, const UnitTileFloat& to, int height,
                           int m) {
  const int unit = w.unit();
  for (int64_t k = 0; k < w.padded; k += unit) {
    const int count = static_cast<int>(min_of(unit, w.padded - k));
    float values[kMostUnit];
    fetch<D>(w, x, k, count, values);
    vf sum = zero();
    for (int i = 0; i < count; i += kLanes) sum = add(sum, load(values + i));
    to.sums[(k >> w.unit_shift) * height + m] = sum_lanes(sum);
    float* out = to.x + k * height + m;
    for (int i = 0; i < count; ++i) out[i * height] = values[i];
  }
}

// zero: what a dot product sees as the middle of the codes.
inline void quantize_units(const GroupedWeight& w, int zero, const Matrix& x, const RowTiles& tiles, void* base,
                           Range which) {
  with_dtype(x.dtype, [&](auto d) {
    constexpr int D = d;
    for (int64_t t = which.begin; t < which.end; ++t) {
      const int height = tiles.height(t);
      UnitTileInt8 to(base, w, tiles.first(t), height, 0);
      for (int m = 0; m < height; ++m) quantize_unit_row<D>(w, zero, x.row<D>(tiles.first(t) + m), to, height, m);
    }
  });
}

inline void widen_units(const GroupedWeight& w, const Matrix& x, const RowTiles& tiles, void* base, Range which) {
  with_dtype(x.dtype, [&](auto d) {
    constexpr int D = d;
    for (int64_t t = which.begin; t < which.end; ++t) {
      const int height = tiles.height(t);
      UnitTileFloat to(base, w, tiles.first(t), height, 0);
      for (int m = 0; m < height; ++m) widen_unit_row<D>(w, x.row<D>(tiles.first(t) + m), to, height, m);
    }
  });
}

QUANTRY_END
