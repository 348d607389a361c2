// Super-blocks of 256 as groups of 16 or 32, one per lane: how the grid encoders walk over rows.
#pragma once
#include <quantry/encode/rows.h>

#include "encode_grid.h"
#include "encode_lanes.h"

QUANTRY_BEGIN

constexpr int kTile = 16;   // groups searched together: a multiple of every kWide

// Element i of the groups stands in row i, group s in lane s.
template <int kGroup>
struct GroupTile {
  alignas(64) float x[kGroup][kTile];
  alignas(64) float weight[kGroup][kTile];   // importance first
  alignas(64) float sigma2[kTile];
  alignas(64) float scale[kTile];
};

QUANTRY_INLINE Ints read_ints(const int32_t* p) {
  Ints v;
  memcpy(&v, p, sizeof v);
  return v;
}

// A group's scale in steps of 2·level + 1, inverse = 1 / step.
QUANTRY_INLINE int scale_level(float inverse, float scale, int top) {
  const int l = nearest(0.5f * (inverse * scale - 1));
  return l < 0 ? 0 : l > top ? top : l;
}

template <int kGroup>
QUANTRY_INLINE void groups_to_lanes(const float* from, int lane, float (&to)[kGroup][kTile]) {
  for (int s = 0; s < 256 / kGroup; s++)
    for (int i = 0; i < kGroup; i++) to[i][lane + s] = from[s * kGroup + i];
}

// T: kGroup, kBytes, kSigma, Tile (a GroupTile), search(tile, first lane, weighted, tables), finish(tile, first lane, out).
template <class T>
void encode_blocks(const float* x, const float* importance, int64_t blocks, int64_t blocks_a_row, const uint8_t* tables,
                   uint8_t* out) {
  constexpr int kGroups = 256 / T::kGroup, kBlocks = kTile / kGroups;   // of a super-block, of a tile
  typename T::Tile tile;
  for (int64_t b = 0; b < blocks; b += kBlocks) {
    const int count = static_cast<int>(min_of(kBlocks, blocks - b));
    if (count < kBlocks) memset(&tile, 0, sizeof tile);
    for (int s = 0; s < count; s++) {
      const float* from = x + (b + s) * 256;
      groups_to_lanes(from, s * kGroups, tile.x);
      if (importance) groups_to_lanes(importance + (b + s) % blocks_a_row * 256, s * kGroups, tile.weight);
      float sum = 0;
      for (int i = 0; i < 256; i++) sum += from[i] * from[i];
      for (int g = 0; g < kGroups; g++) tile.sigma2[s * kGroups + g] = T::kSigma * sum / 256;
    }
    for (int at = 0; at < count * kGroups; at += kWide) T::search(tile, at, importance != nullptr, tables);
    for (int s = 0; s < count; s++) T::finish(tile, s * kGroups, out + (b + s) * T::kBytes);
  }
}

template <class T>
int encode_grid(const QuantryRows& rows, const uint8_t* tables, uint8_t* out) {
  const int64_t blocks = rows.columns / 256;
  return encode_rows(rows, [&](const float* x, int64_t first, int64_t count) {
    encode_blocks<T>(x, rows.importance, count * blocks, blocks, tables, out + first * blocks * T::kBytes);
  });
}

QUANTRY_END
