// Vectors whose lanes are independent: the same source means the same numbers on every target.
//
// Sums run inside a lane, one sub-block per lane, so that their order is the reference's order.
#pragma once
#include "../float16.h"
#include "../target.h"

QUANTRY_BEGIN

#if defined(__AVX512F__)
constexpr int kWide = 16;
#elif defined(__AVX2__)
constexpr int kWide = 8;
#else
constexpr int kWide = 4;   // SSE2 and NEON, the baselines
#endif

typedef float Floats __attribute__((vector_size(4 * kWide)));
typedef int32_t Ints __attribute__((vector_size(4 * kWide)));
typedef uint8_t Bytes __attribute__((vector_size(kWide)));

QUANTRY_INLINE Floats read(const float* p) {
  Floats v;
  memcpy(&v, p, sizeof v);
  return v;
}
QUANTRY_INLINE void write(float* p, Floats v) { memcpy(p, &v, sizeof v); }
QUANTRY_INLINE void write(int32_t* p, Ints v) { memcpy(p, &v, sizeof v); }

QUANTRY_INLINE Floats all(float x) { return Floats{} + x; }
QUANTRY_INLINE Floats pick(Ints mask, Floats yes, Floats no) { return mask ? yes : no; }
QUANTRY_INLINE Floats magnitude(Floats v) { return (Floats)((Ints)v & 0x7fffffff); }
QUANTRY_INLINE float magnitude(float v) { return float_of(bits_of(v) & 0x7fffffffu); }
QUANTRY_INLINE Floats to_floats(Ints v) { return __builtin_convertvector(v, Floats); }

QUANTRY_INLINE Ints clamp(Ints v, int low, int high) {
  v = v < low ? Ints{} + low : v;
  return v > high ? Ints{} + high : v;
}

// ggml's nearest_int: half to even below 2^22, and 23 wrapped bits above it or for Inf and NaN.
QUANTRY_INLINE Ints nearest(Floats v) { return ((Ints)(v + 12582912.0f) & 0x7fffff) - 0x400000; }
QUANTRY_INLINE int nearest(float v) { return static_cast<int>(bits_of(v + 12582912.0f) & 0x7fffff) - 0x400000; }

// A C cast as x86 does it: toward zero, 0x80000000 for what does not fit.
QUANTRY_INLINE Ints truncated(Floats v) {
  Ints fits = magnitude(v) < 2147483648.0f;
  return fits ? __builtin_convertvector(pick(fits, v, Floats{}), Ints) : Ints{} + INT32_MIN;
}

// roundf, half away from zero, then that cast.
QUANTRY_INLINE Ints rounded(Floats v) {
  Ints q = truncated(v);
  Floats rest = v - to_floats(q);
  Ints near = magnitude(v) < 8388608.0f;               // above, v is whole already
  return q - (near & (rest >= 0.5f)) + (near & (rest <= -0.5f));   // a true lane is -1
}

QUANTRY_INLINE Floats root(Floats v) {
  for (int lane = 0; lane < kWide; lane++) v[lane] = __builtin_sqrtf(v[lane]);
  return v;
}

QUANTRY_END
