// Activations in the order the kernels read them: a tile of R rows, columns outermost.
//
//   int8:  codes [K/4][R][4] i8;  scale [K/B][R] f32, B = 32 or 256;  start [K/G][R] i32 = −zero · Σ codes of a group;
//          sums, formats with mins: per 32 columns [K/32][R] f32 = scale · Σ codes, or for B = 256 [K/256][128/G][R] pairs of
//          i16 Σ codes of groups (0, 2) (1, 3) (4, 6) (5, 7) …, the operand of dot2
//   float: x [K][R] f32;  sums, formats with mins: [K/G][R] f32 = Σ x of a group
//
// Rounding to int8: rounding.h.
#pragma once
#include "elements.h"
#include "panel.h"
#include "rounding.h"
#include "threads.h"
#include "tiles.h"

QUANTRY_BEGIN

template <class F>
struct TileInt8 {
  int8_t* codes;
  float* scale;
  int32_t* start;
  void* sums;

  // Bytes of one row; a tile of R rows lies R of them from the tile's first row on.
  static constexpr int64_t row_bytes(int64_t columns) {
    return columns + 4 * (columns / kActBlock<F>) + 4 * (columns / F::kGroup) + 4 * (columns / 32);
  }

  QUANTRY_INLINE TileInt8(void* base, int64_t columns, int64_t first_row, int height) {
    codes = static_cast<int8_t*>(base) + first_row * row_bytes(columns);
    scale = reinterpret_cast<float*>(codes + columns * height);
    start = reinterpret_cast<int32_t*>(scale + columns / kActBlock<F> * height);
    sums = start + columns / F::kGroup * height;
  }
};

struct TileFloat {
  float* x;
  float* sums;

  static constexpr int64_t row_bytes(int64_t columns) { return 4 * columns + 4 * (columns / 16); }

  QUANTRY_INLINE TileFloat(void* base, int64_t columns, int64_t first_row, int height) {
    x = reinterpret_cast<float*>(static_cast<char*>(base) + first_row * row_bytes(columns));
    sums = x + columns * height;
  }
};

// Row m of a tile of `height` rows from x[columns].
template <class F, int D>
inline void quantize_row(const typename Element<D>::Type* x, int64_t columns, const TileInt8<F>& to, int height, int m) {
  constexpr int block = kActBlock<F>;
  constexpr int groups = block / F::kGroup;
  for (int64_t b = 0; b < columns / block; ++b, x += block) {
    const Rounding r = rounding_of<D>(x, block);
    int8_t codes[block];
    int32_t sums[groups];
    for (int g = 0; g < groups; ++g) sums[g] = round_codes<D>(x, g * F::kGroup, (g + 1) * F::kGroup, r, codes);
    int8_t* out = to.codes + (b * block * height + 4 * m);
    for (int i = 0; i < block / 4; ++i) memcpy(out + 4 * height * i, codes + 4 * i, 4);
    to.scale[b * height + m] = r.scale;
    if constexpr (kZeroOf<F> != 0)
      for (int g = 0; g < groups; ++g) to.start[(b * groups + g) * height + m] = -kZeroOf<F> * sums[g];
    if constexpr (F::kMins && F::kSuper) {
      uint32_t* pairs = static_cast<uint32_t*>(to.sums) + b * (groups / 2) * height + m;
      for (int p = 0; p < groups / 2; ++p) {
        int j = 4 * (p / 2) + p % 2;
        pairs[p * height] = (static_cast<uint32_t>(sums[j]) & 0xffff) | static_cast<uint32_t>(sums[j + 2]) << 16;
      }
    } else if constexpr (F::kMins) {
      static_cast<float*>(to.sums)[b * height + m] = r.scale * static_cast<float>(sums[0]);
    }
  }
}

// Group: columns of a sum, 0 for none.
template <int D, int Group>
inline void widen_row(const typename Element<D>::Type* x, int64_t columns, const TileFloat& to, int height, int m) {
  constexpr int step = Group ? Group : kChunk;
  for (int64_t k = 0; k < columns; k += step) {
    float values[step];
    vf sum = zero();
    for (int i = 0; i < step; i += kLanes) {
      vf v = load_as_float<D>(x + k + i);
      sum = add(sum, v);
      store(values + i, v);
    }
    float* out = to.x + k * height + m;
    for (int i = 0; i < step; ++i) out[i * height] = values[i];
    if constexpr (Group != 0) to.sums[k / Group * height + m] = sum_lanes(sum);
  }
}

// The tiles of `which` (a share of all tiles) into `base`.
template <class F>
inline void quantize_tiles(const Matrix& x, const RowTiles& tiles, void* base, Range which) {
  with_dtype(x.dtype, [&](auto d) {
    constexpr int D = d;
    for (int64_t t = which.begin; t < which.end; ++t) {
      int height = tiles.height(t);
      TileInt8<F> to(base, x.columns, tiles.first(t), height);
      for (int m = 0; m < height; ++m) quantize_row<F, D>(x.row<D>(tiles.first(t) + m), x.columns, to, height, m);
    }
  });
}

template <int Group>
inline void widen_tiles(const Matrix& x, const RowTiles& tiles, void* base, Range which) {
  with_dtype(x.dtype, [&](auto d) {
    constexpr int D = d;
    for (int64_t t = which.begin; t < which.end; ++t) {
      int height = tiles.height(t);
      TileFloat to(base, x.columns, tiles.first(t), height);
      for (int m = 0; m < height; ++m)
        widen_row<D, Group>(x.row<D>(tiles.first(t) + m), x.columns, to, height, m);
    }
  });
}

QUANTRY_END
