// Integer micro-kernel on one slab (≤ 256 columns of W, kTileColumns rows of W): c[R][columns] += scaled Σ codes · x.
#pragma once
#include "panel.h"

QUANTRY_BEGIN

// A decoded slab. Cells of 64 bytes (16 rows × 4 columns) per panel; scales and mins as [group][kTileColumns].
struct SlabInt8 {
  const uint8_t* cells[kTilePanels];   // `decoded`, or the plane itself when codes have 8 bits
  alignas(64) uint8_t decoded[kTilePanels][kSlab / 4 * kCell];
  alignas(64) float scale[16 * kTileColumns];
  alignas(64) float min[16 * kTileColumns];         // plain formats: m of 32 columns; super: dmin in the first row
  alignas(64) int32_t min_pairs[8 * kTileColumns];  // super: integer mins as the operand of dot2
};

// What a format's inner loop depends on; formats that agree share the instances.
template <int Group, bool Super, bool Mins, bool Full, bool Start>
struct KindInt8 {
  static constexpr int kGroup = Group;
  static constexpr bool kSuper = Super, kMins = Mins, kFull = Full, kStart = Start;
};
template <class F>
using KindOf = KindInt8<F::kGroup, F::kSuper, F::kMins, kFullCodes<F>, kZeroOf<F> != 0>;

// Groups of a size known at run time, with a scale of x for each (grouped/).
template <bool Mins, bool Full>
using KindUnits = KindInt8<0, false, Mins, Full, true>;

struct TileSlab {   // the part of a tile of activations (activations.h) that belongs to the slab
  const int8_t* codes;
  const float* scale;
  const int32_t* start;
  const void* sums;
  int cells = 0, group_cells = 0;   // KindUnits: of the slab, of a group; the last may be short
};

template <class Kind, int R>
QUANTRY_NOINLINE void micro_int8(const SlabInt8& w, TileSlab x, int groups, float* c) {
  vf acc[R][kTileStrips];
  auto each = [](auto&& body) QUANTRY_LAMBDA {
    repeat<R * kTileStrips>([&](auto n) QUANTRY_LAMBDA {
      constexpr int i = n;
      body(Const<i / kTileStrips>{}, Const<i % kTileStrips>{});
    });
  };
  each([&](auto m, auto s) QUANTRY_LAMBDA {
    acc[m][s] = Kind::kSuper ? zero() : load(c + m * kTileColumns + s * kLanes);
  });
  int64_t cell = 0;
  for (int g = 0; g < groups; ++g) {
    vi a[R][kTileStrips];
    repeat<R>([&](auto m) QUANTRY_LAMBDA {
      vi start = Kind::kStart ? set1_int(x.start[g * R + m]) : zero_int();
      repeat<kTileStrips>([&](auto s) QUANTRY_LAMBDA { a[m][s] = start; });
    });
    const int cells = Kind::kGroup ? Kind::kGroup / 4 : static_cast<int>(min_of(x.group_cells, x.cells - g * x.group_cells));
    for (int j = 0; j < cells; ++j, cell += kCell) {
      vc codes[kTileStrips];
      repeat<kTileStrips>([&](auto s) QUANTRY_LAMBDA {
        codes[s] = load_codes(w.cells[s / kStrips] + cell + s % kStrips * kStripBytes);
      });
      repeat<R>([&](auto m) QUANTRY_LAMBDA {
        int32_t four;
        memcpy(&four, x.codes + 4 * m, 4);
        repeat<kTileStrips>([&](auto s) QUANTRY_LAMBDA {
          a[m][s] = Kind::kFull ? dot4_full(a[m][s], codes[s], four) : dot4(a[m][s], codes[s], four);
        });
      });
      x.codes += 4 * R;
    }
    repeat<kTileStrips>([&](auto s) QUANTRY_LAMBDA {
      vf scale = load(w.scale + g * kTileColumns + s * kLanes);
      repeat<R>([&](auto m) QUANTRY_LAMBDA {
        vf factor = Kind::kSuper ? scale : mul(scale, set1(x.scale[(Kind::kGroup ? g * Kind::kGroup / 32 : g) * R + m]));
        acc[m][s] = fma(to_float(a[m][s]), factor, acc[m][s]);
      });
      if constexpr (Kind::kMins && !Kind::kSuper) {
        vf min = load(w.min + g * kTileColumns + s * kLanes);
        repeat<R>([&](auto m) QUANTRY_LAMBDA {
          acc[m][s] = fma(min, set1(static_cast<const float*>(x.sums)[g * R + m]), acc[m][s]);
        });
      }
    });
  }
  each([&](auto m, auto s) QUANTRY_LAMBDA {
    float* out = c + m * kTileColumns + s * kLanes;
    vf sum = acc[m][s];
    if constexpr (Kind::kSuper && Kind::kMins) {   // below = Σ mins · Σ x as integers: dot2 instead of two FMAs
      vi below = zero_int();
      repeat<128 / Kind::kGroup>([&](auto p) QUANTRY_LAMBDA {
        vi pair = as_int(load_codes(reinterpret_cast<const uint8_t*>(w.min_pairs + p * kTileColumns + s * kLanes)));
        below = dot2(below, pair, static_cast<const int32_t*>(x.sums)[p * R + m]);
      });
      sum = fnma(load(w.min + s * kLanes), to_float(below), sum);
    }
    store(out, Kind::kSuper ? fma(sum, set1(x.scale[m]), load(out)) : sum);
  });
}

QUANTRY_END
