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
// `halves` at the lane's f16 behind the cells of meta (its byte, where scales are bytes).
struct LaneOfBlock {
  uint8_t* codes;
  uint8_t* high;
  uint8_t* meta;
  uint8_t* halves;
};

template <class F>
QUANTRY_INLINE LaneOfBlock lane_of_block(uint8_t* codes, uint8_t* high, uint8_t* meta, int64_t block, int lane) {
  constexpr int chunks = F::kBlock / kChunk, width = F::kScales == Scales::kE8m0 ? 1 : 2;
  return {codes + block * chunks * kLowBytes<F> + 4 * lane, F::kHigh ? high + block * chunks * kHighBytes<F> + 4 * lane : nullptr,
          meta + block * F::kMetaBytes + 4 * lane, meta + block * F::kMetaBytes + F::kMetaCells * kCell + width * lane};
}

constexpr int kHalfRow = 2 * kRows;   // bytes of one f16 of each row

// Eight bytes ↔ the cell of their low and the cell of their high nibbles.
QUANTRY_INLINE void pack_nibble_pair(const uint8_t* q, uint8_t* low, uint8_t* high) {
  WordPair p = split_nibbles(get_word(q), get_word(q + 4));
  put_word(low, p.first);
  put_word(high, p.second);
}
QUANTRY_INLINE void unpack_nibble_pair(uint8_t* q, const uint8_t* low, const uint8_t* high) {
  WordPair p = split_nibbles(get_word(low), get_word(high));   // the split is its own inverse
  put_word(q, p.first);
  put_word(q + 4, p.second);
}

// 32 bytes: chunk `low` has their low, chunk `high` their high nibbles.
QUANTRY_INLINE void pack_nibble_run(const uint8_t* run, uint8_t* low, uint8_t* high) {
  for (int c = 0; c < 4; ++c) pack_nibble_pair(run + 8 * c, low + c * kCell, high + c * kCell);
}
QUANTRY_INLINE void unpack_nibble_run(uint8_t* run, const uint8_t* low, const uint8_t* high) {
  for (int c = 0; c < 4; ++c) unpack_nibble_pair(run + 8 * c, low + c * kCell, high + c * kCell);
}

// 16 bytes of nibbles (element j low, j + 16 high) ↔ the four cells of a chunk.
QUANTRY_INLINE void pack_nibble_chunk(const uint8_t* q, uint8_t* cells) {
  pack_nibble_pair(q, cells, cells + 2 * kCell);
  pack_nibble_pair(q + 8, cells + kCell, cells + 3 * kCell);
}
QUANTRY_INLINE void unpack_nibble_chunk(uint8_t* q, const uint8_t* cells) {
  unpack_nibble_pair(q, cells, cells + 2 * kCell);
  unpack_nibble_pair(q + 8, cells + kCell, cells + 3 * kCell);
}

// 64 bytes of 2-bit fields (bits 2g of byte 32h + l: element 128h + 32g + l) ↔ two cells of each of eight chunks.
template <int ChunkBytes>
QUANTRY_INLINE void pack_quarters(const uint8_t* q, uint8_t* cells) {
  for (int part = 0; part < 4; ++part) {   // 16 bytes: cell part % 2 of the chunks of half part / 2
    uint32_t words[4];
    memcpy(words, q + 16 * part, 16);
    transpose_fields<2>(words);
    for (int g = 0; g < 4; ++g) put_word(cells + (4 * (part / 2) + g) * ChunkBytes + part % 2 * kCell, words[g]);
  }
}
template <int ChunkBytes>
QUANTRY_INLINE void unpack_quarters(uint8_t* q, const uint8_t* cells) {
  for (int part = 0; part < 4; ++part) {
    uint32_t words[4];
    for (int g = 0; g < 4; ++g) words[g] = get_word(cells + (4 * (part / 2) + g) * ChunkBytes + part % 2 * kCell);
    transpose_fields<2>(words);
    memcpy(q + 16 * part, words, 16);
  }
}

// 32 bytes (bit j of byte l: element 32j + l) ↔ the cell of each of eight chunks.
QUANTRY_INLINE void pack_bits(const uint8_t* q, uint8_t* cells) {
  uint32_t words[8];
  memcpy(words, q, 32);
  transpose_fields<1>(words);
  for (int j = 0; j < 8; ++j) put_word(cells + j * kCell, words[j]);
}
QUANTRY_INLINE void unpack_bits(uint8_t* q, const uint8_t* cells) {
  uint32_t words[8];
  for (int j = 0; j < 8; ++j) words[j] = get_word(cells + j * kCell);
  transpose_fields<1>(words);
  memcpy(q, words, 32);
}

// Two-bit field b of byte p ↔ field p of byte b.
QUANTRY_INLINE uint32_t turn_quarters(uint32_t x) { return swap_bits(swap_bits(x, 0x00cc00cc, 6), 0x0000f0f0, 12); }

// `count` words of one lane in consecutive cells.
QUANTRY_INLINE void pack_words(const uint8_t* words, uint8_t* cells, int count) {
  for (int c = 0; c < count; ++c) put_word(cells + c * kCell, get_word(words + 4 * c));
}
QUANTRY_INLINE void unpack_words(uint8_t* words, const uint8_t* cells, int count) {
  for (int c = 0; c < count; ++c) put_word(words + 4 * c, get_word(cells + c * kCell));
}

// block: F::kBlockBytes of one row in ggml's order (ggml-common.h, ggml-quants.c) → one lane.
template <class F>
QUANTRY_INLINE void pack_block(const uint8_t* block, const LaneOfBlock& to) {
  constexpr int chunk_bytes = kLowBytes<F>;
  if constexpr (F::kScales == Scales::kUe4m3) {   // NVFP4: 4 × ue4m3, per 16 elements 8 bytes: element j low, j + 8 high
    put_word(to.meta, get_word(block));
    for (int s = 0; s < 4; ++s)
      pack_nibble_pair(block + 4 + 8 * s, to.codes + 2 * s * kCell, to.codes + (2 * s + 1) * kCell);
  } else if constexpr (F::kSuper && F::kScales == Scales::kHalf) {   // TQ2_0: qs[64], d
    memcpy(to.halves, block + 64, 2);
    pack_quarters<chunk_bytes>(block, to.codes);
  } else if constexpr (F::kLow < 4 && !F::kSuper) {   // Q1_0, Q2_0: d, 16 bytes of bits or pairs of bits in order
    memcpy(to.halves, block, 2);
    for (int i = 0; i < 4; ++i) {
      uint32_t word = get_word(block + 2 + 4 * i);
      put_word(to.codes + i * kCell, F::kLow == 1 ? unshuffle_twice(word) : turn_quarters(word));
    }
  } else if constexpr (!F::kSuper) {   // d, (m), (qh), 16 bytes of nibbles or 32 of codes
    constexpr int q_bytes = F::kLow == 8 ? 32 : 16;
    const uint8_t* q = block + F::kBlockBytes - q_bytes;
    memcpy(to.halves, block, F::kScales == Scales::kE8m0 ? 1 : 2);
    if constexpr (F::kMetaBytes == 4 * kRows) memcpy(to.halves + kHalfRow, block + 2, 2);
    if constexpr (F::kLow == 8)
      for (int c = 0; c < 8; ++c) put_word(to.codes + c * kCell, get_word(q + 4 * c) ^ 0x80808080u);
    else pack_nibble_chunk(q, to.codes);
    if constexpr (F::kHigh == 1) put_word(to.high, unshuffle_twice(get_word(q - 4)));
  } else if constexpr (F::kScales == Scales::kSixBit) {   // Q4_K, Q5_K: d, dmin, 12 scale bytes, (qh[32]), qs[128]
    memcpy(to.halves, block, 2);
    memcpy(to.halves + kHalfRow, block + 2, 2);
    uint32_t a = get_word(block + 4), b = get_word(block + 8), c = get_word(block + 12);
    put_word(to.meta, (a & kLowNibbles) | (c & kLowNibbles) << 4);
    put_word(to.meta + kCell, (b & kLowNibbles) | (c & ~kLowNibbles));
    put_word(to.meta + 2 * kCell, (a >> 4 & kLowNibbles) | (b & ~kLowNibbles));
    const uint8_t* q = block + F::kBlockBytes - 128;
    for (int j = 0; j < 4; ++j)
      pack_nibble_run(q + 32 * j, to.codes + 2 * j * chunk_bytes, to.codes + (2 * j + 1) * chunk_bytes);
    if constexpr (F::kHigh == 1) pack_bits(q - 32, to.high);
  } else if constexpr (F::kScales == Scales::kBytes) {   // Q6_K: ql[128], qh[64], 16 × i8 scales, d
    memcpy(to.halves, block + 208, 2);
    pack_words(block + 192, to.meta, 4);
    for (int i = 0; i < 4; ++i) {
      uint8_t* codes = to.codes + (4 * (i / 2) + i % 2) * chunk_bytes;
      pack_nibble_run(block + 32 * i, codes, codes + 2 * chunk_bytes);
    }
    pack_quarters<kHighBytes<F>>(block + 128, to.high);
  } else if constexpr (F::kScales == Scales::kNibbles) {   // Q2_K: 16 scale bytes, qs[64], d, dmin
    memcpy(to.halves, block + 80, 2);
    memcpy(to.halves + kHalfRow, block + 82, 2);
    pack_words(block, to.meta, 4);
    pack_quarters<chunk_bytes>(block + 16, to.codes);
  } else if constexpr (F::kScales == Scales::kSixteen) {   // Q3_K: hmask[32], qs[64], 12 scale bytes, d
    memcpy(to.halves, block + 108, 2);
    pack_words(block + 96, to.meta, 3);
    pack_quarters<chunk_bytes>(block + 32, to.codes);
    pack_bits(block, to.high);
  } else {   // IQ4_XS: d, scales_h, scales_l[4], qs[128]
    memcpy(to.halves, block + 2, 2);
    memcpy(to.halves + kHalfRow, block, 2);
    pack_words(block + 4, to.meta, 1);
    for (int j = 0; j < 8; ++j) pack_nibble_chunk(block + 8 + 16 * j, to.codes + j * chunk_bytes);
  }
}

template <class F>
QUANTRY_INLINE void unpack_block(uint8_t* block, const LaneOfBlock& from) {
  constexpr int chunk_bytes = kLowBytes<F>;
  if constexpr (F::kScales == Scales::kUe4m3) {
    put_word(block, get_word(from.meta));
    for (int s = 0; s < 4; ++s)
      unpack_nibble_pair(block + 4 + 8 * s, from.codes + 2 * s * kCell, from.codes + (2 * s + 1) * kCell);
  } else if constexpr (F::kSuper && F::kScales == Scales::kHalf) {
    memcpy(block + 64, from.halves, 2);
    unpack_quarters<chunk_bytes>(block, from.codes);
  } else if constexpr (F::kLow < 4 && !F::kSuper) {
    memcpy(block, from.halves, 2);
    for (int i = 0; i < 4; ++i) {
      uint32_t word = get_word(from.codes + i * kCell);
      put_word(block + 2 + 4 * i, F::kLow == 1 ? shuffle_twice(word) : turn_quarters(word));   // turning is its own inverse
    }
  } else if constexpr (!F::kSuper) {
    constexpr int q_bytes = F::kLow == 8 ? 32 : 16;
    uint8_t* q = block + F::kBlockBytes - q_bytes;
    memcpy(block, from.halves, F::kScales == Scales::kE8m0 ? 1 : 2);
    if constexpr (F::kMetaBytes == 4 * kRows) memcpy(block + 2, from.halves + kHalfRow, 2);
    if constexpr (F::kLow == 8)
      for (int c = 0; c < 8; ++c) put_word(q + 4 * c, get_word(from.codes + c * kCell) ^ 0x80808080u);
    else unpack_nibble_chunk(q, from.codes);
    if constexpr (F::kHigh == 1) put_word(q - 4, shuffle_twice(get_word(from.high)));
  } else if constexpr (F::kScales == Scales::kSixBit) {
    memcpy(block, from.halves, 2);
    memcpy(block + 2, from.halves + kHalfRow, 2);
    uint32_t s = get_word(from.meta), m = get_word(from.meta + kCell), h = get_word(from.meta + 2 * kCell);
    put_word(block + 4, (s & kLowNibbles) | (h & kLowNibbles) << 4);
    put_word(block + 8, (m & kLowNibbles) | (h & ~kLowNibbles));
    put_word(block + 12, (s >> 4 & kLowNibbles) | (m & ~kLowNibbles));
    uint8_t* q = block + F::kBlockBytes - 128;
    for (int j = 0; j < 4; ++j)
      unpack_nibble_run(q + 32 * j, from.codes + 2 * j * chunk_bytes, from.codes + (2 * j + 1) * chunk_bytes);
    if constexpr (F::kHigh == 1) unpack_bits(q - 32, from.high);
  } else if constexpr (F::kScales == Scales::kBytes) {
    memcpy(block + 208, from.halves, 2);
    unpack_words(block + 192, from.meta, 4);
    for (int i = 0; i < 4; ++i) {
      const uint8_t* codes = from.codes + (4 * (i / 2) + i % 2) * chunk_bytes;
      unpack_nibble_run(block + 32 * i, codes, codes + 2 * chunk_bytes);
    }
    unpack_quarters<kHighBytes<F>>(block + 128, from.high);
  } else if constexpr (F::kScales == Scales::kNibbles) {
    memcpy(block + 80, from.halves, 2);
    memcpy(block + 82, from.halves + kHalfRow, 2);
    unpack_words(block, from.meta, 4);
    unpack_quarters<chunk_bytes>(block + 16, from.codes);
  } else if constexpr (F::kScales == Scales::kSixteen) {
    memcpy(block + 108, from.halves, 2);
    unpack_words(block + 96, from.meta, 3);
    unpack_quarters<chunk_bytes>(block + 32, from.codes);
    unpack_bits(block, from.high);
  } else {
    memcpy(block + 2, from.halves, 2);
    memcpy(block, from.halves + kHalfRow, 2);
    unpack_words(block + 4, from.meta, 1);
    for (int j = 0; j < 8; ++j) unpack_nibble_chunk(block + 8 + 16 * j, from.codes + j * chunk_bytes);
  }
}

QUANTRY_END
