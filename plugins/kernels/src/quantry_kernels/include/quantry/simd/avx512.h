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

// 4 and 5 bits: one permutation of a table in registers, which ignores the bits above. Wider fields: put under the exponent
// of 2^23, where the lowest bit of a float counts 1. Either way the zero point costs nothing.
template <int Bits, int Zero, int Pos>
QUANTRY_INLINE vf field_float(vc v) {
  const vf ramp = _mm512_setr_ps(0, 1, 2, 3, 4, 5, 6, 7, 8, 9, 10, 11, 12, 13, 14, 15);
  const vf low = _mm512_sub_ps(ramp, _mm512_set1_ps(Zero));
  if constexpr (Pos > 0) v = _mm512_srli_epi32(v, Pos);
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

constexpr int kTilePanels = 2;
constexpr int kRowsInt8 = 6;         // 6 × 2 i32 and 6 × 2 f32 accumulators, 2 weights, 2 scales, 1 activation
constexpr int kRowsFloat = 12;       // 12 × 2 accumulators, 2 weights, 1 activation
constexpr int kSmallRowsInt8 = 8;    // 8 sums, 8 dots, the codes of one cell
constexpr int kSmallRowsSixBit = 7;   // Q6_K: two more registers of high bits
constexpr int kSmallRowsFloat = 8;

QUANTRY_END
