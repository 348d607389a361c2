// Single rows as numbers: file-order blocks → f32, bit-equal to ggml's definition; embedding rows from blocks or panels.
// Scalar: a lookup reads a few KiB, one row at a time.
#pragma once
#include "../elements.h"
#include "../threads.h"
#include "pack.h"

QUANTRY_BEGIN

QUANTRY_INLINE float half_at(const uint8_t* p) {
  uint16_t h;
  memcpy(&h, p, 2);
  return from_half(h);
}

// The number that code `q` of a row stands for, before its scale.
template <class F>
QUANTRY_INLINE float number_of(int q) {
  if constexpr (F::Table::kUsed) return F::Table::kFloats[q];
  else return static_cast<float>(q - F::kZero);
}

// Scale j of Q3_K's sixteen.
QUANTRY_INLINE int scale_of_sixteen(const uint8_t* s, int j) {
  int low = j < 8 ? s[j] & 15 : s[j - 8] >> 4;
  return (low | (s[8 + j % 4] >> 2 * (j / 4) & 3) << 4) - 32;
}

// Half the value of an unsigned E4M3 byte; 0x7f is 0, as in ggml.
QUANTRY_INLINE float half_of_ue4m3(uint8_t x) {
  if (x == 0x7f) return 0.0f;
  if ((x & 0x78) == 0) return static_cast<float>(x & 7) * 0x1p-10f;
  return float_of((static_cast<uint32_t>(x & 0x7f) << 20) + (119u << 23));
}

// One block without a super-scale in ggml's order → y[kBlock].
template <class F>
QUANTRY_INLINE void dequantize_plain(const uint8_t* block, float* y) {
  if constexpr (F::kScales == Scales::kUe4m3) {
    for (int i = 0; i < 64; ++i) {
      int s = i / 16, j = i % 16;
      uint8_t pair = block[4 + 8 * s + j % 8];
      y[i] = half_of_ue4m3(block[s]) * number_of<F>(j < 8 ? pair & 15 : pair >> 4);
    }
  } else if constexpr (F::kLow < 4) {   // bits or pairs of bits in order
    const float d = half_at(block);
    for (int i = 0; i < F::kBlock; ++i) {
      int code = block[2 + i * F::kLow / 8] >> i * F::kLow % 8 & (F::kLow == 1 ? 1 : 3);
      y[i] = d * number_of<F>(F::kLow == 1 ? 2 * code : code);
    }
  } else {
    float d, m = F::kMins ? half_at(block + 2) : 0.0f;
    if constexpr (F::kScales == Scales::kE8m0)
      d = float_of(block[0] < 2 ? 0x00200000u << block[0] : (block[0] - 1u) << 23);
    else d = half_at(block);
    const uint8_t* q = block + F::kBlockBytes - (F::kLow == 8 ? 32 : 16);
    uint32_t high = F::kHigh ? get_word(q - 4) : 0;
    for (int i = 0; i < 32; ++i) {
      if constexpr (F::kLow == 8) {
        y[i] = d * static_cast<float>(static_cast<int8_t>(q[i]));
      } else {
        int code = (i < 16 ? q[i] & 15 : q[i - 16] >> 4) | static_cast<int>((high >> i & 1) << 4);
        float value = d * number_of<F>(code);
        y[i] = F::kMins ? value + m : value;
      }
    }
  }
}

// One block in ggml's order (ggml-common.h, ggml-quants.c) → y[kBlock].
template <class F>
QUANTRY_INLINE void dequantize_block(const uint8_t* block, float* y) {
  if constexpr (!F::kSuper) {
    dequantize_plain<F>(block, y);
  } else if constexpr (F::kScales == Scales::kSixBit) {
    const float d = half_at(block), dmin = half_at(block + 2);
    const uint8_t *s = block + 4, *q = block + F::kBlockBytes - 128, *high = q - 32;
    for (int j = 0; j < 8; ++j) {
      int scale = j < 4 ? s[j] & 63 : (s[j + 4] & 15) | (s[j - 4] >> 6) << 4;
      int min = j < 4 ? s[j + 4] & 63 : (s[j + 4] >> 4) | (s[j] >> 6) << 4;
      const float dl = d * static_cast<float>(scale), ml = dmin * static_cast<float>(min);
      const int shift = 4 * (j % 2);
      for (int i = 0; i < 32; ++i) {
        int code = q[32 * (j / 2) + i] >> shift & 15;
        if constexpr (F::kHigh == 1) code |= (high[i] >> j & 1) << 4;
        y[32 * j + i] = dl * static_cast<float>(code) - ml;
      }
    }
  } else if constexpr (F::kScales == Scales::kHalf) {   // TQ2_0
    const float d = half_at(block + 64);
    for (int i = 0; i < 256; ++i) y[i] = d * number_of<F>(block[32 * (i / 128) + i % 32] >> 2 * (i / 32 % 4) & 3);
  } else if constexpr (F::kScales == Scales::kEight) {
    const float d = half_at(block);
    for (int j = 0; j < 8; ++j) {
      const uint8_t* q = block + 8 + 16 * j;
      int low = block[4 + j / 2] >> 4 * (j % 2) & 15, high = block[2 + j / 4] >> 2 * (j % 4) & 3;
      const float dl = d * static_cast<float>((low | high << 4) - 32);
      for (int i = 0; i < 32; ++i) y[32 * j + i] = dl * number_of<F>(i < 16 ? q[i] & 15 : q[i - 16] >> 4);
    }
  } else {   // 16 scales a super-block
    constexpr int codes = F::kScales == Scales::kNibbles ? 16 : 32, halves = F::kScales == Scales::kNibbles ? 80 : F::kBlockBytes - 2;
    const float d = half_at(block + halves), dmin = F::kMins ? half_at(block + halves + 2) : 0.0f;
    for (int j = 0; j < 16; ++j) {
      const int h = j / 8, g = j / 2 % 4;
      int scale, min = 0;
      if constexpr (F::kScales == Scales::kNibbles) scale = block[j] & 15, min = block[j] >> 4;
      else if constexpr (F::kScales == Scales::kSixteen) scale = scale_of_sixteen(block + 96, j);
      else scale = static_cast<int8_t>(block[192 + j]);
      const float dl = d * static_cast<float>(scale), ml = dmin * static_cast<float>(min);
      for (int i = 16 * (j % 2); i < 16 * (j % 2) + 16; ++i) {
        int code;
        if constexpr (F::kScales == Scales::kBytes) {
          code = (block[64 * h + 32 * (g & 1) + i] >> (g < 2 ? 0 : 4) & 15) | (block[128 + 32 * h + i] >> 2 * g & 3) << 4;
        } else {
          code = block[codes + 32 * h + i] >> 2 * g & 3;
          if constexpr (F::kHigh == 1) code |= (block[i] >> (4 * h + g) & 1) << 2;
        }
        float value = dl * number_of<F>(code);
        y[128 * h + 32 * g + i] = F::kMins ? value - ml : value;
      }
    }
  }
}

struct EmbeddingArgs {
  const int64_t* ids;
  int64_t count, rows, columns;
  const uint8_t* blocks;   // [rows, row bytes] in file order, or null: then the planes
  Planes w;
  void* y;                 // [count, columns]
  int dtype, threads;
};

// y[i] = W[ids[i]], a row as blocks that decode(row, block, values) gives; false, with nothing written, when an id is out of
// range.
template <int Block, class Decode>
QUANTRY_INLINE bool look_up(const EmbeddingArgs& a, const Decode& decode) {
  for (int64_t i = 0; i < a.count; ++i)
    if (a.ids[i] < 0 || a.ids[i] >= a.rows) return false;
  parallel(useful_threads(a.count * a.columns * 8, a.threads), [&](Team team) {   // about 8 bytes' time a value
    Range mine = team.share(a.count);
    for (int64_t i = mine.begin; i < mine.end; ++i) {
      for (int64_t b = 0; b < a.columns / Block; ++b) {
        alignas(64) float values[Block];
        decode(a.ids[i], b, values);
        store_as(a.dtype, a.y, i * a.columns + b * Block, values, Block);
      }
    }
  });
  return true;
}

template <class F>
bool embedding(const EmbeddingArgs& a) {
  return look_up<F::kBlock>(a, [&](int64_t row, int64_t b, float* values) {
    if (a.blocks) {
      dequantize_block<F>(a.blocks + (row * (a.columns / F::kBlock) + b) * F::kBlockBytes, values);
    } else {
      Planes p = planes_at<F>(a.w, row / kRows, a.columns, 0);
      uint8_t block[F::kBlockBytes];
      unpack_block<F>(block, lane_of_block<F>(const_cast<uint8_t*>(p.codes), const_cast<uint8_t*>(p.high),
                                              const_cast<uint8_t*>(p.meta), b, static_cast<int>(row % kRows)));
      dequantize_block<F>(block, values);
    }
  });
}

QUANTRY_END
