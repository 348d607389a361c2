// bf16 activations on ggml's panels (micro_pairs.h): codes become bf16 by one table lookup a pair, exact.
#pragma once
#include "../micro_pairs.h"
#include "scales.h"

QUANTRY_BEGIN

template <class F>
struct PairTable {   // entry i: code i as bf16; 4-bit codes twice, so that the bit above an index does not matter
  static constexpr int kBits = F::kCodeBits, kSize = kBits > 5 ? 64 : 32;
  alignas(64) uint16_t values[kSize] = {};

  constexpr PairTable() {
    for (int i = 0; i < kSize; ++i) {
      int code = i & ((1 << kBits) - 1);
      values[i] = small_bf16(value(code));
    }
  }
  static constexpr int value(int code) {
    if constexpr (F::Table::kUsed) return static_cast<int>(F::Table::kFloats[code]);
    else return code - F::kZero;
  }
};

#if QUANTRY_IS(QUANTRY_TARGET) == 3
// Calls body(Const<p>, codes) for the 16 pairs of a chunk: pair p is of columns 4·(p/2) + p%2 and two further on.
template <class F, int Part = 0, int Parts = 1, class Body>
QUANTRY_INLINE void each_code_pair(const Chunk<F>& chunk, Body&& body) {
  if constexpr (F::kLow == 4 && F::kHigh == 0) {
    static constexpr PairTable<F> table;
    repeat<4 / Parts>([&](auto c) QUANTRY_LAMBDA {
      constexpr int cell = Part * 4 / Parts + c;
      vc v = load_codes(chunk.low + cell * kCell);
      repeat<4>([&](auto n) QUANTRY_LAMBDA {   // nibble n of each 16-bit half: byte n / 2, columns 4 further for odd n
        constexpr int nibble = n;
        vc index = v;
        if constexpr (nibble > 0) index = shift_right<4 * nibble>(v);
        body(Const<2 * (2 * cell + nibble % 2) + nibble / 2>{}, look_up_halves(index, table.values));
      });
    });
  } else {
    repeat<8 / Parts>([&](auto j) QUANTRY_LAMBDA {
      constexpr int cell = Part * 8 / Parts + j;
      vc v = chunk.template code<cell>();
      if constexpr (F::kLow == 8) {
        v = xor_bits(v, 0x80808080);
        body(Const<2 * cell>{}, signed_pair<0>(v));
        body(Const<2 * cell + 1>{}, signed_pair<1>(v));
      } else {
        static constexpr PairTable<F> table;
        auto look_up = [&](vc index) QUANTRY_LAMBDA {
          if constexpr (PairTable<F>::kSize == 64) return look_up_halves_64(index, table.values);
          else return look_up_halves(index, table.values);
        };
        body(Const<2 * cell>{}, look_up(v));
        body(Const<2 * cell + 1>{}, look_up(shift_right<8>(v)));
      }
    });
  }
}

// Panel `slot` of a slab: codes, scales and mins of ≤ 256 columns.
template <class F>
inline void decode_pairs(const Planes& w, int chunks, SlabPairs& slab, int slot) {
  each_chunk<F>(w, chunks, 0, [&](int i, const Chunk<F>& chunk, vf s0, vf s1, vf m0, vf m1) QUANTRY_LAMBDA {
    constexpr int groups = kChunk / F::kGroup;
    each_code_pair<F>(chunk, [&](auto p, vc codes) QUANTRY_LAMBDA {
      constexpr int pair = p;
      store_codes(slab.cells[slot] + (i * 16 + pair) * kCell, codes);
    });
    float* scale = slab.scale + groups * i * kTileColumns + slot * kRows;
    store(scale, s0);
    if constexpr (groups == 2) store(scale + kTileColumns, s1);
    if constexpr (F::kMins) {
      float* min = slab.min + groups * i * kTileColumns + slot * kRows;
      store(min, F::kSuper ? sub(zero(), m0) : m0);
      if constexpr (groups == 2) store(min + kTileColumns, F::kSuper ? sub(zero(), m1) : m1);
    }
  });
}

// Few rows: sums[R][16] of one panel, codes used as they are looked up.
template <class F, int R>
QUANTRY_NOINLINE void micro_small_pairs(const Planes& weights, int64_t panel, int64_t columns, TilePairs x, float* sums) {
  constexpr int groups = kChunk / F::kGroup, chains = R == 1 ? 4 : R <= 3 ? 2 : 1;
  vf acc[R];
  repeat<R>([&](auto m) QUANTRY_LAMBDA { acc[m] = zero(); });
  for (int64_t k = 0; k < columns; k += kSlab) {
    Planes w = planes_at<F>(weights, panel, columns, k);
    int chunks = static_cast<int>(min_of(kSlab, columns - k) / kChunk);
    each_chunk<F>(w, chunks, 0, [&](int i, const Chunk<F>& chunk, vf s0, vf s1, vf m0, vf m1) QUANTRY_LAMBDA {
      prefetch_codes<F>(w, i, 0);
      const uint32_t* row = x.x + i * (kChunk / 2) * R;
      repeat<groups>([&](auto g) QUANTRY_LAMBDA {
        constexpr int group = g;
        vf part[R * chains];
        repeat<R * chains>([&](auto n) QUANTRY_LAMBDA { part[n] = zero(); });
        each_code_pair<F, group, groups>(chunk, [&](auto p, vc codes) QUANTRY_LAMBDA {
          constexpr int pair = p;
          repeat<R>([&](auto m) QUANTRY_LAMBDA {
            vf& sum = part[m * chains + pair % chains];
            sum = dot_pairs(sum, codes, set1_int(static_cast<int32_t>(row[pair * R + m])));
          });
        });
        repeat<R>([&](auto m) QUANTRY_LAMBDA {
          vf* p = part + m * chains;
          if constexpr (chains == 4) p[0] = add(add(p[0], p[1]), add(p[2], p[3]));
          if constexpr (chains == 2) p[0] = add(p[0], p[1]);
          acc[m] = fma(p[0], group == 0 ? s0 : s1, acc[m]);
          if constexpr (F::kMins) {
            vf min = group == 0 ? m0 : m1, total = set1(x.sums[(groups * i + group) * R + m]);
            acc[m] = F::kSuper ? fnma(min, total, acc[m]) : fma(min, total, acc[m]);
          }
        });
      });
    });
    x.x += kSlab / 2 * R;
    x.sums += kSlab / F::kGroup * R;
  }
  repeat<R>([&](auto m) QUANTRY_LAMBDA { store(sums + m * kRows, acc[m]); });
}
#endif

QUANTRY_END
