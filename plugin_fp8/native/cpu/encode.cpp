// e4m3 with a scale per tensor (mistral.rs, fp8/quantize.rs) or per row, and f8q8 blocks (mistral.rs, f8q8/mod.rs).
#include "encode.h"

#include <quantry/dispatch.h>
#include <quantry/encode/across.h>
#include <quantry/encode/e4m3.h>
#include <quantry/encode/rows.h>
#include <quantry/float8.h>

QUANTRY_BEGIN

// Finite v to the nearest bf16, half to even; beyond its range Inf.
QUANTRY_INLINE Floats as_bf16(Floats v) {
  const Ints bits = (Ints)v;
  return (Floats)((bits + 0x7fff + (bits >> 16 & 1)) & static_cast<int32_t>(0xffff0000));
}
inline float as_bf16(float v) { return from_bf16(to_bf16(v)); }

// Lane by lane, the largest magnitude of the first `whole` floats, a multiple of kWide.
QUANTRY_INLINE Floats largest_lanes(const float* x, int64_t whole) {
  Floats most = {};
  for (int64_t i = 0; i < whole; i += kWide) most = larger(magnitude(read(x + i)), most);
  return most;
}

QUANTRY_NOINLINE float largest_of(const float* x, int64_t n) {
  const int64_t whole = n / kWide * kWide;
  float found = largest(largest_lanes(x, whole))[0];
  for (int64_t i = whole; i < n; i++) found = magnitude(x[i]) > found ? magnitude(x[i]) : found;
  return found;
}

// Codes of code(x) for n floats, a vector at a time; the rest by a padded one.
template <class Code>
QUANTRY_INLINE void each_code(const float* x, int64_t n, uint8_t* to, Code&& code) {
  auto put = [&](const float* from, uint8_t* at) QUANTRY_LAMBDA {
    const Bytes q = __builtin_convertvector(code(read(from)), Bytes);
    memcpy(at, &q, sizeof q);
  };
  int64_t i = 0;
  for (; i + kWide <= n; i += kWide) put(x + i, to + i);
  if (i == n) return;
  float rest[kWide] = {};
  uint8_t codes[kWide];
  memcpy(rest, x + i, static_cast<size_t>(n - i) * 4);
  put(rest, codes);
  memcpy(to + i, codes, static_cast<size_t>(n - i));
}

inline void keep_least(int64_t place, int64_t* least) {
#pragma omp critical(quantry_fp8_least)
  if (*least < 0 || place < *least) *least = place;
}

// The first place where |x| has this value, or −1.
inline int64_t place_of(const float* x, int64_t n, float size) {
  for (int64_t i = 0; i < n; i++)
    if (magnitude(x[i]) == size) return i;
  return -1;
}

int tensor(const QuantryRows& rows, uint8_t* codes, float* scale, int64_t* beyond) {
  float most = 0;
  int status = encode_rows(rows, [&](const float* x, int64_t, int64_t count) {
    const float here = largest_of(x, count * rows.columns);
#pragma omp critical(quantry_fp8_most)
    most = here > most ? here : most;
  });
  if (status || *rows.bad >= 0) return status;
  // all in bf16; 1 / 0 is Inf, which the bound takes in
  const float size = as_bf16(most), up = as_bf16(as_bf16(1.0f / size) * kMost), s = up < kMost ? up : kMost;
  scale[0] = 1.0f / s;
  const uint8_t top = static_cast<uint8_t>(to_e4m3(all(as_bf16(size * s)))[0]);
  if ((bits_of(size) & 0x7f800000u) == 0x7f800000u || (bits_of(from_e4m3(top) * scale[0]) & 0x7f800000u) == 0x7f800000u) {
    return encode_rows(rows, [&](const float* x, int64_t first, int64_t count) {
      const int64_t place = place_of(x, count * rows.columns, most);
      if (place >= 0) keep_least(first * rows.columns + place, beyond);
    });
  }
  return encode_rows(rows, [&](const float* x, int64_t first, int64_t count) {
    each_code(x, count * rows.columns, codes + first * rows.columns,
              [&](Floats v) QUANTRY_LAMBDA { return to_e4m3(as_bf16(as_bf16(v) * s)); });
  });
}

int channel(const QuantryRows& rows, uint8_t* codes, float* scales) {
  return encode_rows(rows, [&](const float* x, int64_t first, int64_t count) {
    for (int64_t i = 0; i < count; i++, x += rows.columns) {
      float s = largest_of(x, rows.columns) / 448.0f;
      if (s < 0x1p-126f) s = 0x1p-126f;                               // x / s stays finite, 0 stays 0
      if (s * 448.0f > 3.4028234e38f) s = float_of(bits_of(s) - 1);   // 448 · s stays finite
      scales[first + i] = s;
      each_code(x, rows.columns, codes + (first + i) * rows.columns,
                [&](Floats v) QUANTRY_LAMBDA { return to_e4m3(v / s); });
    }
  });
}

// One block; false where its largest weight needs a scale beyond e4m3.
inline bool put_block(const float* x, uint8_t* to) {
  const float d = largest(largest_lanes(x, kBlock))[0] / 127.0f, up = d == 0 ? 0 : 1.0f / d;
  to[0] = static_cast<uint8_t>(to_e4m3(all(d * kMost))[0]);
  each_code(x, kBlock, to + 1, [&](Floats v) QUANTRY_LAMBDA { return clamp(rounded(v * up), -127, 127); });
  return d * kMost <= 464.0f;   // half a step above the largest number
}

int f8q8(const QuantryRows& rows, uint8_t* blocks, int64_t* beyond) {
  const int64_t all = rows.rows * rows.columns, whole = all / kBlock, left = all % kBlock;
  auto put = [&](const float* x, int64_t first, int64_t count) {
    for (int64_t i = 0; i < count; i++, x += kBlock) {
      if (put_block(x, blocks + (first + i) * kBlockBytes)) continue;
      keep_least((first + i) * kBlock + place_of(x, kBlock, largest_of(x, kBlock)), beyond);
    }
  };
  QuantryRows flat = rows;
  flat.rows = whole, flat.columns = flat.stride = kBlock;
  int status = encode_rows(flat, put);
  if (status || *rows.bad >= 0 || left == 0) return status;
  float last[kBlock] = {};
  const int64_t item = rows.dtype == QUANTRY_F32 ? 4 : 2;
  const int64_t wrong = widen_row(rows.dtype, static_cast<const char*>(rows.x) + whole * kBlock * item, left, last);
  if (wrong >= 0) *rows.bad = whole * kBlock + wrong;
  else put(last, whole, 1);
  return QUANTRY_OK;
}

QUANTRY_END

QUANTRY_TABLE(Fp8Ops, quantry_fp8_encode_ops) {
  quantry::QUANTRY_TARGET::tensor, quantry::QUANTRY_TARGET::channel, quantry::QUANTRY_TARGET::f8q8
};
