// Floats to e2m1 codes (OCP microscaling 1.0): 0 .5 1 1.5 2 3 4 6, bit 3 the sign.
#pragma once
#include "lanes.h"

QUANTRY_BEGIN

// Codes 0 … 15 of the nearest values, halfway cases to the larger magnitude, beyond 6 to 6. The sign bit is set for every
// v < 0, values that become 0 among them, and not for −0. Finite v.
QUANTRY_INLINE Ints to_e2m1(Floats v) {
  const Floats a = magnitude(v);
  const Ints small = -(a >= 0.25f) - (a >= 0.75f);   // below 1: 0 .5 1; a true lane is −1
  // From 1 on, the exponent and one bit of the mantissa, half of which is added first; below it is at most `small`.
  Ints large = (((Ints)a + (1 << 21)) >> 22) - (2 * 127 - 2);
  large = large > small ? large : small;
  large = large < 7 ? large : Ints{} + 7;
  return large | ((v < 0.0f) & 8);
}

QUANTRY_END
