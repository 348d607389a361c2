// ggml's panel formats as sources of the driver (linear.h).
#pragma once
#include "../activations.h"
#include "../linear.h"
#include "decode.h"
#include "pairs.h"
#include "rows.h"
#include "small_float.h"
#include "small_int8.h"

QUANTRY_BEGIN

template <class F>
struct GgmlSource {
  Planes w;
  int64_t rows, columns;

  using Format = F;
  static constexpr int kType = F::kType;
  static constexpr bool kPanels = true, kInt8 = true, kPairs = true;
  static constexpr int kMostPairs = F::kLow == 8 ? 0 : F::kHigh == 2 ? 6 : 8;
  static constexpr bool kManyConstants = F::kScales == Scales::kSixteen || F::kScales == Scales::kUe4m3;   // in registers
  static constexpr int kMostInt8 = kManyConstants && kSmallRowsInt8 > 6                ? 6
                                   : F::kHigh == 2 || F::kScales == Scales::kNibbles ? kSmallRowsSixBit
                                                                                     : kSmallRowsInt8;
  static constexpr int kMostFloat = kSmallRowsFloat;

  QUANTRY_INLINE static GgmlSource of(const Planes& planes, int64_t rows, int64_t columns) { return {planes, rows, columns}; }
  static bool embedding(const EmbeddingArgs& a) { return quantry::QUANTRY_TARGET::embedding<F>(a); }

  // Matrix `e` of a stack whose first one this is.
  QUANTRY_INLINE GgmlSource matrix(int64_t e) const {
    return {planes_at<F>(w, (rows + kRows - 1) / kRows * e, columns, 0), rows, columns};
  }

  QUANTRY_INLINE int64_t bytes() const { return plane_bytes<F>((rows + kRows - 1) / kRows, columns); }
  QUANTRY_INLINE int64_t int8_row_bytes() const { return TileInt8<F>::row_bytes(columns); }
  QUANTRY_INLINE int64_t float_row_bytes() const { return TileFloat::row_bytes(columns); }

  QUANTRY_INLINE void quantize(const Matrix& x, const RowTiles& tiles, void* base, Range which) const {
    quantize_tiles<F>(x, tiles, base, which);
  }
  QUANTRY_INLINE void widen(const Matrix& x, const RowTiles& tiles, void* base, Range which) const {
    widen_tiles<F::kMins ? F::kGroup : 0>(x, tiles, base, which);
  }

  template <int R>
  QUANTRY_INLINE void small_int8(int64_t panel, const void* base, int64_t first_row, float* sums) const {
    micro_small_int8<F, R>(w, panel, columns, TileInt8<F>(const_cast<void*>(base), columns, first_row, R), sums);
  }
  template <int R>
  QUANTRY_INLINE void small_float(int64_t panel, const void* base, int64_t first_row, float* sums) const {
    micro_small_float<F, R>(w, panel, columns, TileFloat(const_cast<void*>(base), columns, first_row, R), sums);
  }

  QUANTRY_INLINE void decode_float(int64_t panel, int64_t k, int chunks, float* out, int64_t stride) const {
    quantry::QUANTRY_TARGET::decode_float<F>(planes_at<F>(w, panel, columns, k), chunks, out, stride);
  }
  QUANTRY_INLINE void decode_int8(int64_t panel, int64_t k, int chunks, SlabInt8& slab, int slot) const {
    quantry::QUANTRY_TARGET::decode_int8<F>(planes_at<F>(w, panel, columns, k), chunks, slab, slot);
  }
  QUANTRY_INLINE void prefetch_slab(int64_t panel, int64_t k, int chunks) const {
    const uint8_t* next = planes_at<F>(w, panel, columns, k).codes + chunks * kLowBytes<F>;
    for (int i = 0; i < chunks * kLowBytes<F>; i += kCell) prefetch(next + i);
  }

  template <int R>
  QUANTRY_INLINE void run_int8(const SlabInt8& slab, const void* base, int64_t k, int chunks, int64_t first_row,
                               float* c) const {
    TileInt8<F> t(const_cast<void*>(base), columns, first_row, R);
    int64_t block = k / kActBlock<F> * R;
    TileSlab x{t.codes + k * R, t.scale + block, t.start + k / F::kGroup * R,
               static_cast<const float*>(t.sums) + (F::kSuper ? kMinPairs<F> * block : block)};
    micro_int8<KindOf<F>, R>(slab, x, chunks * kChunk / F::kGroup, c);
  }
#if QUANTRY_IS(QUANTRY_TARGET) == 3
  static constexpr int kPairGroup = F::kMins ? F::kGroup : kChunk;   // columns of a sum
  QUANTRY_INLINE int64_t pair_row_bytes() const { return TilePairs::row_bytes(columns, kPairGroup); }
  QUANTRY_INLINE void pairs(const Matrix& x, const RowTiles& tiles, void* base, Range which) const {
    for (int64_t t = which.begin; t < which.end; ++t) {
      int height = tiles.height(t);
      TilePairs to(base, columns, kPairGroup, tiles.first(t), height);
      for (int m = 0; m < height; ++m)
        pair_row(x.row<QUANTRY_BF16>(tiles.first(t) + m), columns, kPairGroup, to, height, m);
    }
  }
  template <int R>
  QUANTRY_INLINE void small_pairs(int64_t panel, const void* base, int64_t first_row, float* sums) const {
    micro_small_pairs<F, R>(w, panel, columns, TilePairs(const_cast<void*>(base), columns, kPairGroup, first_row, R), sums);
  }
  QUANTRY_INLINE void decode_pairs(int64_t panel, int64_t k, int chunks, SlabPairs& slab, int slot) const {
    quantry::QUANTRY_TARGET::decode_pairs<F>(planes_at<F>(w, panel, columns, k), chunks, slab, slot);
  }
  template <int R>
  QUANTRY_INLINE void run_pairs(const SlabPairs& slab, const void* base, int64_t k, int chunks, int64_t first_row,
                                float* c) const {
    TilePairs x(const_cast<void*>(base), columns, kPairGroup, first_row, R);
    x.x += k / 2 * R;
    x.sums += k / kPairGroup * R;
    micro_pairs<F::kGroup, F::kMins, R>(slab, x, chunks * kChunk / F::kGroup, c);
  }
#endif

  QUANTRY_INLINE const float* float_tile(const void* base, int64_t k, int64_t first_row, int height) const {
    return TileFloat(const_cast<void*>(base), columns, first_row, height).x + k * height;
  }
};

QUANTRY_END
