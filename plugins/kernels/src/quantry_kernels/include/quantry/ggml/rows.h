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

// One block in ggml's order (ggml-common.h, ggml-quants.c) → y[kBlock].
template <class F>
QUANTRY_INLINE void dequantize_block(const uint8_t* block, float* y) {
  const float d = half_at(block);
  if constexpr (F::kLow == 8) {
    for (int i = 0; i < 32; ++i) y[i] = d * static_cast<float>(static_cast<int8_t>(block[2 + i]));
  } else if constexpr (!F::kSuper) {
    const uint8_t* q = block + F::kBlockBytes - 16;
    const float m = F::kMins ? half_at(block + 2) : 0.0f;
    uint32_t high = F::kHigh ? get_word(q - 4) : 0;
    for (int i = 0; i < 32; ++i) {
      int code = (i < 16 ? q[i] & 15 : q[i - 16] >> 4) | static_cast<int>((high >> i & 1) << 4);
      float value = d * static_cast<float>(code - F::kZero);
      y[i] = F::kMins ? value + m : value;
    }
  } else if constexpr (F::kMins) {
    const float dmin = half_at(block + 2);
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
  } else {
    const float d6 = half_at(block + 208);
    for (int j = 0; j < 8; ++j) {
      int h = j / 4, g = j % 4;
      const uint8_t *low = block + 64 * h + 32 * (g & 1), *high = block + 128 + 32 * h;
      for (int i = 0; i < 32; ++i) {
        int code = (low[i] >> (g < 2 ? 0 : 4) & 15) | (high[i] >> 2 * g & 3) << 4;
        float dl = d6 * static_cast<float>(static_cast<int8_t>(block[192 + 2 * j + i / 16]));
        y[32 * j + i] = dl * static_cast<float>(code - F::kZero);
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

// y[i] = W[ids[i]]; false, with nothing written, when an id is out of range.
template <class F>
bool embedding(const EmbeddingArgs& a) {
  for (int64_t i = 0; i < a.count; ++i)
    if (a.ids[i] < 0 || a.ids[i] >= a.rows) return false;
  const int64_t blocks = a.columns / F::kBlock;
  parallel(useful_threads(a.count * a.columns * 8, a.threads), [&](Team team) {   // about 8 bytes' time a value
    Range mine = team.share(a.count);
    for (int64_t i = mine.begin; i < mine.end; ++i) {
      int64_t row = a.ids[i];
      Planes p = a.blocks ? Planes{} : planes_at<F>(a.w, row / kRows, a.columns, 0);
      for (int64_t b = 0; b < blocks; ++b) {
        float values[F::kBlock];
        if (a.blocks) {
          dequantize_block<F>(a.blocks + (row * blocks + b) * F::kBlockBytes, values);
        } else {
          uint8_t block[F::kBlockBytes];
          unpack_block<F>(block, lane_of_block<F>(const_cast<uint8_t*>(p.codes), const_cast<uint8_t*>(p.high),
                                                  const_cast<uint8_t*>(p.meta), b, static_cast<int>(row % kRows)));
          dequantize_block<F>(block, values);
        }
        store_as(a.dtype, a.y, i * a.columns + b * F::kBlock, values, F::kBlock);
      }
    }
  });
  return true;
}

QUANTRY_END
