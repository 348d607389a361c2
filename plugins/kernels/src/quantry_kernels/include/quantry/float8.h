// Scalar conversions of one-byte floats to f32 (OCP 8-bit floats 1.0, microscaling 1.0); exact, without f32 subnormals as
// operands, which would vanish where the caller flushes denormals.
#pragma once
#include "float16.h"

QUANTRY_BEGIN

QUANTRY_INLINE float from_e4m3(uint8_t h) {   // no Inf; all ones is NaN
  uint32_t sign = static_cast<uint32_t>(h & 0x80) << 24, rest = h & 0x7f;
  if (rest == 0x7f) return float_of(sign | 0x7fc00000u);
  float x = rest < 8 ? static_cast<float>(rest) * 0x1p-9f : float_of((rest << 20) + 0x3c000000u);
  return float_of(bits_of(x) | sign);
}

QUANTRY_INLINE float from_e5m2(uint8_t h) { return from_half(static_cast<uint16_t>(h << 8)); }

QUANTRY_INLINE float from_e8m0(uint8_t h) {   // 2^(h − 127); 0 is a subnormal, 255 NaN
  return float_of(h == 255 ? 0x7fc00000u : h == 0 ? 0x00400000u : static_cast<uint32_t>(h) << 23);
}

QUANTRY_END
