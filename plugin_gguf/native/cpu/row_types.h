// ggml's types that stay in file order: one block as signed bytes and small integer scales.
//
//   value = d · scale(k / 16) · code(k), all exact: 11 bits of d, 5 of the scale, 7 of the code fit an f32
//
// A type T is a view of one block of 256 columns: kType, kBlockBytes, d, scales (one unsigned byte for each 16 columns) and
// span(i), the codes of columns i·kSpan and up. Bit fields as in ggml-common.h and ggml-quants.c.
#pragma once
#include <quantry/ggml/rows.h>

#include "grids.h"

#pragma GCC diagnostic ignored "-Wpsabi"   // vectors pass through inlined functions only

QUANTRY_BEGIN

constexpr int kRowBlock = 256;   // columns

// Vectors of the compiler: bit fields of a whole block at once, on every target.
typedef uint8_t Bytes16 __attribute__((vector_size(16)));
typedef uint8_t Bytes32 __attribute__((vector_size(32)));
typedef uint8_t Bytes8 __attribute__((vector_size(8)));
typedef uint16_t Halves8 __attribute__((vector_size(16)));
typedef uint16_t Halves16 __attribute__((vector_size(32)));
typedef uint16_t Halves32 __attribute__((vector_size(64)));
typedef uint32_t Words8 __attribute__((vector_size(32)));
typedef uint32_t Words4 __attribute__((vector_size(16)));
typedef uint64_t Eights2 __attribute__((vector_size(16)));
typedef uint64_t Eights4 __attribute__((vector_size(32)));
typedef uint64_t Eights8 __attribute__((vector_size(64)));

template <class V>
QUANTRY_INLINE V get(const uint8_t* p) {
  V v;
  memcpy(&v, p, sizeof v);
  return v;
}
template <class V>
QUANTRY_INLINE void put(void* p, V v) { memcpy(p, &v, sizeof v); }

QUANTRY_INLINE uint16_t get_half_word(const uint8_t* p) { return get<uint16_t>(p); }
QUANTRY_INLINE float scale_at(const uint8_t* p) { return one_half(get_half_word(p)); }

// Seven sign bits in each byte; the eighth makes their number even.
QUANTRY_INLINE Eights4 even_signs(Eights4 s) {
  Eights4 odd = s ^ s >> 4;   // what crosses from a byte to the next stays above the bits used
  odd ^= odd >> 2;
  odd ^= odd >> 1;
  return s | (odd & 0x0101010101010101) << 7;
}

struct SuperBlock {   // what the grid types share
  const uint8_t* block;
  float d;
  alignas(16) uint8_t scales[16];
  alignas(64) uint8_t signs[32];   // bit k: column k is negative

  QUANTRY_INLINE explicit SuperBlock(const uint8_t* block) : block(block) {}

  // 2·s + 1 for two 4-bit fields a byte.
  QUANTRY_INLINE void nibble_scales(const uint8_t* fields) {
    Halves8 pairs = __builtin_convertvector(get<Bytes8>(fields), Halves8);
    put(scales, ((pairs & 15) | (pairs & 0xf0) << 4) * 2 + 0x0101);
  }
  // 2·s + 1 for columns 32j and up, s of three or four bits.
  QUANTRY_INLINE void twin_scales(Halves8 s) { put(scales, (2 * s + 1) * 0x0101); }
  // Eight words: a 4-bit scale, four codes of 7 signs.
  QUANTRY_INLINE void word_scales(Words8 w) {
    Words8 bytes = (w & 0x7f) | (w & 0x3f80) << 1 | (w & 0x1fc000) << 2 | (w & 0x0fe00000) << 3;
    put(signs, even_signs((Eights4)bytes));
    twin_scales(__builtin_convertvector(w >> 28, Halves8));
  }
  // Bytes low | top << 8.
  QUANTRY_INLINE static Halves32 wide_indices(Bytes32 low, Bytes32 top) {
    return __builtin_convertvector(low, Halves32) | __builtin_convertvector(top, Halves32) << 8;
  }
  QUANTRY_INLINE uint64_t negative(int i) const {
    uint64_t bits = 0;
    memcpy(&bits, signs + i * (kSpan / 8), kSpan / 8);
    return bits;
  }

  // The indices from byte `at` on that belong to span i, `columns` columns a byte.
  QUANTRY_INLINE const uint8_t* part(int at, int i, int columns) const { return block + at + i * (kSpan / columns); }
  // grid rows: row(j) for the j-th 8 or 4 columns of span i
  template <class Row>
  QUANTRY_INLINE SignedSpan of_eights(int i, const Row& row) const { return signed_span(span_of_8(row), negative(i)); }
  template <class Row>
  QUANTRY_INLINE SignedSpan of_fours(int i, const Row& row) const { return signed_span(span_of_4(row), negative(i)); }
};

struct IQ2_XXS : SuperBlock {   // d, 8 × (4 indices, word)
  static constexpr int kType = 16, kBlockBytes = 66;

  QUANTRY_INLINE explicit IQ2_XXS(const uint8_t* b) : SuperBlock(b) {
    d = scale_at(b) * 0.125f;
    word_scales(__builtin_convertvector(get<Eights8>(b + 2) >> 32, Words8));
  }
  QUANTRY_INLINE SignedSpan span(int i) const {
    const uint8_t* index = part(2, i, 4);
    return of_eights(i, [=](int j) QUANTRY_LAMBDA { return kIq2XxsGrid[index[8 * (j / 4) + j % 4]]; });
  }
};

struct IQ2_XS : SuperBlock {   // d, 32 × u16 (9 bits of index, 7 signs), 8 bytes of scales
  static constexpr int kType = 17, kBlockBytes = 74;

  QUANTRY_INLINE explicit IQ2_XS(const uint8_t* b) : SuperBlock(b) {
    d = scale_at(b) * 0.125f;
    nibble_scales(b + 66);
    put(signs, even_signs((Eights4)__builtin_convertvector(get<Halves32>(b + 2) >> 9, Bytes32)));
  }
  QUANTRY_INLINE SignedSpan span(int i) const {
    const uint8_t* index = part(2, i, 4);
    return of_eights(i, [=](int j) QUANTRY_LAMBDA { return kIq2XsGrid[get_half_word(index + 2 * j) & 511]; });
  }
};

struct IQ2_S : SuperBlock {   // d, 32 indices, 32 bytes of signs, 8 bytes of 2-bit index tops, 8 bytes of scales
  static constexpr int kType = 22, kBlockBytes = 82;
  alignas(64) uint16_t index[32];

  QUANTRY_INLINE explicit IQ2_S(const uint8_t* b) : SuperBlock(b) {
    d = scale_at(b) * 0.125f;
    nibble_scales(b + 74);
    memcpy(signs, b + 34, 32);
    Words8 top = __builtin_convertvector(get<Bytes8>(b + 66), Words8);
    put(index, wide_indices(get<Bytes32>(b + 2), (Bytes32)((top | top << 6 | top << 12 | top << 18) & 0x03030303)));
  }
  QUANTRY_INLINE SignedSpan span(int i) const {
    const uint16_t* mine = index + i * (kSpan / 8);
    return of_eights(i, [=](int j) QUANTRY_LAMBDA { return kIq2SGrid[mine[j]]; });
  }
};

struct IQ3_XXS : SuperBlock {   // d, 64 indices, 8 words
  static constexpr int kType = 18, kBlockBytes = 98;

  QUANTRY_INLINE explicit IQ3_XXS(const uint8_t* b) : SuperBlock(b) {
    d = scale_at(b) * 0.25f;
    word_scales(get<Words8>(b + 66));
  }
  QUANTRY_INLINE SignedSpan span(int i) const {
    const uint8_t* index = part(2, i, 4);
    return of_fours(i, [=](int j) QUANTRY_LAMBDA { return kIq3XxsGrid[index[j]]; });
  }
};

struct IQ3_S : SuperBlock {   // d, 64 indices, 8 bytes of ninth bits, 32 bytes of signs, 4 bytes of scales
  static constexpr int kType = 21, kBlockBytes = 110;
  alignas(64) uint16_t index[64];

  QUANTRY_INLINE explicit IQ3_S(const uint8_t* b) : SuperBlock(b) {
    d = scale_at(b);
    memcpy(signs, b + 74, 32);
    for (int h = 0; h < 2; ++h) {
      uint64_t bits = get_word(b + 66 + 4 * h);   // of 32 indices: each byte eight times, then one bit of each
      Eights4 eight = {bits & 255, bits >> 8 & 255, bits >> 16 & 255, bits >> 24};
      Bytes32 one = (Bytes32)(eight * 0x0101010101010101 & 0x8040201008040201);
      put(index + 32 * h, wide_indices(get<Bytes32>(b + 2 + 32 * h), (Bytes32)(one != 0) & 1));
    }
    const uint32_t s = get_word(b + 106);   // nibble j: columns 32j and up
    twin_scales(__builtin_convertvector(Words8{s, s, s, s, s, s, s, s} >> Words8{0, 4, 8, 12, 16, 20, 24, 28} & 15, Halves8));
  }
  QUANTRY_INLINE SignedSpan span(int i) const {
    const uint16_t* mine = index + i * (kSpan / 4);
    return of_fours(i, [=](int j) QUANTRY_LAMBDA { return kIq3SGrid[mine[j]]; });
  }
};

// IQ1: value = d·scale·(g ± 1/8) with g in −1, 0, 1; the code is 8·g ± 1, the grid holds 8·g + 8.
struct Iq1Block : SuperBlock {
  alignas(64) uint16_t index[32];
  uint32_t above;   // bit g: 1/8 is added in the g-th 8 columns

  using SuperBlock::SuperBlock;
  QUANTRY_INLINE SignedSpan span(int i) const {
    const uint16_t* mine = index + i * (kSpan / 8);
    vb raised = span_of_8([=](int j) QUANTRY_LAMBDA { return kIq1SGrid[mine[j]]; });
    return signed_span(sub_span(add_eights(raised, above >> i * (kSpan / 8), 2), set_span(9)));
  }
};

struct IQ1_S : Iq1Block {   // d, 32 indices, 8 × u16 (4 × 3 index bits, 3-bit scale, sign of the shift)
  static constexpr int kType = 19, kBlockBytes = 50;

  QUANTRY_INLINE explicit IQ1_S(const uint8_t* b) : Iq1Block(b) {
    d = scale_at(b) * 0.125f;
    const Halves8 high = get<Halves8>(b + 34);
    twin_scales(high >> 12 & 7);
    const Words8 w = __builtin_convertvector(high, Words8);
    const Words8 top = (w & 7) | (w << 5 & 0x0700) | (w << 10 & 0x070000) | (w << 15 & 0x07000000);
    put(index, wide_indices(get<Bytes32>(b + 2), (Bytes32)top));
    // bit 15 of each number, four times each; the product moves bit 0 of each byte into the top byte
    const uint64_t signs = (uint64_t)__builtin_convertvector(high >> 15, Bytes8) * 0x0102040810204080 >> 56;
    uint32_t below = static_cast<uint32_t>(signs);
    below = (below | below << 12) & 0x000f000f;
    below = (below | below << 6) & 0x03030303;
    below = (below | below << 3) & 0x11111111;
    above = ~(below * 15);
  }
};

struct IQ1_M : Iq1Block {   // 32 indices, 16 × two nibbles (3 index bits, sign of the shift), 4 × u16 (4 scales, 4 bits of d)
  static constexpr int kType = 29, kBlockBytes = 56;

  QUANTRY_INLINE explicit IQ1_M(const uint8_t* b) : Iq1Block(b) {
    const uint16_t s[4] = {get_half_word(b + 48), get_half_word(b + 50), get_half_word(b + 52), get_half_word(b + 54)};
    d = one_half(static_cast<uint16_t>(s[0] >> 12 | (s[1] >> 8 & 0xf0) | (s[2] >> 4 & 0xf00) | (s[3] & 0xf000))) * 0.125f;
    const Halves16 words = {s[0], s[0], s[0], s[0], s[1], s[1], s[1], s[1], s[2], s[2], s[2], s[2], s[3], s[3], s[3], s[3]};
    const Halves16 at = {0, 3, 6, 9, 0, 3, 6, 9, 0, 3, 6, 9, 0, 3, 6, 9};
    put(scales, __builtin_convertvector((words >> at & 7) * 2 + 1, Bytes16));
    const Halves16 pairs = __builtin_convertvector(get<Bytes16>(b + 32), Halves16);
    const Bytes32 nibbles = (Bytes32)((pairs & 15) | (pairs & 0xf0) << 4);
    put(index, wide_indices(get<Bytes32>(b), nibbles & 7));
    // the product moves bit 3 of each byte of a word into its top byte
    const Eights4 signs = ((Eights4)nibbles >> 3 & 0x0101010101010101) * 0x0102040810204080 >> 56;
    above = ~static_cast<uint32_t>(signs[0] | signs[1] << 8 | signs[2] << 16 | signs[3] << 24);
  }
};

alignas(16) constexpr uint8_t kOnes[16] = {1, 1, 1, 1, 1, 1, 1, 1, 1, 1, 1, 1, 1, 1, 1, 1};

struct TQ1_0 {   // 48 bytes of five trits, 4 of four, d. Trit t of byte b is ((b·3^t mod 256)·3) >> 8
  static constexpr int kType = 34, kBlockBytes = 54;
  float d;
  const uint8_t* scales = kOnes;
  alignas(64) int8_t codes[kRowBlock];   // stored 64 together: a span must not wait for two stores

  QUANTRY_INLINE explicit TQ1_0(const uint8_t* b) : d(scale_at(b + 52)) {
    Bytes32 first = get<Bytes32>(b);
    Bytes16 second = get<Bytes16>(b + 32), rest = {};
    memcpy(&rest, b + 48, 4);
    Eights4 of_first[5];
    Eights2 of_second[6];
    Words4 of_rest;
    repeat<5>([&](auto power) QUANTRY_LAMBDA {
      constexpr int t = power;
      of_first[t] = (Eights4)trit(first);
      of_second[t] = (Eights2)trit(second);
      if constexpr (t < 4) of_rest[t] = ((Words4)trit(rest))[0];
      first += first + first, second += second + second, rest += rest + rest;   // bytes have no product
    });
    of_second[5] = (Eights2)of_rest;
    put(codes, joined(of_first[0], of_first[1]));
    put(codes + 64, joined(of_first[2], of_first[3]));
    put(codes + 128, joined(of_first[4], joined(of_second[0], of_second[1])));
    put(codes + 192, joined(joined(of_second[2], of_second[3]), joined(of_second[4], of_second[5])));
  }
  template <class V>
  QUANTRY_INLINE static V trit(V v) {   // minus one; a comparison gives 255 where it holds
    return V{} - (V)(v >= 171) - (V)(v >= 86) - 1;
  }
  QUANTRY_INLINE static Eights4 joined(Eights2 a, Eights2 b) { return __builtin_shufflevector(a, b, 0, 1, 2, 3); }
  QUANTRY_INLINE static Eights8 joined(Eights4 a, Eights4 b) { return __builtin_shufflevector(a, b, 0, 1, 2, 3, 4, 5, 6, 7); }
  QUANTRY_INLINE SignedSpan span(int i) const { return signed_span(load_span(codes + i * kSpan)); }
};

struct Q8_K {   // d f32, 256 codes, sums of 16
  static constexpr int kType = 15, kBlockBytes = 292;
  const uint8_t* codes;
  float d;
  const uint8_t* scales = kOnes;

  QUANTRY_INLINE explicit Q8_K(const uint8_t* b) : codes(b + 4) { memcpy(&d, b, 4); }
  QUANTRY_INLINE SignedSpan span(int i) const { return signed_span(load_span(codes + i * kSpan)); }
};

QUANTRY_END
