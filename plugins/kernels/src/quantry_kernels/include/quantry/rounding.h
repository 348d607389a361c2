// Activations of a block as int8: scale = max|x| / 127, code = nearest even of x / scale (ggml rounds halves away from zero:
// the last code may differ). A block with Inf or NaN gets the scale NaN, so that the result shows it.
#pragma once
#include "elements.h"

QUANTRY_BEGIN

struct Rounding {
  float scale, up, inverse;   // code = round(x · up · inverse)
  bool broken;
};

template <int D>
QUANTRY_INLINE Rounding rounding_of(const typename Element<D>::Type* x, int count) {
  vi biggest = zero_int();
  for (int i = 0; i < count; i += kLanes) biggest = max_int(biggest, abs_bits(load_as_float<D>(x + i)));
  const int32_t bits = max_lanes_int(biggest);
  Rounding r{float_of(static_cast<uint32_t>(bits)) / 127.0f, 1.0f, 0.0f, bits >= 0x7f800000};
  if (r.broken) {
    r.scale = float_of(0x7fc00000u);
  } else if (bits > 0) {
    const float most = float_of(static_cast<uint32_t>(bits));
    if (most < 0x1p-100f) r.up = 0x1p100f;   // 127 / most would be Inf
    r.inverse = 127.0f / (most * r.up);
  }
  return r;
}

// codes[first … last) of x; their sum.
template <int D>
QUANTRY_INLINE int32_t round_codes(const typename Element<D>::Type* x, int first, int last, const Rounding& r, int8_t* codes) {
  vi sum = zero_int();
  for (int i = first; i < last; i += kLanes) {
    vi q = r.broken ? zero_int() : round_int(mul(mul(load_as_float<D>(x + i), set1(r.up)), set1(r.inverse)));
    sum = add_int(sum, q);
    store_bytes(codes + i, q);
  }
  return sum_lanes_int(sum);
}

QUANTRY_END
