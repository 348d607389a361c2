// Weights of the grouped families as sources of the driver (linear.h).
//
// Mode: UnitMode (weight.h); groups across rows have exact kernels only.
#pragma once
#include "../linear.h"
#include "decode.h"
#include "pairs.h"
#include "small.h"

QUANTRY_BEGIN

template <class C, int Mode>
struct GroupedSource {
  GroupedWeight w;
  const CodeTable* table;
  int64_t rows, columns;   // columns padded to chunks

  static constexpr bool kInt8 = C::kInt8 && Mode != kOut, kPairs = C::kPairs && Mode != kOut;
  // The rarer modes have half the instances.
  static constexpr int kMostInt8 = Mode == kHalf && kSmallRowsInt8 > 4 ? 4 : kSmallRowsInt8;
  static constexpr int kMostFloat = Mode != kWhole && kSmallRowsFloat > 4 ? 4 : kSmallRowsFloat;
  static constexpr int kMostPairs = Mode == kHalf && C::kMostPairs > 4 ? 4 : C::kMostPairs;
  static constexpr int kInt8Zero = C::kFull ? kFullZero : C::kZero;   // what a dot product sees as zero

  QUANTRY_INLINE explicit GroupedSource(const GroupedWeight& weight)
      : w(weight), table(C::table(w.g)), rows(w.g.rows), columns(w.padded) {}

  QUANTRY_INLINE int64_t bytes() const { return w.bytes(); }
  QUANTRY_INLINE int64_t int8_row_bytes() const { return UnitTileInt8::row_bytes(w); }
  QUANTRY_INLINE int64_t float_row_bytes() const { return UnitTileFloat::row_bytes(w); }

  QUANTRY_INLINE void quantize(const Matrix& x, const RowTiles& tiles, void* base, Range which) const {
    quantize_units(w, kInt8Zero, x, tiles, base, which);
  }
  QUANTRY_INLINE void widen(const Matrix& x, const RowTiles& tiles, void* base, Range which) const {
    widen_units(w, x, tiles, base, which);
  }

  template <int R>
  QUANTRY_INLINE void small_int8(int64_t panel, const void* base, int64_t first_row, float* sums) const {
    [[maybe_unused]] KeepSubnormals keep;
    each_span<R>(panel, int8_factor(), sums, [&](const Span& span, int64_t k) QUANTRY_LAMBDA {
      micro_units_int8<C, Mode == kHalf, R>(span, UnitTileInt8(const_cast<void*>(base), w, first_row, R, k), sums);
    });
  }

  template <int R>
  QUANTRY_INLINE void small_float(int64_t panel, const void* base, int64_t first_row, float* sums) const {
    [[maybe_unused]] KeepSubnormals keep;
    each_span<R>(panel, 1.0f, sums, [&](const Span& span, int64_t k) QUANTRY_LAMBDA {
      micro_units_float<C, Mode, R>(span, UnitTileFloat(const_cast<void*>(base), w, first_row, R, k), sums);
    });
  }

  // k is a multiple of the longest unit.
  QUANTRY_INLINE void decode_float(int64_t panel, int64_t k, int chunks, float* out, int64_t stride) const {
    [[maybe_unused]] KeepSubnormals keep;
    constexpr int most = Mode == kOut ? kSlab : kSlab / 16 * kRows;
    alignas(64) float scale[most], zero[most];
    DecodeSlab slab{w.planes<C>(panel, k), table, chunks, w.unit_shift, w.g.zero == QUANTRY_ZERO_BIAS, scale, zero};
    if constexpr (Mode == kOut) {
      column_scales(w, panel, k, chunks * kChunk, scale, zero);
    } else {
      expand_scales(w, panel, k, units_of(chunks), 1.0f, scale);
      if constexpr (C::kAffine) expand_zeros(w, panel, k, units_of(chunks), zero);
    }
    decode_units<C, Mode == kOut>(slab, out, stride);
  }

  QUANTRY_INLINE void decode_int8(int64_t panel, int64_t k, int chunks, SlabInt8& slab, int slot) const {
    [[maybe_unused]] KeepSubnormals keep;
    alignas(64) float scale[kSlab / 16 * kRows], zero[kSlab / 16 * kRows];
    const float* correction = expand(panel, k, chunks, int8_factor(), scale, zero);
    decode_bytes<C>({w.planes<C>(panel, k), table, chunks, w.unit_shift, false, scale, zero}, units_of(chunks), correction,
                    slab, slot);
  }

  template <int R>
  QUANTRY_INLINE void run_int8(const SlabInt8& slab, const void* base, int64_t k, int chunks, int64_t first_row,
                               float* c) const {
    UnitTileInt8 t(const_cast<void*>(base), w, first_row, R, k);
    TileSlab x{t.codes, t.scale, t.start, t.sums, chunks * kChunk / 4, w.unit() / 4};
    if (C::kAffine && w.corrected()) micro_int8<KindUnits<true, C::kFull>, R>(slab, x, units_of(chunks), c);
    else micro_int8<KindUnits<false, C::kFull>, R>(slab, x, units_of(chunks), c);
  }
  QUANTRY_INLINE const float* float_tile(const void* base, int64_t k, int64_t first_row, int height) const {
    return UnitTileFloat(const_cast<void*>(base), w, first_row, height, k).x;
  }
  QUANTRY_INLINE void prefetch_slab(int64_t panel, int64_t k, int chunks) const {
    const uint8_t* next = w.planes<C>(panel, k).low + chunks * C::Chunk::cells(C::kLow);
    for (int i = 0; i < chunks * C::Chunk::cells(C::kLow); i += kCell) prefetch(next + i);
  }

#if QUANTRY_IS(QUANTRY_TARGET) == 3
  QUANTRY_INLINE int64_t pair_row_bytes() const { return UnitTilePairs::row_bytes(w); }
  QUANTRY_INLINE void pairs(const Matrix& x, const RowTiles& tiles, void* base, Range which) const {
    pair_units(w, x, tiles, base, which);
  }
  template <int R>
  QUANTRY_INLINE void small_pairs(int64_t panel, const void* base, int64_t first_row, float* sums) const {
    [[maybe_unused]] KeepSubnormals keep;
    each_span<R>(panel, 1.0f, sums, [&](const Span& span, int64_t k) QUANTRY_LAMBDA {
      micro_units_pairs<C, Mode == kHalf, R>(span, UnitTilePairs(const_cast<void*>(base), w, first_row, R, k), sums);
    });
  }
  QUANTRY_INLINE void decode_pairs(int64_t panel, int64_t k, int chunks, SlabPairs& slab, int slot) const {
    [[maybe_unused]] KeepSubnormals keep;
    alignas(64) float scale[kSlab / 16 * kRows], zero[kSlab / 16 * kRows];
    const float* correction = expand(panel, k, chunks, 1.0f, scale, zero);
    decode_unit_pairs<C>({w.planes<C>(panel, k), table, chunks, w.unit_shift, false, scale, zero}, units_of(chunks),
                         correction, slab, slot);
  }
  template <int R>
  QUANTRY_INLINE void run_pairs(const SlabPairs& slab, const void* base, int64_t k, int chunks, int64_t first_row,
                                float* c) const {
    UnitTilePairs t(const_cast<void*>(base), w, first_row, R, k);
    const int units = units_of(chunks), pairs = chunks * kChunk / 2;
    if (C::kAffine && w.corrected()) micro_pairs<0, true, R>(slab, {t.x, t.sums}, units, c, pairs, w.unit() / 2);
    else micro_pairs<0, false, R>(slab, {t.x, t.sums}, units, c, pairs, w.unit() / 2);
  }
#endif

 private:
  QUANTRY_INLINE int units_of(int chunks) const { return (chunks * kChunk + w.unit() - 1) >> w.unit_shift; }

  QUANTRY_INLINE float int8_factor() const { return table ? table->unit : 1.0f; }

  // Scales · factor per unit (axis OUT: per column), and the corrections if the weight has any, else null.
  QUANTRY_INLINE const float* expand(int64_t panel, int64_t k, int chunks, float factor, float* scale,
                                     float* correction) const {
    if constexpr (Mode == kOut) {
      column_scales(w, panel, k, chunks * kChunk, scale, correction);
      corrections(w, chunks * kChunk, scale, correction);
      return correction;
    }
    const int units = units_of(chunks);
    expand_scales(w, panel, k, units, factor, scale);
    if (!C::kAffine || !w.corrected()) return nullptr;
    expand_zeros(w, panel, k, units, correction);
    corrections(w, units * kRows, scale, correction);
    return correction;
  }

  template <int R, class Body>
  QUANTRY_INLINE void each_span(int64_t panel, float factor, float* sums, Body&& body) const {
    constexpr int most = Mode == kOut ? kScaleSpan : kScaleSpan / (Mode == kHalf ? 16 : kChunk) * kRows;
    alignas(64) float scale[most], zero[most];
    for (int i = 0; i < R * kRows; ++i) sums[i] = 0.0f;
    for (int64_t k = 0; k < columns; k += kScaleSpan) {
      const int chunks = static_cast<int>(min_of(kScaleSpan, columns - k) / kChunk);
      const float* correction = expand(panel, k, chunks, factor, scale, zero);
      body(Span{w.planes<C>(panel, k), table, chunks, w.unit() / kChunk, scale, correction}, k);
    }
  }
};

QUANTRY_END
