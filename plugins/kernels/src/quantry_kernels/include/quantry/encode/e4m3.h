// Floats to e4m3 (OCP 8-bit floats 1.0, the form without Inf), round to nearest even, beyond 448 to 448.
#pragma once
#include "lanes.h"

QUANTRY_BEGIN

// Codes 0 … 255; −0 keeps its sign. Finite v.
QUANTRY_INLINE Ints to_e4m3(Floats v) {
  Floats a = magnitude(v);
  a = a < 448.0f ? a : all(448.0f);
  const Ints bits = (Ints)a;
  const Ints normal = ((bits + 0x7ffff + (bits >> 20 & 1)) >> 20) - ((127 - 7) << 3);
  const Ints subnormal = (Ints)(a + 0x1p14f) & 15;   // multiples of 2^-9, the last place of 2^14; 8 is the first normal one
  return (a < 0x1p-6f ? subnormal : normal) | ((Ints)v >> 24 & 0x80);
}

QUANTRY_END
