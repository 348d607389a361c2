// bf16 micro-kernel on one slab (≤ 256 columns of W, kTileColumns rows of W) for activations that are bf16 already:
// c[R][columns] += Σ_groups scale · Σ code · x (+ min · Σ x). Codes are small integers, exact in bf16; each product is exact in
// f32, sums are f32.
//
// Pairs: two bf16 values in a 32-bit lane, of columns (4j, 4j + 2) and then (4j + 1, 4j + 3): bytes 0 and 2 of a lane of codes
// are where a 16-bit lookup wants its indices. Activations lie as [K/2 pairs][R] u32, then sums [K/G][R] f32.
#pragma once
#include "elements.h"
#include "panel.h"
#include "threads.h"
#include "tiles.h"

QUANTRY_BEGIN

#if QUANTRY_IS(QUANTRY_TARGET) == 3
constexpr bool kHasPairs = true;   // but the processor is asked: pairs_run()
QUANTRY_INLINE bool pairs_run() { return __builtin_cpu_supports("avx512bf16"); }
// As text, the instruction needs no compiler flag, and the rest of the file runs on processors without it.
QUANTRY_INLINE vf dot_pairs(vf acc, vc w, vi x) {
  asm("vdpbf16ps %2, %1, %0" : "+v"(acc) : "v"(w), "v"(x));
  return acc;
}
QUANTRY_INLINE vc look_up_halves(vc index, const uint16_t* table) {   // 32 entries, 5 bits of each 16-bit half
  return _mm512_permutexvar_epi16(index, _mm512_load_si512(table));
}
QUANTRY_INLINE vc look_up_halves_64(vc index, const uint16_t* table) {   // 64 entries
  return _mm512_permutex2var_epi16(_mm512_load_si512(table), index, _mm512_load_si512(table + 32));
}
QUANTRY_INLINE vc pair_of(vf first, vf second) {   // numbers that are exact in bf16: their lower 16 bits are zero
  return _mm512_or_si512(_mm512_srli_epi32(_mm512_castps_si512(first), 16), _mm512_castps_si512(second));
}
QUANTRY_INLINE vi sub_bytes(vc v, uint32_t by) { return (vi)_mm512_sub_epi8(v, _mm512_set1_epi32(static_cast<int>(by))); }
// Bytes B and B + 2 of each lane, signed, as a pair.
template <int B>
QUANTRY_INLINE vc signed_pair(vc v) { return pair_of(byte_float<B>(v), byte_float<B + 2>(v)); }
#else
constexpr bool kHasPairs = false;
QUANTRY_INLINE bool pairs_run() { return false; }
#endif

constexpr uint16_t small_bf16(int n) {   // |n| ≤ 128
  int magnitude = n < 0 ? -n : n, exponent = 0;
  if (magnitude == 0) return 0;
  while (magnitude >> (exponent + 1)) ++exponent;
  return static_cast<uint16_t>((n < 0 ? 0x8000 : 0) | (127 + exponent) << 7 | ((magnitude << (7 - exponent)) & 0x7f));
}

struct SlabPairs {
  alignas(64) uint8_t cells[kTilePanels][kSlab / 2 * kCell];
  alignas(64) float scale[16 * kTileColumns];
  alignas(64) float min[16 * kTileColumns];   // value = scale · code + min
};

struct TilePairs {
  uint32_t* x;
  float* sums;

  QUANTRY_INLINE TilePairs(uint32_t* x, float* sums) : x(x), sums(sums) {}

  static constexpr int64_t row_bytes(int64_t columns, int group) { return 2 * columns + 4 * (columns / group); }

  QUANTRY_INLINE TilePairs(void* base, int64_t columns, int group, int64_t first_row, int height) {
    x = reinterpret_cast<uint32_t*>(static_cast<char*>(base) + first_row * row_bytes(columns, group));
    sums = reinterpret_cast<float*>(x + columns / 2 * height);
  }
};

// Row m of a tile; sums of `group` columns.
inline void pair_row(const uint16_t* x, int64_t columns, int group, const TilePairs& to, int height, int m) {
  for (int64_t k = 0; k < columns; k += 4) {
    uint32_t* out = to.x + k / 2 * height + m;
    out[0] = x[k] | static_cast<uint32_t>(x[k + 2]) << 16;
    out[height] = x[k + 1] | static_cast<uint32_t>(x[k + 3]) << 16;
  }
  for (int64_t g = 0; g < columns / group; ++g) {
    vf sum = zero();
    for (int i = 0; i < group; i += kLanes) sum = add(sum, load_bf16(x + g * group + i));
    to.sums[g * height + m] = sum_lanes(sum);
  }
}

#if QUANTRY_IS(QUANTRY_TARGET) == 3
// Group 0: groups of `group_pairs` pairs, known at run time; the slab has `pairs`, the last group may be short.
template <int Group, bool Mins, int R>
QUANTRY_NOINLINE void micro_pairs(const SlabPairs& w, TilePairs x, int groups, float* c, int pairs = 0, int group_pairs = 0) {
  vf acc[R][kTilePanels];
  repeat<R>([&](auto m) QUANTRY_LAMBDA {
    repeat<kTilePanels>([&](auto s) QUANTRY_LAMBDA { acc[m][s] = load(c + m * kTileColumns + s * kLanes); });
  });
  int64_t cell = 0;
  for (int g = 0; g < groups; ++g) {
    vf part[R][kTilePanels];
    repeat<R>([&](auto m) QUANTRY_LAMBDA { repeat<kTilePanels>([&](auto s) QUANTRY_LAMBDA { part[m][s] = zero(); }); });
    const int count = Group ? Group / 2 : static_cast<int>(min_of(group_pairs, pairs - g * group_pairs));
    for (int j = 0; j < count; ++j, cell += kCell) {
      vc codes[kTilePanels];
      repeat<kTilePanels>([&](auto s) QUANTRY_LAMBDA { codes[s] = load_codes(w.cells[s] + cell); });
      repeat<R>([&](auto m) QUANTRY_LAMBDA {
        vi pair = set1_int(static_cast<int32_t>(x.x[m]));
        repeat<kTilePanels>([&](auto s) QUANTRY_LAMBDA { part[m][s] = dot_pairs(part[m][s], codes[s], pair); });
      });
      x.x += R;
    }
    repeat<kTilePanels>([&](auto s) QUANTRY_LAMBDA {
      vf scale = load(w.scale + g * kTileColumns + s * kLanes);
      repeat<R>([&](auto m) QUANTRY_LAMBDA { acc[m][s] = fma(part[m][s], scale, acc[m][s]); });
      if constexpr (Mins) {
        vf min = load(w.min + g * kTileColumns + s * kLanes);
        repeat<R>([&](auto m) QUANTRY_LAMBDA { acc[m][s] = fma(min, set1(x.sums[g * R + m]), acc[m][s]); });
      }
    });
  }
  repeat<R>([&](auto m) QUANTRY_LAMBDA {
    repeat<kTilePanels>([&](auto s) QUANTRY_LAMBDA { store(c + m * kTileColumns + s * kLanes, acc[m][s]); });
  });
}
#endif

QUANTRY_END
