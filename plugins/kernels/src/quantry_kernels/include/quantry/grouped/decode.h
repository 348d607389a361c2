// A slab of a panel → what the dense micro-kernels read: f32 weights, or one byte a code with a scale per unit.
#pragma once
#include "../micro_int8.h"
#include "scales.h"

QUANTRY_BEGIN

struct DecodeSlab {
  CodePlanes planes;
  const CodeTable* table;
  int chunks, unit_shift;
  bool bias;
  const float *scale, *zero;   // [unit][16], or one a column (axis OUT)
};

// Where a code is NaN, which each_float leaves out, the weight is.
template <class C>
QUANTRY_NOINLINE void mark_nan(const typename C::Chunk& chunk, float* out, int64_t stride) {
  vc seen = C::broken(chunk, as_codes(zero_int()));
  uint8_t lanes[kStripBytes], cell[kStripBytes];
  store_codes(lanes, seen);
  for (int lane = 0; lane < kLanes; ++lane) {
    uint32_t any;
    memcpy(&any, lanes + 4 * lane, 4);
    if ((any & 0x80808080u) == 0) continue;
    for (int quad = 0; quad < 8; ++quad) {
      store_codes(cell, load_codes(chunk.low + quad * kCell));
      for (int b = 0; b < 4; ++b)
        if ((cell[4 * lane + b] & 0x7f) == 0x7f) out[(4 * quad + b) * stride + lane] = float_of(0x7fc00000u);
    }
  }
}

// out[k·stride + row] = W[row, k], rounded step by step as the layout defines it.
template <class C, bool PerColumn>
QUANTRY_NOINLINE void decode_units(const DecodeSlab& w, float* out, int64_t stride) {
  for (int strip = 0; strip < kStrips; ++strip) {
    typename C::Chunk chunk(w.planes, 0, strip);
    for (int i = 0; i < w.chunks; ++i, chunk.next()) {
      repeat<2>([&](auto h) QUANTRY_LAMBDA {   // the scales of 16 columns are equal, of 32 perhaps not
        constexpr int half = h;
        const int column = i * kChunk + half * 16, unit = (column >> w.unit_shift) * kRows + strip * kLanes;
        float* to = out + i * kChunk * stride + strip * kLanes;
        vf s = PerColumn ? zero() : load(w.scale + unit);
        vf z = PerColumn || !C::kAffine ? zero() : load(w.zero + unit);
        C::template each_float<0, half, 2>(chunk, w.table, [&](auto c, vf q) QUANTRY_LAMBDA {
          constexpr int k = c;
          if constexpr (PerColumn) s = set1(w.scale[i * kChunk + k]), z = set1(w.zero[i * kChunk + k]);
          vf value = mul(q, s);
          if constexpr (C::kAffine) value = w.bias ? add(value, z) : mul(sub(q, z), s);
          store(to + k * stride, value);
        });
      });
      if constexpr (C::kNan) mark_nan<C>(chunk, out + i * kChunk * stride + strip * kLanes, stride);
    }
  }
}

// Codes and scales of panel `slot` of a slab.
template <class C>
QUANTRY_NOINLINE void decode_bytes(const DecodeSlab& w, int units, const float* correction, SlabInt8& slab, int slot) {
  slab.cells[slot] = C::kLow == 8 ? w.planes.low : slab.decoded[slot];
  for (int strip = 0; strip < kStrips; ++strip) {
    const int at = strip * kLanes, to = slot * kRows + at;
    if constexpr (C::kLow != 8) {
      typename C::Chunk chunk(w.planes, 0, strip);
      uint8_t* cells = slab.decoded[slot] + strip * kStripBytes;
      for (int i = 0; i < w.chunks; ++i, chunk.next(), cells += 8 * kCell)
        each_quad<0, 1>([&](auto j) QUANTRY_LAMBDA {
          constexpr int quad = j;
          store_codes(cells + quad * kCell, C::template int8<quad>(chunk, w.table));
        });
    }
    for (int u = 0; u < units; ++u) {
      store(slab.scale + u * kTileColumns + to, load(w.scale + u * kRows + at));
      if (correction) store(slab.min + u * kTileColumns + to, load(correction + u * kRows + at));
    }
  }
}

QUANTRY_END
