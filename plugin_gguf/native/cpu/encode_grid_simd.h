// The few operations of the grid encoders that vectors of the compiler lack. All intrinsics of these encoders are here.
#pragma once
#include <float.h>
#include <quantry/encode/lanes.h>

#if defined(__AVX2__)
#include <immintrin.h>
#endif

#pragma GCC diagnostic ignored "-Wpsabi"   // vectors pass through inlined functions only

QUANTRY_BEGIN

//   look_up(table, at)    table[at % kWide]; AVX2 and AVX-512 only
//   codes_at(list)        kWide numbers of 16 bits
//   gather_words(from, at)
//   square_root(v)
//   capped(v)             FLT_MAX instead of more, and of NaN
//   least_lanes(v)        one bit for each lane that holds the least value
#if defined(__AVX512F__)
QUANTRY_INLINE Floats look_up(Floats table, Ints at) { return (Floats)_mm512_permutexvar_ps((__m512i)at, (__m512)table); }
QUANTRY_INLINE Ints codes_at(const uint16_t* list) {
  return (Ints)_mm512_cvtepu16_epi32(_mm256_loadu_si256(reinterpret_cast<const __m256i*>(list)));
}
QUANTRY_INLINE Ints gather_words(const uint32_t* from, Ints at) {
  return (Ints)_mm512_i32gather_epi32((__m512i)at, from, 4);
}
QUANTRY_INLINE Floats square_root(Floats v) { return (Floats)_mm512_sqrt_ps((__m512)v); }
QUANTRY_INLINE Floats capped(Floats v) { return (Floats)_mm512_min_ps((__m512)v, _mm512_set1_ps(FLT_MAX)); }
QUANTRY_INLINE uint32_t least_lanes(Floats v) {
  return _mm512_cmp_ps_mask((__m512)v, _mm512_set1_ps(_mm512_reduce_min_ps((__m512)v)), _CMP_EQ_OQ);
}
constexpr Ints kLanes = {0, 1, 2, 3, 4, 5, 6, 7, 8, 9, 10, 11, 12, 13, 14, 15};

#elif defined(__AVX2__)
QUANTRY_INLINE Floats look_up(Floats table, Ints at) { return (Floats)_mm256_permutevar8x32_ps((__m256)table, (__m256i)at); }
QUANTRY_INLINE Ints codes_at(const uint16_t* list) {
  return (Ints)_mm256_cvtepu16_epi32(_mm_loadu_si128(reinterpret_cast<const __m128i*>(list)));
}
QUANTRY_INLINE Ints gather_words(const uint32_t* from, Ints at) {
  return (Ints)_mm256_i32gather_epi32(reinterpret_cast<const int*>(from), (__m256i)at, 4);
}
QUANTRY_INLINE Floats square_root(Floats v) { return (Floats)_mm256_sqrt_ps((__m256)v); }
QUANTRY_INLINE Floats capped(Floats v) { return (Floats)_mm256_min_ps((__m256)v, _mm256_set1_ps(FLT_MAX)); }
QUANTRY_INLINE uint32_t least_lanes(Floats v) {
  __m256 m = _mm256_min_ps((__m256)v, _mm256_permute2f128_ps((__m256)v, (__m256)v, 1));
  m = _mm256_min_ps(m, _mm256_permute_ps(m, 0x4e));
  m = _mm256_min_ps(m, _mm256_permute_ps(m, 0xb1));
  return static_cast<uint32_t>(_mm256_movemask_ps(_mm256_cmp_ps((__m256)v, m, _CMP_EQ_OQ)));
}
constexpr Ints kLanes = {0, 1, 2, 3, 4, 5, 6, 7};

#else
QUANTRY_INLINE Ints codes_at(const uint16_t* list) { return Ints{list[0], list[1], list[2], list[3]}; }
QUANTRY_INLINE Ints gather_words(const uint32_t* from, Ints at) {
  Ints v;
  for (int lane = 0; lane < kWide; lane++) v[lane] = static_cast<int32_t>(from[at[lane]]);
  return v;
}
QUANTRY_INLINE Floats square_root(Floats v) { return root(v); }
QUANTRY_INLINE Floats capped(Floats v) { return pick(v < FLT_MAX, v, all(FLT_MAX)); }
QUANTRY_INLINE uint32_t least_lanes(Floats v) {
  float least = v[0];
  for (int lane = 1; lane < kWide; lane++) least = v[lane] < least ? v[lane] : least;
  uint32_t lanes = 0;
  for (int lane = 0; lane < kWide; lane++) lanes |= static_cast<uint32_t>(v[lane] == least) << lane;
  return lanes;
}
constexpr Ints kLanes = {0, 1, 2, 3};
#endif

QUANTRY_END
