// Scales and zeros of a few groups as f32, for all of their storage types, so that the kernels see one kind.
//
//   scale[unit][16]        of the rows of a panel; a group's scale stands in each of its units
//   correction[unit][16]   what a unit adds per Σ x, when codes count from the middle of their range:
//                          scale · (middle − zero), or bias + scale · middle
#pragma once
#include "dynamic_map.h"
#include "weight.h"

QUANTRY_BEGIN

template <int T>
QUANTRY_INLINE vf load_scale(const void* base, int64_t index) {   // T: QuantryScale
  const uint8_t* bytes = static_cast<const uint8_t*>(base);
  if constexpr (T == QUANTRY_SCALE_F32) return load(reinterpret_cast<const float*>(bytes) + index);
  if constexpr (T == QUANTRY_SCALE_F16) return load_half(reinterpret_cast<const uint16_t*>(bytes) + index);
  if constexpr (T == QUANTRY_SCALE_BF16) return load_bf16(reinterpret_cast<const uint16_t*>(bytes) + index);
  if constexpr (T == QUANTRY_SCALE_E8M0) {
    vi code = load_u8(bytes + index);
    vf x = bits_float(max_int(as_int(shift_left<23>(as_codes(code))), set1_int(0x00400000)));   // 0 is 2^-127
    return where_equal(code, 255, set1(float_of(0x7fc00000u)), x);
  }
  if constexpr (T == QUANTRY_SCALE_E4M3) {
    vi code = load_u8(bytes + index);
    vf x = e4m3_float<0>(as_codes(code));
    return where_equal(as_int(and_bits(as_codes(code), 0x7f)), 0x7f, set1(float_of(0x7fc00000u)), x);
  }
}

template <int T>
QUANTRY_INLINE float one_scale(const void* base, int64_t index) {
  const uint8_t* bytes = static_cast<const uint8_t*>(base);
  uint16_t half = 0;
  if constexpr (T == QUANTRY_SCALE_F16 || T == QUANTRY_SCALE_BF16) memcpy(&half, bytes + 2 * index, 2);
  if constexpr (T == QUANTRY_SCALE_F32) return static_cast<const float*>(base)[index];
  if constexpr (T == QUANTRY_SCALE_F16) return from_half(half);
  if constexpr (T == QUANTRY_SCALE_BF16) return from_bf16(half);
  if constexpr (T == QUANTRY_SCALE_E8M0) return from_e8m0(bytes[index]);
  if constexpr (T == QUANTRY_SCALE_E4M3) return from_e4m3(bytes[index]);
}

// Calls body(Const<T>) for a run-time type of scales that lie as plain numbers.
template <class Body>
QUANTRY_INLINE void with_scale(int type, Body&& body) {
  switch (type) {
    case QUANTRY_SCALE_F32: body(Const<QUANTRY_SCALE_F32>{}); break;
    case QUANTRY_SCALE_F16: body(Const<QUANTRY_SCALE_F16>{}); break;
    case QUANTRY_SCALE_BF16: body(Const<QUANTRY_SCALE_BF16>{}); break;
    case QUANTRY_SCALE_E8M0: body(Const<QUANTRY_SCALE_E8M0>{}); break;
    default: body(Const<QUANTRY_SCALE_E4M3>{}); break;
  }
}

// out[units][16] = at(index of 16 numbers of a group as they are stored) for the units from column k on. Units beyond the
// last group are padding: their activations are zero.
template <class At>
QUANTRY_INLINE void fill_units(const GroupedWeight& w, int64_t panel, int64_t k, int units, float* out, At&& at) {
  const int64_t group = w.group, groups = w.groups, first = panel * groups;   // the stores below may alias w
  const int unit = w.unit();
  int64_t g = k / group;
  if (group == unit) {
    const int there = static_cast<int>(max_of(0, min_of(units, groups - g))) * kRows;
    const int64_t base = (first + g) * kRows;
    for (int i = 0; i < there; i += kLanes) store(out + i, at(base + i));
    for (int i = there; i < units * kRows; i += kLanes) store(out + i, zero());
    return;
  }
  int64_t left = (g + 1) * group - k;
  for (int u = 0; u < units; ++u, out += kRows) {
    const int64_t base = (first + min_of(g, groups - 1)) * kRows;
    for (int i = 0; i < kRows; i += kLanes) store(out + i, at(base + i));
    left -= unit;
    if (left <= 0) ++g, left += group;
  }
}

// Double-quantized scales: dynamic[code] · nested[i / 256] + offset, i = row · groups + group. The second factor of 16 rows
// holds for many groups: it is looked up when one of them enters the next 256.
struct NestedScales {
  const uint8_t* codes;
  const float* nested;
  int64_t groups, first, rows, until = 0;   // of the row; index of the panel's first scale; rows that exist
  float offset, coarse[kRows] = {};

  QUANTRY_INLINE NestedScales(const GroupedWeight& w, int64_t panel)
      : codes(static_cast<const uint8_t*>(w.g.scales)), nested(static_cast<const float*>(w.g.nested)), groups(w.groups),
        first(panel * w.groups), rows(min_of(kRows, w.g.rows - panel * kRows)),
        offset(*static_cast<const float*>(w.g.offset)) {}

  QUANTRY_INLINE vf at(int64_t index) {   // groups are asked for in their order
    const int64_t group = index / kRows - first;
    if (group >= until) enter(group);
    float fine[kLanes];
    repeat<kLanes>([&](auto lane) QUANTRY_LAMBDA { fine[lane] = kDynamicMap[codes[index + lane]]; });
    return add(mul(load(fine), load(coarse + index % kRows)), set1(offset));
  }
  QUANTRY_NOINLINE void enter(int64_t group) {
    until = group + 256;
    int64_t i = first * kRows + group;
    for (int64_t r = 0; r < rows; ++r, i += groups) {
      coarse[r] = nested[i >> 8];
      until = min_of(until, group + 256 - (i & 255));
    }
  }
};

// scale[units][16] · factor, `outer` included.
QUANTRY_NOINLINE inline void expand_scales(const GroupedWeight& w, int64_t panel, int64_t k, int units, float factor,
                                           float* s) {
  const vf times = set1(w.g.outer ? *static_cast<const float*>(w.g.outer) * factor : factor);
  const void* scales = w.g.scales;
  if (w.g.scale == QUANTRY_SCALE_NESTED) {
    NestedScales nested(w, panel);
    fill_units(w, panel, k, units, s, [&](int64_t i) QUANTRY_LAMBDA { return mul(nested.at(i), times); });
  } else if (w.g.block_rows == 1) {
    with_scale(w.g.scale, [&](auto t) QUANTRY_LAMBDA {
      constexpr int T = t;
      fill_units(w, panel, k, units, s, [=](int64_t i) QUANTRY_LAMBDA { return mul(load_scale<T>(scales, i), times); });
    });
  } else {   // one number for all rows of the panel: as [block, G, 16] it would lie at index / 16
    const int64_t row = w.g.block_rows ? panel * kRows / w.g.block_rows : 0;
    with_scale(w.g.scale, [&](auto t) QUANTRY_LAMBDA {
      constexpr int T = t;
      fill_units(w, row, k, units, s,
                 [=](int64_t i) QUANTRY_LAMBDA { return mul(set1(one_scale<T>(scales, i / kRows)), times); });
    });
  }
}

// Calls body(at), at(index) = kLanes zeros or biases as stored; the middle of the codes where the weight has none.
template <class Body>
QUANTRY_INLINE void with_zeros(const GroupedWeight& w, Body&& body) {
  const void* zeros = w.g.zeros;
  if (!w.corrected()) {
    const vf middle = set1(static_cast<float>(1 << (w.g.bits - 1)));
    body([=](int64_t) QUANTRY_LAMBDA { return middle; });
  } else if (w.g.zero == QUANTRY_ZERO_INT) {
    body([=](int64_t i) QUANTRY_LAMBDA { return to_float(load_u8(static_cast<const uint8_t*>(zeros) + i)); });
  } else {
    with_scale(w.g.scale, [&](auto t) QUANTRY_LAMBDA {
      constexpr int T = t;
      body([=](int64_t i) QUANTRY_LAMBDA { return load_scale<T>(zeros, i); });
    });
  }
}

// zero[units][16] as stored: zeros or biases, or the middle of the codes.
QUANTRY_NOINLINE inline void expand_zeros(const GroupedWeight& w, int64_t panel, int64_t k, int units, float* z) {
  with_zeros(w, [&](auto at) QUANTRY_LAMBDA { fill_units(w, panel, k, units, z, at); });
}

// `count` zeros or biases → corrections, in place.
QUANTRY_NOINLINE inline void corrections(const GroupedWeight& w, int count, const float* s, float* z) {
  const vf middle = set1(static_cast<float>(1 << (w.g.bits - 1)));
  const bool bias = w.g.zero == QUANTRY_ZERO_BIAS;
  for (int i = 0; i < count; i += kLanes) {
    vf scale = load(s + i), zero = load(z + i);
    store(z + i, bias ? fma(scale, middle, zero) : mul(scale, sub(middle, zero)));
  }
}

// axis OUT: the scales and zeros of columns k … k + count of the rows of a panel, one a column; zero beyond the last.
QUANTRY_NOINLINE inline void column_scales(const GroupedWeight& w, int64_t panel, int64_t k, int count, float* s,
                                           float* z) {
  const int64_t first = w.scale_row(panel) * w.g.columns + k;
  const int there = static_cast<int>(max_of(0, min_of(count, w.g.columns - k))), whole = there / kLanes * kLanes;
  auto fill = [&](float* out, int bytes, const void* from, auto&& at) QUANTRY_LAMBDA {
    for (int i = 0; i < whole; i += kLanes) store(out + i, at(from, first + i));
    for (int i = whole; i < count; i += kLanes) store(out + i, zero());
    if (whole == there) return;
    uint8_t rest[4 * kLanes] = {};   // a whole vector would end beyond the buffer
    memcpy(rest, static_cast<const uint8_t*>(from) + (first + whole) * bytes, static_cast<size_t>((there - whole) * bytes));
    store(out + whole, at(rest, 0));
  };
  with_scale(w.g.scale, [&](auto t) QUANTRY_LAMBDA {
    constexpr int T = t, bytes = T == QUANTRY_SCALE_F32 ? 4 : 2;
    auto number = [](const void* p, int64_t i) QUANTRY_LAMBDA { return load_scale<T>(p, i); };
    fill(s, bytes, w.g.scales, number);
    if (w.corrected() && w.g.zero != QUANTRY_ZERO_INT) fill(z, bytes, w.g.zeros, number);
  });
  if (!w.corrected()) {
    for (int i = 0; i < count; i += kLanes) store(z + i, set1(static_cast<float>(1 << (w.g.bits - 1))));
  } else if (w.g.zero == QUANTRY_ZERO_INT) {
    fill(z, 1, w.g.zeros, [](const void* p, int64_t i) QUANTRY_LAMBDA {
      return to_float(load_u8(static_cast<const uint8_t*>(p) + i));
    });
  }
}

QUANTRY_END
