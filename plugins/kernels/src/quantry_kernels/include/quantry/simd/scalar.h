// Plain C++: one lane, 16 strips a panel. The reference the vector targets are tested against, on every machine.
#pragma once
#include <math.h>

#include "../float8.h"
#include "../target.h"

QUANTRY_BEGIN

using vf = float;
using vi = int32_t;
using vc = uint32_t;

constexpr int kLanes = 1;
constexpr int kFullZero = 0;

QUANTRY_INLINE vf zero() { return 0.0f; }
QUANTRY_INLINE vf set1(float x) { return x; }
QUANTRY_INLINE vf load(const float* p) { return *p; }
QUANTRY_INLINE void store(float* p, vf x) { *p = x; }
QUANTRY_INLINE vf add(vf a, vf b) { return a + b; }
QUANTRY_INLINE vf sub(vf a, vf b) { return a - b; }
QUANTRY_INLINE vf mul(vf a, vf b) { return a * b; }
QUANTRY_INLINE vf fma(vf a, vf b, vf c) { return a * b + c; }   // rounds twice: libm's fma is slow without the unit
QUANTRY_INLINE vf fnma(vf a, vf b, vf c) { return c - a * b; }
QUANTRY_INLINE float sum_lanes(vf x) { return x; }
QUANTRY_INLINE vf load_half(const uint16_t* p) { return from_half(*p); }
QUANTRY_INLINE vf load_bf16(const uint16_t* p) { return from_bf16(*p); }

QUANTRY_INLINE vi zero_int() { return 0; }
QUANTRY_INLINE vi set1_int(int32_t x) { return x; }
QUANTRY_INLINE vi add_int(vi a, vi b) { return a + b; }
QUANTRY_INLINE vi mul_int(vi a, vi b) { return a * b; }
QUANTRY_INLINE vi max_int(vi a, vi b) { return a > b ? a : b; }
QUANTRY_INLINE int32_t sum_lanes_int(vi x) { return x; }
QUANTRY_INLINE int32_t max_lanes_int(vi x) { return x; }
QUANTRY_INLINE vf to_float(vi x) { return static_cast<float>(x); }
// |x| ≤ 127 here. Adding 1.5·2^23 leaves the nearest even integer in the low bits: no libm, no rounding mode.
QUANTRY_INLINE vi round_int(vf x) { return static_cast<int32_t>(bits_of(x + 12582912.0f) & 0x7fffff) - 0x400000; }
QUANTRY_INLINE vi abs_bits(vf x) { return static_cast<int32_t>(bits_of(x) & 0x7fffffffu); }
QUANTRY_INLINE void store_bytes(int8_t* p, vi x) { *p = static_cast<int8_t>(x); }

QUANTRY_INLINE vc load_codes(const uint8_t* p) {
  uint32_t v;
  memcpy(&v, p, 4);
  return v;
}
QUANTRY_INLINE void store_codes(uint8_t* p, vc v) { memcpy(p, &v, 4); }
QUANTRY_INLINE vc and_bits(vc v, uint32_t mask) { return v & mask; }
QUANTRY_INLINE vc or_codes(vc a, vc b) { return a | b; }
QUANTRY_INLINE vc xor_bits(vc v, uint32_t mask) { return v ^ mask; }
QUANTRY_INLINE vc table_bytes(const uint8_t* table, vc v) {
  return table[v & 15] | static_cast<uint32_t>(table[v >> 8 & 15]) << 8 | static_cast<uint32_t>(table[v >> 16 & 15]) << 16 |
         static_cast<uint32_t>(table[v >> 24 & 15]) << 24;
}
QUANTRY_INLINE vc add_codes(vc v, uint32_t x) { return v + x; }
template <int S>
QUANTRY_INLINE vc shift_right(vc v) { return v >> S; }
template <int S>
QUANTRY_INLINE vc shift_left(vc v) { return v << S; }
QUANTRY_INLINE vi as_int(vc v) { return static_cast<int32_t>(v); }
QUANTRY_INLINE vc as_codes(vi v) { return static_cast<uint32_t>(v); }
template <int B>
QUANTRY_INLINE vi signed_byte(vc v) { return static_cast<int8_t>(v >> (8 * B)); }
QUANTRY_INLINE void prefetch(const void*) {}

QUANTRY_INLINE vi dot4(vi a, vc w, int32_t x) {
  repeat<4>([&](auto b) QUANTRY_LAMBDA {
    a += static_cast<int32_t>((w >> (8 * b)) & 0xff) * static_cast<int8_t>(static_cast<uint32_t>(x) >> (8 * b));
  });
  return a;
}
QUANTRY_INLINE vi dot4_full(vi a, vc w, int32_t x) {
  w ^= 0x80808080u;
  repeat<4>([&](auto b) QUANTRY_LAMBDA {
    a += static_cast<int8_t>(w >> (8 * b)) * static_cast<int8_t>(static_cast<uint32_t>(x) >> (8 * b));
  });
  return a;
}
QUANTRY_INLINE vi dot2(vi a, vi w, int32_t x) {
  return a + static_cast<int16_t>(w) * static_cast<int16_t>(x) + (w >> 16) * (x >> 16);
}

QUANTRY_INLINE vi load_u8(const uint8_t* p) { return *p; }
QUANTRY_INLINE vi load_u16(const uint8_t* p) {
  uint16_t v;
  memcpy(&v, p, 2);
  return v;
}
QUANTRY_INLINE vf bits_float(vi x) { return float_of(static_cast<uint32_t>(x)); }
QUANTRY_INLINE vf where_equal(vi x, int32_t c, vf yes, vf no) { return x == c ? yes : no; }

constexpr bool kFloatTables = false;

template <int Pos>
QUANTRY_INLINE vf table_float(const float* table, vc v) { return table[v >> Pos & 15]; }
template <int B>
QUANTRY_INLINE vf e4m3_float(vc v) { return from_e4m3(static_cast<uint8_t>(v >> (8 * B))); }
template <int B>
QUANTRY_INLINE vf e5m2_float(vc v) { return from_e5m2(static_cast<uint8_t>(v >> (8 * B))); }

template <int B>
QUANTRY_INLINE vf byte_float(vc v) { return to_float(signed_byte<B>(v)); }
template <int Bits, int Zero, int Pos>
QUANTRY_INLINE vf field_float(vc v) { return to_float(static_cast<vi>(v >> Pos & ((1u << Bits) - 1)) - Zero); }

QUANTRY_INLINE float one_half(uint16_t h) { return from_half(h); }
QUANTRY_INLINE vi load_i8(const int8_t* p) { return *p; }

constexpr int kSpan = 32;
struct vb {
  uint8_t byte[kSpan];
};
struct SignedSpan {
  int8_t code[kSpan];
};
QUANTRY_INLINE vb load_span(const void* p) {
  vb v;
  memcpy(v.byte, p, kSpan);
  return v;
}
QUANTRY_INLINE vb set_span(int x) {
  vb v;
  memset(v.byte, x, kSpan);
  return v;
}
QUANTRY_INLINE vb sub_span(vb a, vb b) {
  for (int i = 0; i < kSpan; ++i) a.byte[i] = static_cast<uint8_t>(a.byte[i] - b.byte[i]);
  return a;
}
QUANTRY_INLINE vb add_eights(vb v, uint32_t where, int x) {
  for (int i = 0; i < kSpan; ++i) v.byte[i] = static_cast<uint8_t>(v.byte[i] + (where >> i / 8 & 1) * x);
  return v;
}
template <class Word>
QUANTRY_INLINE vb span_of_8(const Word& w) {
  vb v;
  for (int i = 0; i < kSpan / 8; ++i) {
    uint64_t eight = w(i);
    memcpy(v.byte + 8 * i, &eight, 8);
  }
  return v;
}
template <class Word>
QUANTRY_INLINE vb span_of_4(const Word& w) {
  vb v;
  for (int i = 0; i < kSpan / 4; ++i) {
    uint32_t four = w(i);
    memcpy(v.byte + 4 * i, &four, 4);
  }
  return v;
}
QUANTRY_INLINE SignedSpan signed_span(vb codes) {
  SignedSpan s;
  memcpy(s.code, codes.byte, kSpan);
  return s;
}
QUANTRY_INLINE SignedSpan signed_span(vb magnitude, uint64_t negative) {
  SignedSpan s;
  for (int i = 0; i < kSpan; ++i) s.code[i] = static_cast<int8_t>(negative >> i & 1 ? -magnitude.byte[i] : magnitude.byte[i]);
  return s;
}
QUANTRY_INLINE void store_span(int8_t* p, const SignedSpan& w) { memcpy(p, w.code, kSpan); }
QUANTRY_INLINE const uint8_t* scale_span(const uint8_t* scales) { return scales; }
QUANTRY_INLINE vi dot_span(vi a, const SignedSpan& w, vb x, const uint8_t* scales) {
  for (int g = 0; g < kSpan / 16; ++g) {
    int32_t sum = 0;
    for (int i = 16 * g; i < 16 * g + 16; ++i) sum += w.code[i] * static_cast<int8_t>(x.byte[i]);
    a += sum * scales[g];
  }
  return a;
}

constexpr int kTilePanels = 1;
constexpr int kRowsInt8 = 2;
constexpr int kRowsFloat = 2;
constexpr int kSmallRowsInt8 = 2;      // fewer instances: a machine without vectors is no place to wait for the compiler
constexpr int kSmallRowsSixBit = 2;
constexpr int kSmallRowsFloat = 2;

QUANTRY_END
