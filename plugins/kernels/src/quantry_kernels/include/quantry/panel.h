// Panels: 16 rows of W stored together, so that one vector holds the same column of 16 rows.
//
//   cell = 64 bytes = 16 lanes × 32 bits; lane r belongs to row 16·p + r of panel p; cells follow each other along K
//   8-bit plane : byte b of lane r of cell c = code(r, 4c + b)                     (Q8_0: stored XOR 0x80)
//   4-bit plane : low nibble k = 8c + b, high nibble k = 8c + 4 + b
//   2-bit plane : bits 2p, 2p+1 of byte b: k = 16c + 4p + b
//   1-bit plane : bit p of byte b: k = 32c + 4p + b; alone, a bit stands for the code 0 or 2
//   a 3-, 5- or 6-bit code is a 2- or 4-bit plane (`codes`) and a 1- or 2-bit plane (`high`): code = low | high << kLow
//   `meta` holds the scales of a panel block after block; its layout belongs to the format
//
// A format F is a struct of constants: kLow, kHigh (plane bits), kZero (what a code of value 0 is), kBlock (columns of a
// block), kMetaBytes (of 16 rows × one block), kGroup (columns that share a scale), kMins (value = s·q − m instead of
// s·(q − zero)), kSuper (scales are integers times a block's own scale; activations are rounded per 256, else per 32), and a
// type Table: NoTable, or the integers that 4-bit codes stand for.
#pragma once
#include "simd.h"

QUANTRY_BEGIN

constexpr int kRows = 16;         // rows of a panel
constexpr int kCell = 64;         // bytes
constexpr int kChunk = 32;        // columns decoded together: every plane has whole cells
constexpr int kSlab = 256;        // columns between two updates of the sums in memory
constexpr int kSlabChunks = kSlab / kChunk;

struct NoTable {
  static constexpr bool kUsed = false, kFull = false;
};

struct Planes {
  const uint8_t* codes;
  const uint8_t* high;   // null for codes of one plane
  const uint8_t* meta;
};

template <class F>
constexpr int kLowBytes = kRows * kChunk * F::kLow / 8;     // of one chunk
template <class F>
constexpr int kHighBytes = kRows * kChunk * F::kHigh / 8;
template <class F>
constexpr bool kFullCodes = F::kLow == 8 || F::Table::kFull;   // bytes of 8 bits, stored as q + 128: dot4_full
template <class F>
constexpr int kZeroOf = kFullCodes<F> ? kFullZero : F::kZero;   // what a dot product sees as zero
template <class F>
constexpr int kActBlock = F::kSuper ? 256 : 32;                // columns that share an activation scale

template <class F>
QUANTRY_INLINE int64_t meta_bytes(int64_t columns) { return columns / F::kBlock * F::kMetaBytes; }

// The planes from column `k` of panel `p` on; k is a multiple of the block.
template <class F>
QUANTRY_INLINE Planes planes_at(const Planes& w, int64_t panel, int64_t columns, int64_t k) {
  int64_t chunk = (panel * columns + k) / kChunk;
  return {w.codes + chunk * kLowBytes<F>, F::kHigh ? w.high + chunk * kHighBytes<F> : nullptr,
          w.meta + meta_bytes<F>(panel * columns) + meta_bytes<F>(k)};
}

template <class F>
QUANTRY_INLINE int64_t plane_bytes(int64_t panels, int64_t columns) {
  return panels * (columns / kChunk * (kLowBytes<F> + kHighBytes<F>) + meta_bytes<F>(columns));
}

// A request for the code lines a little ahead of a chunk, made once a chunk: in one burst a slab they would fill the queue of
// outstanding lines and stall. The meta plane is small enough for the hardware's own prefetch.
constexpr int kPrefetchBytes = 2048;
template <class F>
QUANTRY_INLINE void prefetch_codes(const Planes& w, int64_t chunk, int strip) {
  if (strip != 0) return;
  for (int i = 0; i < kLowBytes<F>; i += kCell) prefetch(w.codes + chunk * kLowBytes<F> + kPrefetchBytes + i);
}

// The codes of 32 columns for one strip of rows.
template <class F>
struct Chunk {
  const uint8_t* low;
  const uint8_t* high;

  QUANTRY_INLINE Chunk(const Planes& w, int64_t chunk, int strip)
      : low(w.codes + chunk * kLowBytes<F> + strip * kStripBytes),
        high(F::kHigh ? w.high + chunk * kHighBytes<F> + strip * kStripBytes : nullptr) {}

  // Columns 4·J … 4·J+3, one byte each: unsigned codes, 8-bit ones as stored.
  template <int J>
  QUANTRY_INLINE vc index() const {
    if constexpr (F::kLow == 8) {
      return load_codes(low + J * kCell);
    } else if constexpr (F::kLow == 1) {   // the bit counts two
      vc v = load_codes(low);
      if constexpr (J == 0) v = shift_left<1>(v);
      if constexpr (J > 1) v = shift_right<J - 1>(v);
      return and_bits(v, 0x02020202);
    } else {
      constexpr int fields = 8 / F::kLow;   // of a byte
      vc v = load_codes(low + J / fields * kCell);
      constexpr int shift = J % fields * F::kLow;
      if constexpr (shift > 0) v = shift_right<shift>(v);
      vc q = and_bits(v, F::kLow == 4 ? 0x0f0f0f0f : 0x03030303);
      if constexpr (F::kHigh == 1) q = or_codes(q, high_bits<J, 1>(load_codes(high)));
      if constexpr (F::kHigh == 2) q = or_codes(q, high_bits<J % 4, 2>(load_codes(high + J / 4 * kCell)));
      return q;
    }
  }

  // The same, codes of a table as its bytes.
  template <int J>
  QUANTRY_INLINE vc code() const {
    if constexpr (F::Table::kUsed) return table_bytes(F::Table::kBytes, index<J>());
    else return index<J>();
  }

  // Bits `Bits`·P and up of each byte, moved to the bit above the low plane's.
  template <int P, int Bits>
  QUANTRY_INLINE static vc high_bits(vc h) {
    constexpr int shift = Bits * P - F::kLow;
    constexpr uint32_t mask = (Bits == 1 ? 0x01010101u : 0x03030303u) << F::kLow;
    if constexpr (shift > 0) return and_bits(shift_right<shift>(h), mask);
    else if constexpr (shift < 0) return and_bits(shift_left<-shift>(h), mask);
    else return and_bits(h, mask);
  }
};

// Calls body(Const<k>, q − zero as f32) for the columns of part `Part` of `Parts` of a chunk, in an order that suits the
// planes.
template <class F, int Part = 0, int Parts = 1, class Body>
QUANTRY_INLINE void each_code_float(const Chunk<F>& chunk, Body&& body) {
  constexpr int bits = F::Table::kUsed ? 8 : F::kLow + F::kHigh < 4 ? 4 : F::kLow + F::kHigh;   // bits of a byte above are 0
  if constexpr (F::kLow == 4 && F::kHigh == 0 && (!F::Table::kUsed || kFloatTables)) {
    repeat<4 / Parts>([&](auto c) QUANTRY_LAMBDA {
      constexpr int cell = Part * 4 / Parts + c;
      vc v = load_codes(chunk.low + cell * kCell);
      repeat<8>([&](auto n) QUANTRY_LAMBDA {   // nibble n of a lane: columns 0 4 1 5 2 6 3 7 of the cell
        constexpr int nibble = n;
        constexpr int k = 8 * cell + nibble / 2 + (nibble % 2) * 4;
        if constexpr (F::Table::kUsed) body(Const<k>{}, table_float<4 * nibble>(F::Table::kFloats, v));
        else body(Const<k>{}, field_float<4, F::kZero, 4 * nibble>(v));
      });
    });
  } else {
    repeat<8 / Parts>([&](auto j) QUANTRY_LAMBDA {
      constexpr int cell = Part * 8 / Parts + j;
      vc v = chunk.template code<cell>();
      repeat<4>([&](auto b) QUANTRY_LAMBDA {
        constexpr int byte = b;
        body(Const<4 * cell + byte>{}, field_float<bits, F::kZero, 8 * byte>(v));
      });
    });
  }
}

QUANTRY_END
