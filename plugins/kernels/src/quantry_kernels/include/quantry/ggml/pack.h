// Blocks in file order ↔ panels, word by word. Every function moves bits only; each has its inverse beside it.
#pragma once
#include "formats.h"

QUANTRY_BEGIN

QUANTRY_INLINE uint32_t get_word(const uint8_t* p) {
  uint32_t w;
  memcpy(&w, p, 4);
  return w;
}
QUANTRY_INLINE void put_word(uint8_t* p, uint32_t w) { memcpy(p, &w, 4); }

constexpr uint32_t kLowNibbles = 0x0f0f0f0f;

// Two words of nibbles ↔ the word of their low nibbles and the word of their high ones.
struct WordPair {
  uint32_t first, second;
};
QUANTRY_INLINE WordPair split_nibbles(uint32_t a, uint32_t b) {
  return {(a & kLowNibbles) | (b & kLowNibbles) << 4, (a >> 4 & kLowNibbles) | (b & ~kLowNibbles)};
}

// Fields of `Width` bits: field j of byte b of word p ↔ field p of byte b of word j. Its own inverse.
template <int Width>
QUANTRY_INLINE void transpose_fields(uint32_t* words) {
  constexpr int n = 8 / Width;
  for (int step = n / 2; step >= 1; step /= 2) {
    const int shift = step * Width;
    const uint32_t mask = shift == 4 ? 0x0f0f0f0f : shift == 2 ? 0x33333333 : 0x55555555;
    for (int i = 0; i < n; ++i) {
      if (i & step) continue;
      uint32_t t = (words[i] >> shift ^ words[i + step]) & mask;
      words[i + step] ^= t;
      words[i] ^= t << shift;
    }
  }
}

QUANTRY_INLINE uint32_t swap_bits(uint32_t x, uint32_t mask, int shift) {
  uint32_t t = (x ^ x >> shift) & mask;
  return x ^ t ^ t << shift;
}
// Bit 4p + b ↔ bit 8b + p: ggml's qh word ↔ a lane of the 1-bit plane. Each is two perfect (un)shuffles.
QUANTRY_INLINE uint32_t unshuffle_twice(uint32_t x) {
  for (int i = 0; i < 2; ++i) {
    x = swap_bits(x, 0x22222222, 1);
    x = swap_bits(x, 0x0c0c0c0c, 2);
    x = swap_bits(x, 0x00f000f0, 4);
    x = swap_bits(x, 0x0000ff00, 8);
  }
  return x;
}
QUANTRY_INLINE uint32_t shuffle_twice(uint32_t x) {
  for (int i = 0; i < 2; ++i) {
    x = swap_bits(x, 0x0000ff00, 8);
    x = swap_bits(x, 0x00f000f0, 4);
    x = swap_bits(x, 0x0c0c0c0c, 2);
    x = swap_bits(x, 0x22222222, 1);
  }
  return x;
}

// One lane of the planes of one block: `codes`, `high`, `meta` point at the lane's word of the block's first cell;
// `halves` at the lane's f16 behind the cells of meta.
struct LaneOfBlock {
  uint8_t* codes;
  uint8_t* high;
  uint8_t* meta;
  uint8_t* halves;
};

template <class F>
QUANTRY_INLINE LaneOfBlock lane_of_block(uint8_t* codes, uint8_t* high, uint8_t* meta, int64_t block, int lane) {
  constexpr int chunks = F::kBlock / kChunk;
  constexpr int cells = F::kSuper ? (F::kMins ? 3 : 4) : 0;   // of meta
  return {codes + block * chunks * kLowBytes<F> + 4 * lane, F::kHigh ? high + block * chunks * kHighBytes<F> + 4 * lane : nullptr,
          meta + block * F::kMetaBytes + 4 * lane, meta + block * F::kMetaBytes + cells * kCell + 2 * lane};
}

constexpr int kHalfRow = 2 * kRows;   // bytes of one f16 of each row

// Nibbles of a pair of 32-byte runs: chunk `low` has the low, chunk `high` the high nibbles of 8 words.
QUANTRY_INLINE void pack_nibble_run(const uint8_t* run, uint8_t* low, uint8_t* high) {
  for (int c = 0; c < 4; ++c) {
    WordPair p = split_nibbles(get_word(run + 8 * c), get_word(run + 8 * c + 4));
    put_word(low + c * kCell, p.first);
    put_word(high + c * kCell, p.second);
  }
}
QUANTRY_INLINE void unpack_nibble_run(uint8_t* run, const uint8_t* low, const uint8_t* high) {
  for (int c = 0; c < 4; ++c) {
    WordPair p = split_nibbles(get_word(low + c * kCell), get_word(high + c * kCell));   // the split is its own inverse
    put_word(run + 8 * c, p.first);
    put_word(run + 8 * c + 4, p.second);
  }
}

// block: F::kBlockBytes of one row in ggml's order (ggml-common.h, ggml-quants.c) → one lane.
template <class F>
QUANTRY_INLINE void pack_block(const uint8_t* block, const LaneOfBlock& to) {
  constexpr int chunk_bytes = kLowBytes<F>;
  if constexpr (F::kLow == 8) {   // Q8_0: d, 32 × i8
    memcpy(to.halves, block, 2);
    for (int c = 0; c < 8; ++c) put_word(to.codes + c * kCell, get_word(block + 2 + 4 * c) ^ 0x80808080u);
  } else if constexpr (!F::kSuper) {   // d, (m), (qh), 16 bytes of nibbles: element j low, j + 16 high
    memcpy(to.halves, block, 2);
    if constexpr (F::kMins) memcpy(to.halves + kHalfRow, block + 2, 2);
    const uint8_t* q = block + F::kBlockBytes - 16;
    for (int c = 0; c < 2; ++c) {
      WordPair p = split_nibbles(get_word(q + 8 * c), get_word(q + 8 * c + 4));
      put_word(to.codes + c * kCell, p.first);
      put_word(to.codes + (2 + c) * kCell, p.second);
    }
    if constexpr (F::kHigh == 1) put_word(to.high, unshuffle_twice(get_word(q - 4)));
  } else if constexpr (F::kMins) {   // Q4_K, Q5_K: d, dmin, 12 scale bytes, (qh[32]), qs[128]
    memcpy(to.halves, block, 2);
    memcpy(to.halves + kHalfRow, block + 2, 2);
    uint32_t a = get_word(block + 4), b = get_word(block + 8), c = get_word(block + 12);
    put_word(to.meta, (a & kLowNibbles) | (c & kLowNibbles) << 4);
    put_word(to.meta + kCell, (b & kLowNibbles) | (c & ~kLowNibbles));
    put_word(to.meta + 2 * kCell, (a >> 4 & kLowNibbles) | (b & ~kLowNibbles));
    const uint8_t* q = block + F::kBlockBytes - 128;
    for (int j = 0; j < 4; ++j)
      pack_nibble_run(q + 32 * j, to.codes + 2 * j * chunk_bytes, to.codes + (2 * j + 1) * chunk_bytes);
    if constexpr (F::kHigh == 1) {
      uint32_t words[8];
      memcpy(words, q - 32, 32);
      transpose_fields<1>(words);
      for (int j = 0; j < 8; ++j) put_word(to.high + j * kCell, words[j]);
    }
  } else {   // Q6_K: ql[128], qh[64], 16 × i8 scales, d
    memcpy(to.halves, block + 208, 2);
    for (int c = 0; c < 4; ++c) put_word(to.meta + c * kCell, get_word(block + 192 + 4 * c));
    for (int h = 0; h < 2; ++h) {
      uint8_t* codes = to.codes + 4 * h * chunk_bytes;
      uint8_t* high = to.high + 4 * h * kHighBytes<F>;
      for (int g = 0; g < 2; ++g)
        pack_nibble_run(block + 64 * h + 32 * g, codes + g * chunk_bytes, codes + (g + 2) * chunk_bytes);
      for (int c = 0; c < 2; ++c) {
        uint32_t words[4];
        memcpy(words, block + 128 + 32 * h + 16 * c, 16);
        transpose_fields<2>(words);
        for (int g = 0; g < 4; ++g) put_word(high + g * kHighBytes<F> + c * kCell, words[g]);
      }
    }
  }
}

template <class F>
QUANTRY_INLINE void unpack_block(uint8_t* block, const LaneOfBlock& from) {
  constexpr int chunk_bytes = kLowBytes<F>;
  if constexpr (F::kLow == 8) {
    memcpy(block, from.halves, 2);
    for (int c = 0; c < 8; ++c) put_word(block + 2 + 4 * c, get_word(from.codes + c * kCell) ^ 0x80808080u);
  } else if constexpr (!F::kSuper) {
    memcpy(block, from.halves, 2);
    if constexpr (F::kMins) memcpy(block + 2, from.halves + kHalfRow, 2);
    uint8_t* q = block + F::kBlockBytes - 16;
    for (int c = 0; c < 2; ++c) {
      WordPair p = split_nibbles(get_word(from.codes + c * kCell), get_word(from.codes + (2 + c) * kCell));
      put_word(q + 8 * c, p.first);
      put_word(q + 8 * c + 4, p.second);
    }
    if constexpr (F::kHigh == 1) put_word(q - 4, shuffle_twice(get_word(from.high)));
  } else if constexpr (F::kMins) {
    memcpy(block, from.halves, 2);
    memcpy(block + 2, from.halves + kHalfRow, 2);
    uint32_t s = get_word(from.meta), m = get_word(from.meta + kCell), h = get_word(from.meta + 2 * kCell);
    put_word(block + 4, (s & kLowNibbles) | (h & kLowNibbles) << 4);
    put_word(block + 8, (m & kLowNibbles) | (h & ~kLowNibbles));
    put_word(block + 12, (s >> 4 & kLowNibbles) | (m & ~kLowNibbles));
    uint8_t* q = block + F::kBlockBytes - 128;
    for (int j = 0; j < 4; ++j)
      unpack_nibble_run(q + 32 * j, from.codes + 2 * j * chunk_bytes, from.codes + (2 * j + 1) * chunk_bytes);
    if constexpr (F::kHigh == 1) {
      uint32_t words[8];
      for (int j = 0; j < 8; ++j) words[j] = get_word(from.high + j * kCell);
      transpose_fields<1>(words);
      memcpy(q - 32, words, 32);
    }
  } else {
    memcpy(block + 208, from.halves, 2);
    for (int c = 0; c < 4; ++c) put_word(block + 192 + 4 * c, get_word(from.meta + c * kCell));
    for (int h = 0; h < 2; ++h) {
      const uint8_t* codes = from.codes + 4 * h * chunk_bytes;
      const uint8_t* high = from.high + 4 * h * kHighBytes<F>;
      for (int g = 0; g < 2; ++g)
        unpack_nibble_run(block + 64 * h + 32 * g, codes + g * chunk_bytes, codes + (g + 2) * chunk_bytes);
      for (int c = 0; c < 2; ++c) {
        uint32_t words[4];
        for (int g = 0; g < 4; ++g) words[g] = get_word(high + g * kHighBytes<F> + c * kCell);
        transpose_fields<2>(words);
        memcpy(block + 128 + 32 * h + 16 * c, words, 16);
      }
    }
  }
}

QUANTRY_END
