// ggml's block types as panel formats, and how their scales lie in the `meta` plane.
//
//   Q4_0 Q5_0 Q8_0 : per 32 columns  16 × f16 d                                                           32 bytes
//   Q4_1 Q5_1      : per 32 columns  16 × f16 d, 16 × f16 m                                               64 bytes
//   Q4_K Q5_K      : per 256 columns three cells and 16 × f16 d, 16 × f16 dmin                           256 bytes
//        cell 0: low nibbles of the 8 scales (low nibble of byte b: scale b, high nibble: scale 4 + b); cell 1: of the
//        mins; cell 2: bits 4-5 of byte b: scale b (bits 0-1), scale 4 + b (2-3), min b (4-5), min 4 + b (6-7)
//   Q6_K           : per 256 columns four cells of 4 × i8 scales (byte b of cell c: scale 4c + b), 16 × f16 d   288 bytes
// Every source bit has one place here, so packing is undone exactly (ggml/pack.h).
#pragma once
#include "../panel.h"

QUANTRY_BEGIN

template <int Type, int Block, int BlockBytes, int Low, int High, int Zero, int MetaBytes, int Group, bool Mins>
struct Format {
  static constexpr int kType = Type, kBlock = Block, kBlockBytes = BlockBytes, kLow = Low, kHigh = High, kZero = Zero,
                       kMetaBytes = MetaBytes, kGroup = Group;
  static constexpr bool kMins = Mins, kSuper = Block == 256;
};

// ggml's type numbers (ggml.h); value = d·(q − zero), d·q + m for *_1, d·scale·q − dmin·min for Q4_K and Q5_K.
using Q4_0 = Format<2, 32, 18, 4, 0, 8, 32, 32, false>;
using Q4_1 = Format<3, 32, 20, 4, 0, 0, 64, 32, true>;
using Q5_0 = Format<6, 32, 22, 4, 1, 16, 32, 32, false>;
using Q5_1 = Format<7, 32, 24, 4, 1, 0, 64, 32, true>;
using Q8_0 = Format<8, 32, 34, 8, 0, 128, 32, 32, false>;
using Q4_K = Format<12, 256, 144, 4, 0, 0, 256, 32, true>;
using Q5_K = Format<13, 256, 176, 4, 1, 0, 256, 32, true>;
using Q6_K = Format<14, 256, 210, 4, 2, 32, 288, 16, false>;

// Calls body(F()) for a type number; false when there is no such format.
template <class Body>
QUANTRY_INLINE bool with_format(int type, Body&& body) {
  switch (type) {
    case Q4_0::kType: body(Q4_0()); return true;
    case Q4_1::kType: body(Q4_1()); return true;
    case Q5_0::kType: body(Q5_0()); return true;
    case Q5_1::kType: body(Q5_1()); return true;
    case Q8_0::kType: body(Q8_0()); return true;
    case Q4_K::kType: body(Q4_K()); return true;
    case Q5_K::kType: body(Q5_K()); return true;
    case Q6_K::kType: body(Q6_K()); return true;
    default: return false;
  }
}

// Q4_K, Q5_K: the scales and mins of one strip, four unsigned 6-bit values a lane.
struct SixBit {
  vc low, min, high;
  vf d, dmin;

  QUANTRY_INLINE SixBit(const uint8_t* meta, int strip)
      : low(load_codes(meta + strip * kStripBytes)),
        min(load_codes(meta + kCell + strip * kStripBytes)),
        high(load_codes(meta + 2 * kCell + strip * kStripBytes)),
        d(load_half(reinterpret_cast<const uint16_t*>(meta + 3 * kCell) + strip * kLanes)),
        dmin(load_half(reinterpret_cast<const uint16_t*>(meta + 3 * kCell) + kRows + strip * kLanes)) {}

  template <int Half>   // sub-blocks 4·Half … 4·Half+3
  QUANTRY_INLINE vc scales() const {
    if constexpr (Half == 0)
      return or_codes(and_bits(low, 0x0f0f0f0f), and_bits(shift_left<4>(high), 0x30303030));
    else
      return or_codes(and_bits(shift_right<4>(low), 0x0f0f0f0f), and_bits(shift_left<2>(high), 0x30303030));
  }
  template <int Half>
  QUANTRY_INLINE vc mins() const {
    if constexpr (Half == 0)
      return or_codes(and_bits(min, 0x0f0f0f0f), and_bits(high, 0x30303030));
    else
      return or_codes(and_bits(shift_right<4>(min), 0x0f0f0f0f), and_bits(shift_right<2>(high), 0x30303030));
  }
  // Pairs of 16-bit mins for dot2, in the order of the activation sums: (0, 2) (1, 3) (4, 6) (5, 7).
  template <int P>
  QUANTRY_INLINE vi min_pair() const {
    vc m = mins<P / 2>();
    return as_int(and_bits(P % 2 ? shift_right<8>(m) : m, 0x00ff00ff));
  }
};

// Q6_K: the scales of 64 columns are one cell of signed bytes.
struct SignedScales {
  const uint8_t* cells;
  vf d;

  QUANTRY_INLINE SignedScales(const uint8_t* meta, int strip)
      : cells(meta + strip * kStripBytes),
        d(load_half(reinterpret_cast<const uint16_t*>(meta + 4 * kCell) + strip * kLanes)) {}
  QUANTRY_INLINE vc quarter(int i) const { return load_codes(cells + i * kCell); }
};

// Calls body(i, codes of chunk i, s0, s1, m) for the chunks of a slab: value = s·q ± m with s0 for its first and s1 for
// its last 16 columns (equal except for Q6_K), computed as the format defines them.
template <class F, class Body>
QUANTRY_INLINE void each_chunk(const Planes& w, int chunks, int strip, Body&& body) {
  if constexpr (!F::kSuper) {
    for (int i = 0; i < chunks; ++i) {
      const uint16_t* meta = reinterpret_cast<const uint16_t*>(w.meta + i * F::kMetaBytes) + strip * kLanes;
      vf s = load_half(meta);
      body(i, Chunk<F>(w, i, strip), s, s, F::kMins ? load_half(meta + kRows) : zero());
    }
  } else if constexpr (F::kMins) {
    SixBit meta(w.meta, strip);
    vc scales = meta.scales<0>(), mins = meta.mins<0>();
    for (int half = 0; half < 2; ++half) {
      for (int b = 0; b < 4; ++b) {
        vf s = mul(meta.d, to_float(take_byte(scales)));
        vf m = mul(meta.dmin, to_float(take_byte(mins)));
        body(4 * half + b, Chunk<F>(w, 4 * half + b, strip), s, s, m);
      }
      QUANTRY_RELOAD();
      scales = SixBit(w.meta, strip).scales<1>();
      mins = SixBit(w.meta, strip).mins<1>();
    }
  } else {
    SignedScales meta(w.meta, strip);
    for (int quarter = 0; quarter < 4; ++quarter) {
      vc scales = meta.quarter(quarter);
      for (int b = 0; b < 2; ++b) {
        vf s0 = mul(meta.d, byte_float<0>(scales)), s1 = mul(meta.d, byte_float<1>(scales));
        scales = shift_right<16>(scales);
        body(2 * quarter + b, Chunk<F>(w, 2 * quarter + b, strip), s0, s1, zero());
      }
    }
  }
}

QUANTRY_END
