// Panels → what the dense micro-kernels read: f32 weights, or one byte a code with f32 scales. 32 columns at a time.
#pragma once
#include "../micro_int8.h"
#include "scales.h"

QUANTRY_BEGIN

// out[k·stride + row] = W[row, k] for ≤ 256 columns of one panel, bit-equal to the format's definition.
template <class F>
inline void decode_float(const Planes& w, int chunks, float* out, int64_t stride) {
  for (int strip = 0; strip < kStrips; ++strip) {
    each_chunk<F>(w, chunks, strip, [&](int i, const Chunk<F>& chunk, vf s0, vf s1, vf m0, vf m1) QUANTRY_LAMBDA {
      float* to = out + i * kChunk * stride + strip * kLanes;
      each_code_float<F>(chunk, [&](auto column, vf q) QUANTRY_LAMBDA {
        constexpr int k = column;
        vf value = mul(k < F::kGroup ? s0 : s1, q);
        if constexpr (F::kMins) {
          vf min = k < F::kGroup ? m0 : m1;
          value = F::kSuper ? sub(value, min) : add(value, min);
        }
        store(to + k * stride, value);
      });
    });
  }
}

// Panel `slot` of a slab: codes, scales and mins of ≤ 256 columns.
template <class F>
inline void decode_int8(const Planes& w, int chunks, SlabInt8& slab, int slot) {
  uint8_t* cells = slab.decoded[slot];
  slab.cells[slot] = F::kLow == 8 ? w.codes : cells;
  for (int strip = 0; strip < kStrips; ++strip) {
    const int column = slot * kRows + strip * kLanes;
    each_chunk<F>(w, chunks, strip, [&](int i, const Chunk<F>& chunk, vf s0, vf s1, vf min, vf) QUANTRY_LAMBDA {
      if constexpr (F::kLow != 8) {
        repeat<8>([&](auto j) QUANTRY_LAMBDA {
          constexpr int cell = j;
          store_codes(cells + (i * 8 + cell) * kCell + strip * kStripBytes, chunk.template code<cell>());
        });
      }
      constexpr int groups = kChunk / F::kGroup;
      store(slab.scale + groups * i * kTileColumns + column, s0);
      if constexpr (groups == 2) store(slab.scale + (2 * i + 1) * kTileColumns + column, s1);
      if constexpr (F::kMins && !F::kSuper) store(slab.min + i * kTileColumns + column, min);
    });
    if constexpr (F::kMins && F::kSuper) {
      store(slab.min + column, block_half<F, 1>(w.meta, strip));
      repeat<kMinPairs<F>>([&](auto p) QUANTRY_LAMBDA {
        constexpr int pair = p;
        store_codes(reinterpret_cast<uint8_t*>(slab.min_pairs + pair * kTileColumns + column),
                    as_codes(min_pair<F, pair>(w.meta, strip)));
      });
    }
  }
}

QUANTRY_END
