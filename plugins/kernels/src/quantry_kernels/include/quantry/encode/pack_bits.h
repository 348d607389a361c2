// Codes of 1 to 8 bits as one little-endian bit stream: code j at bits j·Bits … (quantry/layouts/bitpack.py; mlx and uqff
// pack so).
//
// Eight codes fill Bits bytes. They are squeezed together pairwise in a 64-bit word, eight codes a word, a vector of words
// at a time; no order of bytes in memory but the little-endian one of every target is assumed.
#pragma once
#include "lanes.h"

QUANTRY_BEGIN

typedef uint64_t Words __attribute__((vector_size(4 * kWide)));   // 8 · kWords codes
constexpr int kWords = kWide / 2;

// Each word: eight bytes of Bits bits to 8 · Bits bits from bit 0 on. W: a Words or one uint64_t.
template <int Bits, class W>
QUANTRY_INLINE W squeeze(W v) {
  if constexpr (Bits < 8) {
    constexpr uint64_t one = (1ull << Bits) - 1, two = (1ull << 2 * Bits) - 1, four = (1ull << 4 * Bits) - 1;
    constexpr uint64_t ones = one * 0x0001000100010001ull, twos = two * 0x0000000100000001ull;   // codes 0 2 4 6, pairs 0 2
    v = (v & ones) | (v >> (8 - Bits) & (ones << Bits));
    v = (v & twos) | (v >> (16 - 2 * Bits) & (twos << 2 * Bits));
    v = (v & four) | (v >> (32 - 4 * Bits) & (four << 4 * Bits));
  }
  return v;
}

// The first `count` codes of a row, one per byte and below 2^Bits, to ⌈count · Bits / 8⌉ bytes; what is left of the last
// byte becomes 0.
template <int Bits>
QUANTRY_INLINE void pack_bits(const uint8_t* codes, int64_t count, uint8_t* out) {
  static_assert(Bits >= 1 && Bits <= 8, "codes of 1 to 8 bits");
  if constexpr (Bits == 8) {
    memcpy(out, codes, static_cast<size_t>(count));
    return;
  }
  constexpr int kStep = 8 * kWords;
  constexpr int kMore = Bits == 1 || Bits == 2 || Bits == 4 ? 0 : 16;   // codes that come after a step, at least 6 bytes
  int64_t i = 0;
  for (; i + kStep + kMore <= count; i += kStep, out += kWords * Bits) {
    Words v;
    memcpy(&v, codes + i, sizeof v);
    v = squeeze<Bits>(v);
    if constexpr (Bits == 4) {
      typedef uint32_t Packed __attribute__((vector_size(4 * kWords)));
      const Packed p = __builtin_convertvector(v, Packed);
      memcpy(out, &p, sizeof p);
    } else if constexpr (Bits == 2) {
      typedef uint16_t Packed __attribute__((vector_size(2 * kWords)));
      const Packed p = __builtin_convertvector(v, Packed);
      memcpy(out, &p, sizeof p);
    } else if constexpr (Bits == 1) {
      typedef uint8_t Packed __attribute__((vector_size(kWords)));
      const Packed p = __builtin_convertvector(v, Packed);
      memcpy(out, &p, sizeof p);
    } else {   // whole words one after the other: each overwrites the up to 5 bytes that the one before wrote too much
      for (int w = 0; w < kWords; w++) {
        const uint64_t word = v[w];
        memcpy(out + w * Bits, &word, 8);
      }
    }
  }
  for (; i < count; i += 8, out += Bits) {
    const int here = count - i < 8 ? static_cast<int>(count - i) : 8;
    uint64_t word = 0;
    memcpy(&word, codes + i, static_cast<size_t>(here));
    word = squeeze<Bits>(word);
    memcpy(out, &word, static_cast<size_t>((here * Bits + 7) / 8));
  }
}

QUANTRY_END
