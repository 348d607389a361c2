// Scalar conversions between f32 and the two 16-bit floats, round to nearest even; every target has them for tails.
#pragma once
#include "target.h"

QUANTRY_BEGIN

QUANTRY_INLINE uint32_t bits_of(float x) {
  uint32_t u;
  memcpy(&u, &x, 4);
  return u;
}

QUANTRY_INLINE float float_of(uint32_t u) {
  float x;
  memcpy(&x, &u, 4);
  return x;
}

QUANTRY_INLINE float from_bf16(uint16_t h) { return float_of(static_cast<uint32_t>(h) << 16); }

QUANTRY_INLINE uint16_t to_bf16(float x) {
  uint32_t u = bits_of(x);
  if ((u & 0x7fffffffu) > 0x7f800000u) return static_cast<uint16_t>((u >> 16) | 0x40);   // NaN stays NaN, made quiet
  return static_cast<uint16_t>((u + 0x7fff + ((u >> 16) & 1)) >> 16);
}

QUANTRY_INLINE float from_half(uint16_t h) {
  uint32_t sign = static_cast<uint32_t>(h & 0x8000) << 16;
  uint32_t rest = h & 0x7fff;
  if (rest >= 0x7c00) return float_of(sign | 0x7f800000u | ((rest & 0x3ff) << 13));   // Inf, NaN
  // Subnormals are multiples of 2^-24; as f32 subnormals they would vanish where the caller flushes denormals.
  float x = rest < 0x400 ? static_cast<float>(rest) * 0x1p-24f : float_of((rest << 13) + 0x38000000u);
  return float_of(bits_of(x) | sign);
}

QUANTRY_INLINE uint16_t to_half(float x) {
  uint32_t u = bits_of(x);
  uint16_t sign = static_cast<uint16_t>((u >> 16) & 0x8000);
  u &= 0x7fffffffu;
  if (u > 0x7f800000u) return sign | 0x7e00;
  if (u >= 0x47800000u) return sign | 0x7c00;   // 65536 and above; 65520…65535 reach Inf by the carry below
  if (u < 0x38800000u) {                        // below 2^-14: adding 2^-1 puts the last kept bit at position 0
    float shifted = float_of(u) + 0.5f;
    return static_cast<uint16_t>(sign | (bits_of(shifted) - 0x3f000000u));
  }
  u += 0xfff + ((u >> 13) & 1);
  return static_cast<uint16_t>(sign | ((u - 0x38000000u) >> 13));
}

QUANTRY_END
