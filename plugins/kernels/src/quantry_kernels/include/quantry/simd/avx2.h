// AVX2, FMA, F16C: 8 lanes, two strips a panel; no VNNI, so a dot of bytes is three instructions.
#pragma once
#include <immintrin.h>

#include "../float16.h"
#include "../target.h"

QUANTRY_BEGIN

using vf = __m256;
// Not __m256i, a vector of 64-bit lanes: sums that change their type in a loop cost GCC two copies each turn.
typedef int vi __attribute__((vector_size(32)));
using vc = __m256i;

constexpr int kLanes = 8;
constexpr int kFullZero = 0;   // the sign trick below multiplies by q itself

QUANTRY_INLINE vf zero() { return _mm256_setzero_ps(); }
QUANTRY_INLINE vf set1(float x) { return _mm256_set1_ps(x); }
QUANTRY_INLINE vf load(const float* p) { return _mm256_loadu_ps(p); }
QUANTRY_INLINE void store(float* p, vf x) { _mm256_storeu_ps(p, x); }
QUANTRY_INLINE vf add(vf a, vf b) { return _mm256_add_ps(a, b); }
QUANTRY_INLINE vf sub(vf a, vf b) { return _mm256_sub_ps(a, b); }
QUANTRY_INLINE vf mul(vf a, vf b) { return _mm256_mul_ps(a, b); }
QUANTRY_INLINE vf fma(vf a, vf b, vf c) { return _mm256_fmadd_ps(a, b, c); }
QUANTRY_INLINE vf fnma(vf a, vf b, vf c) { return _mm256_fnmadd_ps(a, b, c); }
QUANTRY_INLINE float sum_lanes(vf x) {
  __m128 s = _mm_add_ps(_mm256_castps256_ps128(x), _mm256_extractf128_ps(x, 1));
  s = _mm_add_ps(s, _mm_movehl_ps(s, s));
  return _mm_cvtss_f32(_mm_add_ss(s, _mm_movehdup_ps(s)));
}

QUANTRY_INLINE vf load_half(const uint16_t* p) {
  return _mm256_cvtph_ps(_mm_loadu_si128(reinterpret_cast<const __m128i*>(p)));
}
QUANTRY_INLINE vf load_bf16(const uint16_t* p) {
  __m128i h = _mm_loadu_si128(reinterpret_cast<const __m128i*>(p));
  return _mm256_castsi256_ps(_mm256_slli_epi32(_mm256_cvtepu16_epi32(h), 16));
}

QUANTRY_INLINE vi zero_int() { return (vi)_mm256_setzero_si256(); }
QUANTRY_INLINE vi set1_int(int32_t x) { return (vi)_mm256_set1_epi32(x); }
QUANTRY_INLINE vi add_int(vi a, vi b) { return a + b; }
QUANTRY_INLINE vi mul_int(vi a, vi b) { return (vi)_mm256_mullo_epi32((__m256i)a, (__m256i)b); }
QUANTRY_INLINE vi max_int(vi a, vi b) { return (vi)_mm256_max_epi32((__m256i)a, (__m256i)b); }
QUANTRY_INLINE int32_t sum_lanes_int(vi x) {
  __m128i s = _mm_add_epi32(_mm256_castsi256_si128((__m256i)x), _mm256_extracti128_si256((__m256i)x, 1));
  s = _mm_add_epi32(s, _mm_shuffle_epi32(s, 0x4e));
  return _mm_cvtsi128_si32(_mm_add_epi32(s, _mm_shuffle_epi32(s, 0xb1)));
}
QUANTRY_INLINE int32_t max_lanes_int(vi x) {
  __m128i s = _mm_max_epi32(_mm256_castsi256_si128((__m256i)x), _mm256_extracti128_si256((__m256i)x, 1));
  s = _mm_max_epi32(s, _mm_shuffle_epi32(s, 0x4e));
  return _mm_cvtsi128_si32(_mm_max_epi32(s, _mm_shuffle_epi32(s, 0xb1)));
}
QUANTRY_INLINE vf to_float(vi x) { return _mm256_cvtepi32_ps((__m256i)x); }
QUANTRY_INLINE vi round_int(vf x) { return (vi)_mm256_cvtps_epi32(x); }
QUANTRY_INLINE vi abs_bits(vf x) { return (vi)_mm256_and_si256(_mm256_castps_si256(x), _mm256_set1_epi32(0x7fffffff)); }
QUANTRY_INLINE void store_bytes(int8_t* p, vi x) {
  __m128i w = _mm_packs_epi32(_mm256_castsi256_si128((__m256i)x), _mm256_extracti128_si256((__m256i)x, 1));
  _mm_storel_epi64(reinterpret_cast<__m128i*>(p), _mm_packs_epi16(w, w));
}

QUANTRY_INLINE vc load_codes(const uint8_t* p) { return _mm256_loadu_si256(reinterpret_cast<const __m256i*>(p)); }
QUANTRY_INLINE void store_codes(uint8_t* p, vc v) { _mm256_storeu_si256(reinterpret_cast<__m256i*>(p), v); }
QUANTRY_INLINE vc and_bits(vc v, uint32_t mask) { return _mm256_and_si256(v, _mm256_set1_epi32(static_cast<int>(mask))); }
QUANTRY_INLINE vc or_codes(vc a, vc b) { return _mm256_or_si256(a, b); }
QUANTRY_INLINE vc xor_bits(vc v, uint32_t mask) { return _mm256_xor_si256(v, _mm256_set1_epi32(static_cast<int>(mask))); }
QUANTRY_INLINE vc table_bytes(const uint8_t* table, vc v) {
  return _mm256_shuffle_epi8(_mm256_broadcastsi128_si256(_mm_load_si128(reinterpret_cast<const __m128i*>(table))), v);
}
QUANTRY_INLINE vc add_codes(vc v, uint32_t x) { return _mm256_add_epi32(v, _mm256_set1_epi32(static_cast<int>(x))); }
template <int S>
QUANTRY_INLINE vc shift_right(vc v) { return _mm256_srli_epi32(v, S); }
template <int S>
QUANTRY_INLINE vc shift_left(vc v) { return _mm256_slli_epi32(v, S); }
QUANTRY_INLINE vi as_int(vc v) { return (vi)v; }
QUANTRY_INLINE vc as_codes(vi v) { return (vc)v; }
template <int B>
QUANTRY_INLINE vi signed_byte(vc v) {
  if constexpr (B == 3) return (vi)_mm256_srai_epi32(v, 24);
  else return (vi)_mm256_srai_epi32(_mm256_slli_epi32(v, 24 - 8 * B), 24);
}
QUANTRY_INLINE void prefetch(const void* p) { _mm_prefetch(static_cast<const char*>(p), _MM_HINT_T0); }

// vpmaddubsw saturates at 2^15; 2 · 127 · 127 stays below.
QUANTRY_INLINE vi dot4(vi a, vc w, int32_t x) {
  __m256i pairs = _mm256_maddubs_epi16(w, _mm256_set1_epi32(x));
  return a + (vi)_mm256_madd_epi16(pairs, _mm256_set1_epi16(1));
}
// |q| ≤ 128 as the unsigned operand and x with q's sign: 2 · 128 · 127 stays below 2^15 too.
QUANTRY_INLINE vi dot4_full(vi a, vc w, int32_t x) {
  __m256i q = _mm256_xor_si256(w, _mm256_set1_epi8(static_cast<char>(0x80)));
  __m256i pairs = _mm256_maddubs_epi16(_mm256_abs_epi8(q), _mm256_sign_epi8(_mm256_set1_epi32(x), q));
  return a + (vi)_mm256_madd_epi16(pairs, _mm256_set1_epi16(1));
}
QUANTRY_INLINE vi dot2(vi a, vi w, int32_t x) {
  return a + (vi)_mm256_madd_epi16((__m256i)w, _mm256_set1_epi32(x));
}

QUANTRY_INLINE vi load_u8(const uint8_t* p) {
  return (vi)_mm256_cvtepu8_epi32(_mm_loadl_epi64(reinterpret_cast<const __m128i*>(p)));
}
QUANTRY_INLINE vi load_u16(const uint8_t* p) {
  return (vi)_mm256_cvtepu16_epi32(_mm_loadu_si128(reinterpret_cast<const __m128i*>(p)));
}
QUANTRY_INLINE vf bits_float(vi x) { return _mm256_castsi256_ps((__m256i)x); }
QUANTRY_INLINE vf where_equal(vi x, int32_t c, vf yes, vf no) {
  return _mm256_blendv_ps(no, yes, _mm256_castsi256_ps(_mm256_cmpeq_epi32((__m256i)x, _mm256_set1_epi32(c))));
}

constexpr bool kFloatTables = false;   // table_bytes and a conversion are cheaper than two permutations and a blend

template <int Pos>
QUANTRY_INLINE vf table_float(const float* table, vc v) {
  const __m256i i = Pos > 0 ? _mm256_srli_epi32(v, Pos) : v;
  const vf low = _mm256_permutevar8x32_ps(_mm256_load_ps(table), i), high = _mm256_permutevar8x32_ps(_mm256_load_ps(table + 8), i);
  return _mm256_blendv_ps(low, high, _mm256_castsi256_ps(_mm256_slli_epi32(v, 28 - Pos)));
}

// Byte B of each lane as an E4M3 float without its NaN (480 instead); wants KeepSubnormals.
template <int B>
QUANTRY_INLINE vf e4m3_float(vc v) {
  if constexpr (B < 3) v = _mm256_slli_epi32(v, 24 - 8 * B);
  v = _mm256_and_si256(_mm256_srai_epi32(v, 4), _mm256_set1_epi32(static_cast<int>(0x87f00000)));
  return _mm256_mul_ps(_mm256_castsi256_ps(v), _mm256_set1_ps(0x1p120f));
}
template <int B>
QUANTRY_INLINE vf e5m2_float(vc v) {   // the upper byte of an f16
  if constexpr (B == 0) v = _mm256_slli_epi32(v, 8);
  if constexpr (B > 1) v = _mm256_srli_epi32(v, 8 * B - 8);
  v = _mm256_and_si256(v, _mm256_set1_epi32(0xff00));
  v = _mm256_permute4x64_epi64(_mm256_packus_epi32(v, v), 0x08);
  return _mm256_cvtph_ps(_mm256_castsi256_si128(v));
}

template <int B>
QUANTRY_INLINE vf byte_float(vc v) { return to_float(signed_byte<B>(v)); }
template <int Bits, int Zero, int Pos>
QUANTRY_INLINE vf field_float(vc v) {
  vf q = to_float((vi)_mm256_and_si256(_mm256_srli_epi32(v, Pos), _mm256_set1_epi32((1 << Bits) - 1)));
  return Zero == 0 ? q : _mm256_sub_ps(q, _mm256_set1_ps(Zero));
}

QUANTRY_INLINE float one_half(uint16_t h) { return _cvtsh_ss(h); }
QUANTRY_INLINE vi load_i8(const int8_t* p) {
  return (vi)_mm256_cvtepi8_epi32(_mm_loadl_epi64(reinterpret_cast<const __m128i*>(p)));
}

constexpr int kSpan = 32;
using vb = __m256i;
struct SignedSpan {
  __m256i magnitude, sign;   // sign: any bytes that have it
};
QUANTRY_INLINE vb load_span(const void* p) { return _mm256_loadu_si256(static_cast<const __m256i*>(p)); }
QUANTRY_INLINE vb set_span(int x) { return _mm256_set1_epi8(static_cast<char>(x)); }
QUANTRY_INLINE vb sub_span(vb a, vb b) { return _mm256_sub_epi8(a, b); }
QUANTRY_INLINE vb add_eights(vb v, uint32_t where, int x) {
  const __m256i bits = _mm256_set_epi64x(8, 4, 2, 1);
  __m256i chosen = _mm256_cmpeq_epi64(_mm256_and_si256(_mm256_set1_epi64x(where), bits), bits);
  return _mm256_add_epi8(v, _mm256_and_si256(chosen, set_span(x)));
}
template <class Word>
QUANTRY_INLINE vb span_of_8(const Word& w) { return _mm256_set_epi64x(w(3), w(2), w(1), w(0)); }
template <class Word>
QUANTRY_INLINE vb span_of_4(const Word& w) { return _mm256_set_epi32(w(7), w(6), w(5), w(4), w(3), w(2), w(1), w(0)); }
QUANTRY_INLINE SignedSpan signed_span(vb codes) { return {_mm256_abs_epi8(codes), codes}; }
QUANTRY_INLINE SignedSpan signed_span(vb magnitude, uint64_t negative) {
  const __m256i spread = _mm256_set_epi64x(0x0303030303030303, 0x0202020202020202, 0x0101010101010101, 0);
  const __m256i bits = _mm256_set1_epi64x(static_cast<int64_t>(0x8040201008040201));
  __m256i bytes = _mm256_shuffle_epi8(_mm256_set1_epi32(static_cast<int>(negative)), spread);
  return {magnitude, _mm256_or_si256(_mm256_cmpeq_epi8(_mm256_and_si256(bytes, bits), bits), _mm256_set1_epi8(1))};
}
QUANTRY_INLINE void store_span(int8_t* p, const SignedSpan& w) {
  _mm256_storeu_si256(reinterpret_cast<__m256i*>(p), _mm256_sign_epi8(w.magnitude, w.sign));
}
QUANTRY_INLINE vb scale_span(const uint8_t* scales) {   // a 16-bit copy for each pair of columns
  return _mm256_set_m128i(_mm_set1_epi16(scales[1]), _mm_set1_epi16(scales[0]));
}
QUANTRY_INLINE vi dot_span(vi a, const SignedSpan& w, vb x, vb scales) {
  __m256i pairs = _mm256_maddubs_epi16(w.magnitude, _mm256_sign_epi8(x, w.sign));
  return a + (vi)_mm256_madd_epi16(pairs, scales);
}

constexpr int kTilePanels = 1;
constexpr int kRowsInt8 = 2;         // 2 × 2 i32 and 2 × 2 f32 accumulators; the dot needs four more registers
constexpr int kRowsFloat = 6;        // 6 × 2 accumulators, 2 weights, 1 activation
constexpr int kSmallRowsInt8 = 2;
constexpr int kSmallRowsSixBit = 2;
constexpr int kSmallRowsFloat = 4;

QUANTRY_END
