// The grid row nearest to eight or four values, among a list of candidates: one candidate per lane.
#pragma once
#include "encode_grid_simd.h"
#include "encode_grid_tile.h"

QUANTRY_BEGIN

template <int kRow>
constexpr int kCodeBits = kRow == 8 ? 2 : 3;

template <int kRow>
QUANTRY_INLINE Ints level_at(Ints code, int i) {
  return code >> kCodeBits<kRow> * i & ((1 << kCodeBits<kRow>) - 1);
}

// Level l stands for first + step·l, which is exact.
struct Levels {
  float first, step;
};

// One row of a group that stands in a lane of a tile.
template <int kRow>
struct RowValues {
  Floats x[kRow], weight[kRow];

  QUANTRY_INLINE RowValues(const float (*x_at)[kTile], const float (*weight_at)[kTile], int lane) {
    for (int i = 0; i < kRow; i++) {
      x[i] = all(x_at[i][lane]);
      weight[i] = all(weight_at[i][lane]);
    }
  }
};

// weight·(scale·level - x)² of one element for any code: few levels mean few errors.
template <int kRow>
struct Errors {
#if defined(__AVX2__)
  Floats table;

  QUANTRY_INLINE void set(float scale, Levels levels, Floats x, Floats weight) {
    const Floats rest = scale * (levels.first + levels.step * to_floats(kLanes & ((1 << kCodeBits<kRow>) - 1))) - x;
    table = weight * rest * rest;
  }
  QUANTRY_INLINE Floats of(Ints code) const { return look_up(table, code); }   // bits above do not count
#else
  Floats at0, at1, at2;

  QUANTRY_INLINE static Floats error(float value, Floats x, Floats weight) {
    const Floats rest = value - x;
    return weight * rest * rest;
  }
  QUANTRY_INLINE void set(float scale, Levels levels, Floats x, Floats weight) {
    at0 = error(scale * levels.first, x, weight);
    at1 = error(scale * (levels.first + levels.step), x, weight);
    at2 = error(scale * (levels.first + 2 * levels.step), x, weight);
  }
  QUANTRY_INLINE Floats of(Ints code) const { return pick(code << 30 < 0, at2, pick(code << 31 < 0, at1, at0)); }
#endif
};

// Without such a look-up, four elements of eight levels are faster one candidate after the other.
QUANTRY_INLINE int nearest_of_eight_levels(const uint16_t* list, int count, const RowValues<4>& row, float scale,
                                           Levels levels) {
  float error[4][8];
  for (int i = 0; i < 4; i++)
    for (int l = 0; l < 8; l++) {
      const float rest = scale * (levels.first + levels.step * static_cast<float>(l)) - row.x[i][0];
      error[i][l] = row.weight[i][0] * rest * rest;
    }
  float best = FLT_MAX;
  int nearest = list[0];
  for (int at = 0; at < count; at++) {
    const int code = list[at];
    const float sum = error[0][code & 7] + error[1][code >> 3 & 7] + error[2][code >> 6 & 7] + error[3][code >> 9];
    if (sum < best) best = sum, nearest = code;
  }
  return nearest;
}

// The code of the first candidate with the least Σ weight·(scale·level - x)².
template <int kRow>
QUANTRY_INLINE int nearest_row(const uint16_t* lists, uint32_t entry, const RowValues<kRow>& row, float scale,
                               Levels levels) {
  const uint16_t* list = lists + kListBlock * (entry & ((1u << kBlocksAt) - 1));
  const int count = static_cast<int>(entry >> kBlocksAt) * kListBlock;
  if constexpr (kRow == 4 && kWide == 4) return nearest_of_eight_levels(list, count, row, scale, levels);
  Errors<kRow> errors[kRow];
  for (int i = 0; i < kRow; i++) errors[i].set(scale, levels, row.x[i], row.weight[i]);
  const auto distance = [&](int at) QUANTRY_LAMBDA {
    const Ints code = codes_at(list + at);
    Floats sum = errors[0].of(code);
    for (int i = 1; i < kRow; i++) sum += errors[i].of(code >> kCodeBits<kRow> * i);
    return sum;
  };
  Floats best = capped(distance(0));   // a NaN is never the least
  if (kWide > kListBlock) best = pick(kLanes < count, best, all(FLT_MAX));   // after one block comes another list
  if (count <= kWide) return list[__builtin_ctz(least_lanes(best))];
  Ints from = kLanes;
  for (int at = kWide; at < count; at += kWide) {
    const Floats sum = distance(at);
    const Ints less = sum < best;
    best = pick(less, sum, best);
    from = less ? kLanes + at : from;
  }
  uint32_t lanes = least_lanes(best);
  int first = from[__builtin_ctz(lanes)];
  for (lanes &= lanes - 1; lanes; lanes &= lanes - 1) {
    const int other = from[__builtin_ctz(lanes)];
    first = other < first ? other : first;
  }
  return list[first];
}

QUANTRY_END
