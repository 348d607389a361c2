// Reading the `meta` plane (formats.h) of one strip of rows: scales as numbers for f32 paths, as integers for dot products.
#pragma once
#include "formats.h"

QUANTRY_BEGIN

QUANTRY_INLINE vf half_of_rows(const uint8_t* halves, int strip) {
  return load_half(reinterpret_cast<const uint16_t*>(halves) + strip * kLanes);
}

// The f16 of the rows behind the cells of meta: d, or with Index 1 dmin.
template <class F, int Index = 0>
QUANTRY_INLINE vf block_half(const uint8_t* meta, int strip) {
  return half_of_rows(meta + F::kMetaCells * kCell + Index * 2 * kRows, strip);
}

// Q4_K, Q5_K: the scales and mins of one strip, four unsigned 6-bit values a lane.
struct SixBit {
  vc low, min, high;
  vf d, dmin;

  QUANTRY_INLINE SixBit(const uint8_t* meta, int strip)
      : low(load_codes(meta + strip * kStripBytes)),
        min(load_codes(meta + kCell + strip * kStripBytes)),
        high(load_codes(meta + 2 * kCell + strip * kStripBytes)),
        d(block_half<Q4_K>(meta, strip)),
        dmin(block_half<Q4_K, 1>(meta, strip)) {}

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
};

// A super-block's mins as pairs of 16-bit numbers for dot2, in the order of the activation sums: sub-blocks (0, 2) (1, 3)
// (4, 6) (5, 7) and so on.
template <class F>
constexpr int kMinPairs = kSlab / F::kGroup / 2;

template <class F, int P>
QUANTRY_INLINE vi min_pair(const uint8_t* meta, int strip) {
  if constexpr (F::kScales == Scales::kSixBit) {
    vc m = SixBit(meta, strip).mins<P / 2>();
    return as_int(and_bits(P % 2 ? shift_right<8>(m) : m, 0x00ff00ff));
  } else {   // Q2_K
    vc m = load_codes(meta + P / 2 * kCell + strip * kStripBytes);
    return as_int(and_bits(shift_right<P % 2 ? 12 : 4>(m), 0x000f000f));
  }
}

// Formats with 16 scales a super-block: those of 64 columns as signed bytes, times kScaleUnit.
template <class F>
constexpr float kScaleUnit = F::kScales == Scales::kSixteen ? 0.25f : 1.0f;   // what d is multiplied by to make up for it

template <class F>
QUANTRY_INLINE vc quarter_scales(const uint8_t* meta, int strip, int quarter) {
  const uint8_t* cells = meta + strip * kStripBytes;
  if constexpr (F::kScales == Scales::kBytes) {
    return load_codes(cells + quarter * kCell);
  } else if constexpr (F::kScales == Scales::kNibbles) {
    return and_bits(load_codes(cells + quarter * kCell), 0x0f0f0f0f);
  } else {
    vc low = load_codes(cells + quarter % 2 * kCell), high = load_codes(cells + 2 * kCell);
    if (quarter >= 2) low = shift_right<4>(low), high = shift_right<4>(high);
    high = quarter % 2 ? shift_left<2>(high) : shift_left<4>(high);
    vc six = or_codes(and_bits(low, 0x0f0f0f0f), and_bits(high, 0x30303030));
    return shift_left<2>(xor_bits(six, 0x20202020));   // four times (six − 32): the sign bit of six bits becomes a byte's
  }
}

// IQ4_XS: eight scales of 6 bits, one at a time.
struct EightScales {
  vi low, high;

  QUANTRY_INLINE EightScales(const uint8_t* meta, int strip)
      : low(as_int(load_codes(meta + strip * kStripBytes))), high(load_u16(meta + kCell + strip * 2 * kLanes)) {}

  QUANTRY_INLINE vi take() {
    vc six = or_codes(and_bits(as_codes(low), 15), and_bits(shift_left<4>(as_codes(high)), 0x30));
    low = as_int(shift_right<4>(as_codes(low)));
    high = as_int(shift_right<2>(as_codes(high)));
    return add_int(as_int(six), set1_int(-32));
  }
};

// MXFP4: half of 2^(e − 127). 2^-128 and 2^-127 are subnormal.
QUANTRY_INLINE vf half_e8m0(const uint8_t* meta, int strip) {
  vi e = load_u8(meta + strip * kLanes);
  vf normal = bits_float(as_int(shift_left<23>(as_codes(add_int(e, set1_int(-1))))));
  vf small = where_equal(e, 0, bits_float(set1_int(0x00200000)), normal);
  return where_equal(e, 1, bits_float(set1_int(0x00400000)), small);
}

// NVFP4: half the value of an unsigned E4M3, byte B of each lane; 0x7f stands for 0, as in ggml.
template <int B>
QUANTRY_INLINE vf half_ue4m3(vc scales) {
  vc byte = and_bits(shift_right<8 * B>(scales), 0xff);
  vf normal = bits_float(add_int(as_int(shift_left<20>(and_bits(byte, 0x7f))), set1_int(119 << 23)));
  vf small = mul(to_float(as_int(and_bits(byte, 7))), set1(0x1p-10f));
  vf value = where_equal(as_int(and_bits(byte, 0x78)), 0, small, normal);
  return where_equal(as_int(byte), 0x7f, zero(), value);
}

// Calls body(i, codes of chunk i, s0, s1, m0, m1) for the chunks of a slab: value = s·q ± m with s0, m0 for its first and s1,
// m1 for its last 16 columns (equal for groups of 32), computed as the format defines them.
template <class F, class Body>
QUANTRY_INLINE void each_chunk(const Planes& w, int chunks, int strip, Body&& body) {
  if constexpr (F::kScales == Scales::kUe4m3) {
    for (int i = 0; i < chunks; ++i) {
      vc scales = load_codes(w.meta + i / 2 * kCell + strip * kStripBytes);
      if (i % 2) scales = shift_right<16>(scales);
      body(i, Chunk<F>(w, i, strip), half_ue4m3<0>(scales), half_ue4m3<1>(scales), zero(), zero());
    }
  } else if constexpr (!F::kSuper || F::kScales == Scales::kHalf) {
    for (int i = 0; i < chunks; ++i) {
      const uint8_t* meta = w.meta + i * kChunk / F::kBlock * F::kMetaBytes;
      vf s = F::kScales == Scales::kE8m0 ? half_e8m0(meta, strip) : half_of_rows(meta, strip);
      vf m = F::kMins ? half_of_rows(meta + 2 * kRows, strip) : zero();
      body(i, Chunk<F>(w, i, strip), s, s, m, m);
    }
  } else if constexpr (F::kScales == Scales::kSixBit) {
    SixBit meta(w.meta, strip);
    vc scales = meta.scales<0>(), mins = meta.mins<0>();
    for (int half = 0; half < 2; ++half) {
      for (int b = 0; b < 4; ++b) {
        vf s = mul(meta.d, to_float(take_byte(scales)));
        vf m = mul(meta.dmin, to_float(take_byte(mins)));
        body(4 * half + b, Chunk<F>(w, 4 * half + b, strip), s, s, m, m);
      }
      QUANTRY_RELOAD();
      scales = SixBit(w.meta, strip).scales<1>();
      mins = SixBit(w.meta, strip).mins<1>();
    }
  } else if constexpr (F::kScales == Scales::kEight) {
    EightScales scales(w.meta, strip);
    vf d = block_half<F, 1>(w.meta, strip);
    for (int i = 0; i < chunks; ++i) {
      vf s = mul(d, to_float(scales.take()));
      body(i, Chunk<F>(w, i, strip), s, s, zero(), zero());
    }
  } else {
    vf d = mul(block_half<F>(w.meta, strip), set1(kScaleUnit<F>));
    vf dmin = F::kMins ? block_half<F, 1>(w.meta, strip) : zero();
    for (int quarter = 0; quarter < 4; ++quarter) {
      vc scales = quarter_scales<F>(w.meta, strip, quarter);
      vc mins = F::kMins ? load_codes(w.meta + quarter * kCell + strip * kStripBytes) : scales;
      for (int b = 0; b < 2; ++b) {
        vf s0 = mul(d, byte_float<0>(scales)), s1 = mul(d, byte_float<1>(scales)), m0 = zero(), m1 = zero();
        if constexpr (F::kMins) {
          m0 = mul(dmin, to_float(as_int(and_bits(shift_right<4>(mins), 15))));
          m1 = mul(dmin, to_float(as_int(and_bits(shift_right<12>(mins), 15))));
          mins = shift_right<16>(mins);
        }
        scales = shift_right<16>(scales);
        body(2 * quarter + b, Chunk<F>(w, 2 * quarter + b, strip), s0, s1, m0, m1);
      }
    }
  }
}

QUANTRY_END
