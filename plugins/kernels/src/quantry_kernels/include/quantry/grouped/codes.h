// The codes of a panel (planes: quantry/panel.h) as the kernels want them: bytes for dot products, or f32.
//
// A code family C offers
//   kLow, kHigh, kTop        bits of its planes
//   kAffine                  value = (q − zero) · scale, else value = number · scale
//   kInt8, kFull             has integer codes; they fill 8 bits and are stored as q + 128 (dot4_full)
//   kZero                    what `each_float` subtracts: the middle of the codes, so that sums cancel little
//   kNan                     a code can be NaN, which each_float leaves out: `broken`, `with_nan`
//   serves(w)                whether it reads the weight w
//   int8<J>(chunk, table)    columns 4·J … 4·J+3 as bytes
//   kPairs, kMostPairs       codes are exact in bf16 (micro_pairs.h); most rows of the small kernels that use them so
//   each_pair<Part, Parts>(chunk, table, body)          calls body(Const<pair>, numbers − kZero as bf16 pairs)
//   each_pair_part<Part, Parts>                         a pair may come in parts that add up: fewer steps for one row
//   each_float<Zero, Part, Parts>(chunk, table, body)   calls body(Const<k>, number − Zero) for a part of the columns
#pragma once
#include "../micro_pairs.h"
#include "abi.h"

QUANTRY_BEGIN

struct CodePlanes {
  const uint8_t *low, *high, *top;   // null where there is none
};

// What 4-bit codes stand for: floats for exact sums; bytes q + 128 for integer ones, q = number / `unit` rounded.
struct CodeTable {
  alignas(64) float floats[16];
  alignas(16) uint8_t bytes[16];
  float unit;   // 0: no integers come close
  alignas(64) uint16_t halves[32];   // as bf16 twice over, where they are exact
};

// 32 columns of one strip of rows.
template <int Low, int High, int Top>
struct CodeChunk {
  const uint8_t *low, *high, *top;

  static constexpr int64_t cells(int bits) { return bits * kCell; }   // bytes of 16 rows × 32 columns

  QUANTRY_INLINE CodeChunk(const CodePlanes& w, int64_t chunk, int strip)
      : low(w.low + chunk * cells(Low) + strip * kStripBytes),
        high(High ? w.high + chunk * cells(High) + strip * kStripBytes : nullptr),
        top(Top ? w.top + chunk * cells(Top) + strip * kStripBytes : nullptr) {}

  QUANTRY_INLINE void next() {
    low += cells(Low);
    if (High) high += cells(High);
    if (Top) top += cells(Top);
  }

  // Columns 4·J … 4·J+3, one byte each.
  template <int J>
  QUANTRY_INLINE vc bytes() const {
    vc q = field<Low, J, 0>(low);
    if constexpr (High > 0) q = or_codes(q, field<High, J, Low>(high));
    if constexpr (Top > 0) q = or_codes(q, field<Top, J, Low + High>(top));
    return q;
  }

  // The fields of a plane for columns 4·J … 4·J+3, moved to bit `At` of each byte.
  template <int Width, int J, int At>
  QUANTRY_INLINE static vc field(const uint8_t* plane) {
    constexpr int fields = 8 / Width, shift = J % fields * Width - At;
    vc v = load_codes(plane + J / fields * kCell);
    if constexpr (Width == 8) return v;
    if constexpr (shift > 0) v = shift_right<shift>(v);
    if constexpr (shift < 0) v = shift_left<-shift>(v);
    return and_bits(v, (((1u << Width) - 1) << At) * 0x01010101u);
  }
};

// Calls body(Const<J>) for the groups of four columns of a part of a chunk.
template <int Part, int Parts, class Body>
QUANTRY_INLINE void each_quad(Body&& body) {
  repeat<8 / Parts>([&](auto j) QUANTRY_LAMBDA { body(Const<Part * 8 / Parts + j>{}); });
}

// body(Const<p>, two bf16 of each lane): pair p is of columns 4·(p/2) + p%2 and two further on. look_up(v) takes the bytes
// 0 and 2 of each lane, ignoring what is above `bits` of them.
template <int Part, int Parts, class LookUp, class Body>
QUANTRY_INLINE void each_nibble_pair(const uint8_t* plane, LookUp&& look_up, Body&& body) {
  repeat<4 / Parts>([&](auto c) QUANTRY_LAMBDA {
    constexpr int cell = Part * 4 / Parts + c;
    vc v = load_codes(plane + cell * kCell);
    repeat<4>([&](auto n) QUANTRY_LAMBDA {   // nibble n of each 16-bit half: byte n / 2, columns 4 further for odd n
      constexpr int nibble = n;
      vc index = v;
      if constexpr (nibble > 0) index = shift_right<4 * nibble>(v);
      body(Const<2 * (2 * cell + nibble % 2) + nibble / 2>{}, look_up(index));
    });
  });
}

// The nibbles of a part of a chunk in the order in which they lie: body(Const<k>, Const<position>, cell).
template <int Part, int Parts, class Body>
QUANTRY_INLINE void each_nibble(const uint8_t* plane, Body&& body) {
  repeat<4 / Parts>([&](auto c) QUANTRY_LAMBDA {
    constexpr int cell = Part * 4 / Parts + c;
    vc v = load_codes(plane + cell * kCell);
    repeat<8>([&](auto n) QUANTRY_LAMBDA {   // columns 0 4 1 5 2 6 3 7 of the cell
      constexpr int nibble = n, k = 8 * cell + nibble / 2 + nibble % 2 * 4;
      body(Const<k>{}, Const<4 * nibble>{}, v);
    });
  });
}

// Unsigned codes of 1 to 8 bits.
template <int Bits>
struct AffineCodes {
  static constexpr int kLow = Bits == 8 ? 8 : Bits >= 4 ? 4 : Bits >= 2 ? 2 : 1;
  static constexpr int kHigh = Bits == 3 || Bits == 5 ? 1 : Bits == 6 || Bits == 7 ? 2 : 0;
  static constexpr int kTop = Bits == 7 ? 1 : 0;
  static constexpr int kZero = 1 << (Bits - 1);
  static constexpr bool kAffine = true, kInt8 = true, kFull = Bits == 8, kNan = false, kPairs = true;
  static constexpr int kMostPairs = kHigh == 2 ? 4 : 8;
  using Chunk = CodeChunk<kLow, kHigh, kTop>;

  QUANTRY_INLINE static bool serves(const QuantryGrouped& w) { return w.family == QUANTRY_AFFINE && w.bits == Bits; }
  QUANTRY_INLINE static const CodeTable* table(const QuantryGrouped&) { return nullptr; }

  template <int J>
  QUANTRY_INLINE static vc int8(const Chunk& chunk, const CodeTable*) { return chunk.template bytes<J>(); }

  template <int Part, int Parts, class Body>
  QUANTRY_INLINE static void each_pair(const Chunk& chunk, const CodeTable*, Body&& body);
  template <int Part, int Parts, class Body>
  QUANTRY_INLINE static void each_pair_part(const Chunk& chunk, const CodeTable*, Body&& body);

  template <int Zero, int Part, int Parts, class Body>
  QUANTRY_INLINE static void each_float(const Chunk& chunk, const CodeTable*, Body&& body) {
    if constexpr (Bits == 4) {
      each_nibble<Part, Parts>(chunk.low, [&](auto k, auto at, vc v) QUANTRY_LAMBDA {
        constexpr int position = at;
        body(k, field_float<4, Zero, position>(v));
      });
    } else if constexpr (Bits < 3) {   // every field of the lanes of a cell: field f of byte b is column 4·f + b
      repeat<Bits>([&](auto c) QUANTRY_LAMBDA {
        constexpr int cell = c, columns = kChunk / Bits, first = columns * cell, part = kChunk / Parts;
        vc v = load_codes(chunk.low + cell * kCell);
        repeat<columns>([&](auto i) QUANTRY_LAMBDA {
          constexpr int field = i / 4, byte = i % 4, k = first + 4 * field + byte;
          if constexpr (k / part == Part) body(Const<k>{}, field_float<Bits, Zero, 8 * byte + Bits * field>(v));
        });
      });
    } else {
      each_quad<Part, Parts>([&](auto j) QUANTRY_LAMBDA {
        constexpr int quad = j;
        vc v = chunk.template bytes<quad>();
        repeat<4>([&](auto b) QUANTRY_LAMBDA {
          constexpr int byte = b;
          body(Const<4 * quad + byte>{}, field_float<Bits, Zero, 8 * byte>(v));
        });
      });
    }
  }
};

#if QUANTRY_IS(QUANTRY_TARGET) == 3
// Entry i: code i minus the middle as bf16; codes of up to 4 bits twice, so that the bit above an index does not matter.
template <int Bits>
struct CodeHalves {
  static constexpr int kSize = Bits > 5 ? 64 : 32;
  alignas(64) uint16_t values[kSize] = {};
  constexpr CodeHalves() {
    for (int i = 0; i < kSize; ++i) values[i] = small_bf16((i & ((1 << Bits) - 1)) - (1 << (Bits - 1)));
  }
  QUANTRY_INLINE vc at(vc index) const {
    if constexpr (kSize == 64) return look_up_halves_64(index, values);
    else return look_up_halves(index, values);
  }
};

// The parts of a wide code, (code − middle) = low nibble + 16 · (high nibble − middle / 16), each exact.
template <int Bits>
struct NibbleHalves {
  alignas(64) uint16_t low[32] = {};
  alignas(64) uint16_t high[32] = {};
  constexpr NibbleHalves() {
    for (int i = 0; i < 32; ++i) low[i] = small_bf16(i % 16), high[i] = small_bf16(16 * (i % 16) - (1 << (Bits - 1)));
  }
};

template <int Bits>
template <int Part, int Parts, class Body>
QUANTRY_INLINE void AffineCodes<Bits>::each_pair_part(const Chunk& chunk, const CodeTable* table, Body&& body) {
  if constexpr (Bits > 6) {
    static constexpr NibbleHalves<Bits> halves;
    each_quad<Part, Parts>([&](auto j) QUANTRY_LAMBDA {
      constexpr int quad = j;
      vc v = chunk.template bytes<quad>();
      body(Const<2 * quad>{}, look_up_halves(v, halves.low));
      body(Const<2 * quad>{}, look_up_halves(shift_right<4>(v), halves.high));
      body(Const<2 * quad + 1>{}, look_up_halves(shift_right<8>(v), halves.low));
      body(Const<2 * quad + 1>{}, look_up_halves(shift_right<12>(v), halves.high));
    });
  } else {
    each_pair<Part, Parts>(chunk, table, body);
  }
}

template <int Bits>
template <int Part, int Parts, class Body>
QUANTRY_INLINE void AffineCodes<Bits>::each_pair(const Chunk& chunk, const CodeTable*, Body&& body) {
  if constexpr (Bits > 6) {
    each_quad<Part, Parts>([&](auto j) QUANTRY_LAMBDA {
      constexpr int quad = j;
      vc v = chunk.template bytes<quad>();
      if constexpr (Bits == 8) v = xor_bits(v, 0x80808080);
      else v = as_codes(sub_bytes(v, 0x40404040));
      body(Const<2 * quad>{}, signed_pair<0>(v));
      body(Const<2 * quad + 1>{}, signed_pair<1>(v));
    });
  } else {
    static constexpr CodeHalves<Bits> halves;
    auto look_up = [&](vc index) QUANTRY_LAMBDA { return halves.at(index); };
    if constexpr (Bits == 4) {
      each_nibble_pair<Part, Parts>(chunk.low, look_up, body);
    } else {
      each_quad<Part, Parts>([&](auto j) QUANTRY_LAMBDA {
        constexpr int quad = j;
        vc v = chunk.template bytes<quad>();
        body(Const<2 * quad>{}, look_up(v));
        body(Const<2 * quad + 1>{}, look_up(shift_right<8>(v)));
      });
    }
  }
}
#endif

// NF4, FP4 (bitsandbytes), IQ4_NL (ggml), E2M1 (OCP microscaling); the numbers of quantry.layouts.tables.
const CodeTable kCodeTables[] = {
    {{-1.0f, -0.6961928009986877f, -0.5250730514526367f, -0.39491748809814453f, -0.28444138169288635f, -0.18477343022823334f,
      -0.09105003625154495f, 0.0f, 0.07958029955625534f, 0.16093020141124725f, 0.24611230194568634f, 0.33791524171829224f,
      0.44070982933044434f, 0.5626170039176941f, 0.7229568362236023f, 1.0f},
     {1, 40, 61, 78, 92, 105, 116, 128, 138, 148, 159, 171, 184, 199, 220, 255}, 1.0f / 127.0f, {}},
    {{0.0f, 0.0052083334885537624f, 0.6666666865348816f, 1.0f, 0.3333333432674408f, 0.5f, 0.1666666716337204f, 0.25f,
      0.0f, -0.0052083334885537624f, -0.6666666865348816f, -1.0f, -0.3333333432674408f, -0.5f, -0.1666666716337204f,
      -0.25f},
     {}, 0.0f, {}},   // multiples of 1/192: nothing close in 8 bits
    {{-127, -104, -83, -65, -49, -35, -22, -10, 1, 13, 25, 38, 53, 69, 89, 113},
     {1, 24, 45, 63, 79, 93, 106, 118, 129, 141, 153, 166, 181, 197, 217, 241}, 1.0f,
     {0xc2fe, 0xc2d0, 0xc2a6, 0xc282, 0xc244, 0xc20c, 0xc1b0, 0xc120,
      0x3f80, 0x4150, 0x41c8, 0x4218, 0x4254, 0x428a, 0x42b2, 0x42e2,
      0xc2fe, 0xc2d0, 0xc2a6, 0xc282, 0xc244, 0xc20c, 0xc1b0, 0xc120,
      0x3f80, 0x4150, 0x41c8, 0x4218, 0x4254, 0x428a, 0x42b2, 0x42e2}},
    {{0.0f, 0.5f, 1.0f, 1.5f, 2.0f, 3.0f, 4.0f, 6.0f, -0.0f, -0.5f, -1.0f, -1.5f, -2.0f, -3.0f, -4.0f, -6.0f},
     {128, 129, 130, 131, 132, 134, 136, 140, 128, 127, 126, 125, 124, 122, 120, 116}, 0.5f,
     {0x0000, 0x3f00, 0x3f80, 0x3fc0, 0x4000, 0x4040, 0x4080, 0x40c0,
      0x8000, 0xbf00, 0xbf80, 0xbfc0, 0xc000, 0xc040, 0xc080, 0xc0c0,
      0x0000, 0x3f00, 0x3f80, 0x3fc0, 0x4000, 0x4040, 0x4080, 0x40c0,
      0x8000, 0xbf00, 0xbf80, 0xbfc0, 0xc000, 0xc040, 0xc080, 0xc0c0}},
};

// 4-bit indices into a table; Halves: one whose numbers are exact in bf16.
template <bool Halves>
struct TableCodes {
  static constexpr int kLow = 4, kHigh = 0, kTop = 0, kZero = 0, kMostPairs = Halves ? 8 : 0;
  static constexpr bool kAffine = false, kInt8 = true, kFull = true, kNan = false, kPairs = Halves;
  using Chunk = CodeChunk<4, 0, 0>;

  QUANTRY_INLINE static bool serves(const QuantryGrouped& w) {
    return w.family != QUANTRY_AFFINE && w.element <= QUANTRY_E2M1 && (w.element >= QUANTRY_IQ4_NL) == Halves;
  }
  QUANTRY_INLINE static const CodeTable* table(const QuantryGrouped& w) { return &kCodeTables[w.element]; }

  template <int J>
  QUANTRY_INLINE static vc int8(const Chunk& chunk, const CodeTable* table) {
    return table_bytes(table->bytes, chunk.template bytes<J>());
  }

#if QUANTRY_IS(QUANTRY_TARGET) == 3
  template <int Part, int Parts, class Body>
  QUANTRY_INLINE static void each_pair(const Chunk& chunk, const CodeTable* table, Body&& body) {
    each_nibble_pair<Part, Parts>(
        chunk.low, [&](vc index) QUANTRY_LAMBDA { return look_up_halves(index, table->halves); }, body);
  }
  template <int Part, int Parts, class Body>
  QUANTRY_INLINE static void each_pair_part(const Chunk& chunk, const CodeTable* table, Body&& body) {
    each_pair<Part, Parts>(chunk, table, body);
  }
#endif

  template <int Zero, int Part, int Parts, class Body>
  QUANTRY_INLINE static void each_float(const Chunk& chunk, const CodeTable* table, Body&& body) {
    each_nibble<Part, Parts>(chunk.low, [&](auto k, auto at, vc v) QUANTRY_LAMBDA {
      constexpr int position = at;
      body(k, table_float<position>(table->floats, v));
    });
  }
};

// 8-bit floats.
template <int E>
struct FloatCodes {
  static constexpr int kLow = 8, kHigh = 0, kTop = 0, kZero = 0;
  static constexpr int kMostPairs = 8;
  static constexpr bool kAffine = false, kInt8 = false, kFull = true, kNan = E == QUANTRY_E4M3, kPairs = true;
  using Chunk = CodeChunk<8, 0, 0>;

  QUANTRY_INLINE static bool serves(const QuantryGrouped& w) { return w.family == QUANTRY_FLOAT && w.element == E; }
  QUANTRY_INLINE static const CodeTable* table(const QuantryGrouped&) { return nullptr; }

  template <int Zero, int Part, int Parts, class Body>
  QUANTRY_INLINE static void each_float(const Chunk& chunk, const CodeTable*, Body&& body) {
    each_quad<Part, Parts>([&](auto j) QUANTRY_LAMBDA {
      constexpr int quad = j;
      vc v = chunk.bytes<quad>();
      repeat<4>([&](auto b) QUANTRY_LAMBDA {
        constexpr int byte = b;
        body(Const<4 * quad + byte>{}, number<byte>(v));
      });
    });
  }
  template <int Byte>
  QUANTRY_INLINE static vf number(vc v) {
    if constexpr (E == QUANTRY_E4M3) return e4m3_float<Byte>(v);
    else return e5m2_float<Byte>(v);
  }

#if QUANTRY_IS(QUANTRY_TARGET) == 3
  template <int Part, int Parts, class Body>
  QUANTRY_INLINE static void each_pair(const Chunk& chunk, const CodeTable*, Body&& body) {
    each_quad<Part, Parts>([&](auto j) QUANTRY_LAMBDA {
      constexpr int quad = j;
      vc v = chunk.bytes<quad>();
      body(Const<2 * quad>{}, pair_of(number<0>(v), number<2>(v)));
      body(Const<2 * quad + 1>{}, pair_of(number<1>(v), number<3>(v)));
    });
  }
  template <int Part, int Parts, class Body>
  QUANTRY_INLINE static void each_pair_part(const Chunk& chunk, const CodeTable* table, Body&& body) {
    each_pair<Part, Parts>(chunk, table, body);
  }
#endif

  // Bit 7 of a byte is set where one of the chunk's codes of that lane is NaN: all ones but for the sign.
  QUANTRY_INLINE static vc broken(const Chunk& chunk, vc seen) {
    each_quad<0, 1>([&](auto j) QUANTRY_LAMBDA {
      constexpr int quad = j;
      seen = or_codes(seen, add_codes(and_bits(chunk.bytes<quad>(), 0x7f7f7f7f), 0x01010101));
    });
    return seen;
  }
  QUANTRY_INLINE static vf with_nan(vf x, vc seen) {
    return where_equal(as_int(and_bits(seen, 0x80808080u)), 0, x, set1(float_of(0x7fc00000u)));
  }
};

QUANTRY_END
