// AVX-512 F, BW, DQ, VL, VNNI: 16 lanes, one strip a panel.
#pragma once
#include <immintrin.h>

#include "../float16.h"
#include "../target.h"

QUANTRY_BEGIN

using vf = __m512;
// Not __m512i, a vector of 64-bit lanes: sums that change their type in a loop cost GCC two copies each turn.
typedef int vi __attribute__((vector_size(64)));
using vc = __m512i;

constexpr int kLanes = 16;
constexpr int kFullZero = 128;   // vpdpbusd takes the stored byte q + 128 as it is

QUANTRY_INLINE vf zero() { return _mm512_setzero_ps(); }
QUANTRY_INLINE vf set1(float x) { return _mm512_set1_ps(x); }
QUANTRY_INLINE vf load(const float* p) { return _mm512_loadu_ps(p); }
QUANTRY_INLINE void store(float* p, vf x) { _mm512_storeu_ps(p, x); }
QUANTRY_INLINE vf add(vf a, vf b) { return _mm512_add_ps(a, b); }
QUANTRY_INLINE vf sub(vf a, vf b) { return _mm512_sub_ps(a, b); }
QUANTRY_INLINE vf mul(vf a, vf b) { return _mm512_mul_ps(a, b); }
QUANTRY_INLINE vf fma(vf a, vf b, vf c) { return _mm512_fmadd_ps(a, b, c); }
QUANTRY_INLINE vf fnma(vf a, vf b, vf c) { return _mm512_fnmadd_ps(a, b, c); }   // c − a·b
QUANTRY_INLINE float sum_lanes(vf x) { return _mm512_reduce_add_ps(x); }

QUANTRY_INLINE vf load_half(const uint16_t* p) {
  return _mm512_cvtph_ps(_mm256_loadu_si256(reinterpret_cast<const __m256i*>(p)));
}
QUANTRY_INLINE vf load_bf16(const uint16_t* p) {
  __m256i h = _mm256_loadu_si256(reinterpret_cast<const __m256i*>(p));
  return _mm512_castsi512_ps(_mm512_slli_epi32(_mm512_cvtepu16_epi32(h), 16));
}

QUANTRY_INLINE vi zero_int() { return (vi)_mm512_setzero_si512(); }
QUANTRY_INLINE vi set1_int(int32_t x) { return (vi)_mm512_set1_epi32(x); }
QUANTRY_INLINE vi add_int(vi a, vi b) { return a + b; }
QUANTRY_INLINE vi mul_int(vi a, vi b) { return (vi)_mm512_mullo_epi32((__m512i)a, (__m512i)b); }
QUANTRY_INLINE vi max_int(vi a, vi b) { return (vi)_mm512_max_epi32((__m512i)a, (__m512i)b); }
QUANTRY_INLINE int32_t sum_lanes_int(vi x) { return _mm512_reduce_add_epi32((__m512i)x); }
QUANTRY_INLINE int32_t max_lanes_int(vi x) { return _mm512_reduce_max_epi32((__m512i)x); }
QUANTRY_INLINE vf to_float(vi x) { return _mm512_cvtepi32_ps((__m512i)x); }
QUANTRY_INLINE vi round_int(vf x) { return (vi)_mm512_cvtps_epi32(x); }   // nearest even
QUANTRY_INLINE vi abs_bits(vf x) { return (vi)_mm512_and_si512(_mm512_castps_si512(x), _mm512_set1_epi32(0x7fffffff)); }
QUANTRY_INLINE void store_bytes(int8_t* p, vi x) {
  _mm_storeu_si128(reinterpret_cast<__m128i*>(p), _mm512_cvtepi32_epi8((__m512i)x));
}

QUANTRY_INLINE vc load_codes(const uint8_t* p) { return _mm512_loadu_si512(p); }
QUANTRY_INLINE void store_codes(uint8_t* p, vc v) { _mm512_storeu_si512(p, v); }
QUANTRY_INLINE vc and_bits(vc v, uint32_t mask) { return _mm512_and_si512(v, _mm512_set1_epi32(static_cast<int>(mask))); }
QUANTRY_INLINE vc or_codes(vc a, vc b) { return _mm512_or_si512(a, b); }
QUANTRY_INLINE vc xor_bits(vc v, uint32_t mask) { return _mm512_xor_si512(v, _mm512_set1_epi32(static_cast<int>(mask))); }
QUANTRY_INLINE vc table_bytes(const uint8_t* table, vc v) {
  return _mm512_shuffle_epi8(_mm512_broadcast_i32x4(_mm_load_si128(reinterpret_cast<const __m128i*>(table))), v);
}
QUANTRY_INLINE vc add_codes(vc v, uint32_t x) { return _mm512_add_epi32(v, _mm512_set1_epi32(static_cast<int>(x))); }
template <int S>
QUANTRY_INLINE vc shift_right(vc v) { return _mm512_srli_epi32(v, S); }
template <int S>
QUANTRY_INLINE vc shift_left(vc v) { return _mm512_slli_epi32(v, S); }
QUANTRY_INLINE vi as_int(vc v) { return (vi)v; }
QUANTRY_INLINE vc as_codes(vi v) { return (vc)v; }
template <int B>
QUANTRY_INLINE vi signed_byte(vc v) {
  if constexpr (B == 3) return (vi)_mm512_srai_epi32(v, 24);
  else return (vi)_mm512_srai_epi32(_mm512_slli_epi32(v, 24 - 8 * B), 24);
}
QUANTRY_INLINE void prefetch(const void* p) { _mm_prefetch(static_cast<const char*>(p), _MM_HINT_T0); }

QUANTRY_INLINE vi dot4(vi a, vc w, int32_t x) { return (vi)_mm512_dpbusd_epi32((__m512i)a, w, _mm512_set1_epi32(x)); }
QUANTRY_INLINE vi dot4_full(vi a, vc w, int32_t x) { return (vi)_mm512_dpbusd_epi32((__m512i)a, w, _mm512_set1_epi32(x)); }
QUANTRY_INLINE vi dot2(vi a, vi w, int32_t x) { return (vi)_mm512_dpwssd_epi32((__m512i)a, (__m512i)w, _mm512_set1_epi32(x)); }

template <int B>
QUANTRY_INLINE vf byte_float(vc v) { return to_float(signed_byte<B>(v)); }

QUANTRY_INLINE vi load_u8(const uint8_t* p) {
  return (vi)_mm512_cvtepu8_epi32(_mm_loadu_si128(reinterpret_cast<const __m128i*>(p)));
}
QUANTRY_INLINE vi load_u16(const uint8_t* p) {
  return (vi)_mm512_cvtepu16_epi32(_mm256_loadu_si256(reinterpret_cast<const __m256i*>(p)));
}
QUANTRY_INLINE vf bits_float(vi x) { return _mm512_castsi512_ps((__m512i)x); }
QUANTRY_INLINE vf where_equal(vi x, int32_t c, vf yes, vf no) {
  return _mm512_mask_mov_ps(no, _mm512_cmpeq_epi32_mask((__m512i)x, _mm512_set1_epi32(c)), yes);
}

constexpr bool kFloatTables = true;
template <int Pos>
QUANTRY_INLINE vf table_float(const float* table, vc v) {
  if constexpr (Pos > 0) v = _mm512_srli_epi32(v, Pos);
  return _mm512_permutexvar_ps(v, _mm512_load_ps(table));
}

// Byte B of each lane as an E4M3 float without its NaN (480 instead); wants KeepSubnormals.
template <int B>
QUANTRY_INLINE vf e4m3_float(vc v) {
  if constexpr (B < 3) v = _mm512_slli_epi32(v, 24 - 8 * B);
  v = _mm512_and_si512(_mm512_srai_epi32(v, 4), _mm512_set1_epi32(static_cast<int>(0x87f00000)));
  return _mm512_mul_ps(_mm512_castsi512_ps(v), _mm512_set1_ps(0x1p120f));
}
template <int B>
QUANTRY_INLINE vf e5m2_float(vc v) {   // the upper byte of an f16
  if constexpr (B == 0) v = _mm512_slli_epi32(v, 8);
  if constexpr (B > 1) v = _mm512_srli_epi32(v, 8 * B - 8);
  return _mm512_cvtph_ps(_mm512_cvtepi32_epi16(_mm512_and_si512(v, _mm512_set1_epi32(0xff00))));
}

// 4 and 5 bits: one permutation of a table in registers, which ignores the bits above. Wider fields: put
// under the exponent of 2^23, where the lowest bit of a float counts 1. Either way the zero point costs nothing.
template <int Bits, int Zero, int Pos>
QUANTRY_INLINE vf field_float(vc v) {
  const vf ramp = _mm512_setr_ps(0, 1, 2, 3, 4, 5, 6, 7, 8, 9, 10, 11, 12, 13, 14, 15);
  const vf low = _mm512_sub_ps(ramp, _mm512_set1_ps(Zero));
  if constexpr (Pos > 0) v = _mm512_srli_epi32(v, Pos);
  if constexpr (Bits < 4) {   // entries repeat, so that the bits above do not matter
    constexpr int m = (1 << Bits) - 1;
    return _mm512_permutexvar_ps(v, _mm512_setr_ps(-Zero, (1 & m) - Zero, (2 & m) - Zero, (3 & m) - Zero, (4 & m) - Zero,
                                                   (5 & m) - Zero, (6 & m) - Zero, (7 & m) - Zero, -Zero, (9 & m) - Zero,
                                                   (10 & m) - Zero, (11 & m) - Zero, (12 & m) - Zero, (13 & m) - Zero,
                                                   (14 & m) - Zero, (15 & m) - Zero));
  }
  if constexpr (Bits == 4) {
    return _mm512_permutexvar_ps(v, low);
  } else if constexpr (Bits == 5) {
    return _mm512_permutex2var_ps(low, v, _mm512_sub_ps(ramp, _mm512_set1_ps(Zero - 16)));
  } else {
    const __m512i mask = _mm512_set1_epi32((1 << Bits) - 1), exponent = _mm512_set1_epi32(0x4b000000);
    v = _mm512_ternarylogic_epi32(v, mask, exponent, 0xea);   // (v & mask) | exponent
    return _mm512_sub_ps(_mm512_castsi512_ps(v), _mm512_set1_ps(8388608 + Zero));
  }
}

QUANTRY_INLINE float one_half(uint16_t h) { return _cvtsh_ss(h); }
QUANTRY_INLINE vi load_i8(const int8_t* p) {
  return (vi)_mm512_cvtepi8_epi32(_mm_loadu_si128(reinterpret_cast<const __m128i*>(p)));
}

constexpr int kSpan = 64;
using vb = __m512i;
struct SignedSpan {
  __m512i magnitude;
  __mmask64 negative;
};
QUANTRY_INLINE vb load_span(const void* p) { return _mm512_loadu_si512(p); }
QUANTRY_INLINE vb set_span(int x) { return _mm512_set1_epi8(static_cast<char>(x)); }
QUANTRY_INLINE vb sub_span(vb a, vb b) { return _mm512_sub_epi8(a, b); }
QUANTRY_INLINE vb add_eights(vb v, uint32_t where, int x) {
  return _mm512_mask_add_epi64(v, static_cast<__mmask8>(where), v, set_span(x));
}
template <class Word>
QUANTRY_INLINE vb span_of_8(const Word& w) {
  return _mm512_set_epi64(w(7), w(6), w(5), w(4), w(3), w(2), w(1), w(0));
}
template <class Word>
QUANTRY_INLINE vb span_of_4(const Word& w) {
  return _mm512_set_epi32(w(15), w(14), w(13), w(12), w(11), w(10), w(9), w(8), w(7), w(6), w(5), w(4), w(3), w(2), w(1), w(0));
}
QUANTRY_INLINE SignedSpan signed_span(vb codes) { return {_mm512_abs_epi8(codes), _mm512_movepi8_mask(codes)}; }
QUANTRY_INLINE SignedSpan signed_span(vb magnitude, uint64_t negative) { return {magnitude, negative}; }
QUANTRY_INLINE vb negate_where(vb v, __mmask64 negative) { return _mm512_mask_sub_epi8(v, negative, _mm512_setzero_si512(), v); }
QUANTRY_INLINE void store_span(int8_t* p, const SignedSpan& w) { _mm512_storeu_si512(p, negate_where(w.magnitude, w.negative)); }
QUANTRY_INLINE vb scale_span(const uint8_t* scales) {   // a 16-bit copy for each pair of columns
  int32_t four;
  memcpy(&four, scales, 4);
  const __m512i control = _mm512_set_epi32(0x80038003, 0x80038003, 0x80038003, 0x80038003, 0x80028002, 0x80028002, 0x80028002,
                                           0x80028002, 0x80018001, 0x80018001, 0x80018001, 0x80018001, 0x80008000, 0x80008000,
                                           0x80008000, 0x80008000);
  return _mm512_shuffle_epi8(_mm512_set1_epi32(four), control);
}
QUANTRY_INLINE vi dot_span(vi a, const SignedSpan& w, vb x, vb scales) {
  __m512i pairs = _mm512_maddubs_epi16(w.magnitude, negate_where(x, w.negative));
  return (vi)_mm512_dpwssd_epi32((__m512i)a, pairs, scales);
}

constexpr int kTilePanels = 2;
constexpr int kRowsInt8 = 6;         // 6 × 2 i32 and 6 × 2 f32 accumulators, 2 weights, 2 scales, 1 activation
constexpr int kRowsFloat = 12;       // 12 × 2 accumulators, 2 weights, 1 activation
constexpr int kSmallRowsInt8 = 8;    // 8 sums, 8 dots, the codes of one cell
constexpr int kSmallRowsSixBit = 4;   // Q6_K: two more registers of high bits, 8 do not fit
constexpr int kSmallRowsFloat = 4;   // 8 gain nothing: four rows keep both FMA units busy

QUANTRY_END
