// Vectors as the block encoders use them: minima in one instruction, lanes to bits and bytes, transposition.
#pragma once
#include <quantry/encode/across.h>
#if defined(__SSE2__)
#include <immintrin.h>
#endif

QUANTRY_BEGIN

// Of numbers; which operand a NaN gives differs. GCC 12 makes a compare and a blend of `a < b ? a : b` with constants.
#if defined(__AVX512F__)
QUANTRY_INLINE Floats least(Floats a, Floats b) { return (Floats)_mm512_min_ps((__m512)a, (__m512)b); }
QUANTRY_INLINE Floats most(Floats a, Floats b) { return (Floats)_mm512_max_ps((__m512)a, (__m512)b); }
#elif defined(__AVX2__)
QUANTRY_INLINE Floats least(Floats a, Floats b) { return (Floats)_mm256_min_ps((__m256)a, (__m256)b); }
QUANTRY_INLINE Floats most(Floats a, Floats b) { return (Floats)_mm256_max_ps((__m256)a, (__m256)b); }
#elif defined(__SSE2__)
QUANTRY_INLINE Floats least(Floats a, Floats b) { return (Floats)_mm_min_ps((__m128)a, (__m128)b); }
QUANTRY_INLINE Floats most(Floats a, Floats b) { return (Floats)_mm_max_ps((__m128)a, (__m128)b); }
#else
QUANTRY_INLINE Floats least(Floats a, Floats b) { return a < b ? a : b; }
QUANTRY_INLINE Floats most(Floats a, Floats b) { return a > b ? a : b; }
#endif

// Bit l is set where lane l of a comparison is true.
QUANTRY_INLINE uint32_t mask_bits(Ints mask) {
#if defined(__AVX512F__)
  return _mm512_movepi32_mask((__m512i)mask);
#elif defined(__AVX2__)
  return static_cast<uint32_t>(_mm256_movemask_ps((__m256)mask));
#elif defined(__SSE2__)
  return static_cast<uint32_t>(_mm_movemask_ps((__m128)mask));
#else
  uint32_t bits = 0;
  for (int lane = 0; lane < kWide; lane++) bits |= static_cast<uint32_t>(mask[lane] & 1) << lane;
  return bits;
#endif
}

constexpr uint32_t kAllBits = (1u << kWide) - 1;

QUANTRY_INLINE bool everywhere(Ints mask) { return mask_bits(mask) == kAllBits; }
QUANTRY_INLINE bool anywhere(Ints mask) { return mask_bits(mask) != 0; }

// The low byte of each lane.
QUANTRY_INLINE void write_bytes(uint8_t* to, Ints v) {
#if defined(__AVX2__) && !defined(__AVX512F__)
  const __m256i pick4 = _mm256_set1_epi32(0x0c080400);
  const __m256i b = _mm256_shuffle_epi8((__m256i)v, pick4);
  const __m128i both = _mm_unpacklo_epi32(_mm256_castsi256_si128(b), _mm256_extracti128_si256(b, 1));
  memcpy(to, &both, 8);
#elif defined(__SSE2__) && !defined(__AVX512F__)
  const __m128i low = (__m128i)(v & 255), words = _mm_packs_epi32(low, low), b = _mm_packus_epi16(words, words);
  memcpy(to, &b, 4);
#else
  Bytes b = __builtin_convertvector(v, Bytes);
  memcpy(to, &b, sizeof b);
#endif
}

// Lanes of a and b in turn, from their lower and upper halves.
template <int N, int... Lane>
struct ZipLanes : ZipLanes<N - 1, N - 1, Lane...> {};
template <int... Lane>
struct ZipLanes<0, Lane...> {
  QUANTRY_INLINE static Floats low(Floats a, Floats b) {
    return __builtin_shufflevector(a, b, (Lane / 2 + Lane % 2 * kWide)...);
  }
  QUANTRY_INLINE static Floats high(Floats a, Floats b) {
    return __builtin_shufflevector(a, b, (kWide / 2 + Lane / 2 + Lane % 2 * kWide)...);
  }
};

// Lane l of vector i becomes lane i of vector l: each round turns the bits of (i, l) by one.
template <int kRounds = kWide>
QUANTRY_INLINE void transpose(Floats (&v)[kWide]) {
  if constexpr (kRounds > 1) {
    Floats next[kWide];
    repeat<kWide / 2>([&](auto i) QUANTRY_LAMBDA {
      next[2 * i] = ZipLanes<kWide>::low(v[i], v[i + kWide / 2]);
      next[2 * i + 1] = ZipLanes<kWide>::high(v[i], v[i + kWide / 2]);
    });
    transpose<kRounds / 2>(next);
    repeat<kWide>([&](auto i) QUANTRY_LAMBDA { v[i] = next[i]; });
  }
}

QUANTRY_INLINE void put_half(uint8_t* p, float x) {
#if defined(__F16C__)
  uint16_t h = x == x ? static_cast<uint16_t>(_cvtss_sh(x, 0)) : 0xfe00;
#else
  uint16_t h = x == x ? to_half(x) : 0xfe00;   // x86's own NaN, which ARM would make positive
#endif
  memcpy(p, &h, 2);
}

QUANTRY_INLINE float get_half(const uint8_t* p) {
  uint16_t h;
  memcpy(&h, p, 2);
  return from_half(h);
}

// Lane s of the result combines all lanes of v[s].
template <class Combine, int kCount>
QUANTRY_INLINE Floats fold(const Floats (&v)[kCount], const Combine& combine) {
  if constexpr (kCount == 1) {
    return v[0];
  } else {
    Floats next[kCount / 2];
    repeat<kCount / 2>([&](auto i) QUANTRY_LAMBDA {
      constexpr int other = i + kCount / 2;
      next[i] = combine(ZipLanes<kWide>::low(v[i], v[other]), ZipLanes<kWide>::high(v[i], v[other]));
    });
    return fold(next, combine);
  }
}

// kWide blocks that lie one after the other, a block per lane.
template <int kColumns>
struct Group {
  const float* x;

  template <class Of, class Combine>
  QUANTRY_INLINE Floats over_columns(const Of& of, const Combine& combine) const {
    Floats v[kWide];
    repeat<kWide>([&](auto s) QUANTRY_LAMBDA {
      v[s] = of(read(x + s * kColumns));
      for (int i = kWide; i < kColumns; i += kWide) v[s] = combine(v[s], of(read(x + s * kColumns + i)));
    });
    return fold(v, combine);
  }
  QUANTRY_INLINE Floats min() const {
    return over_columns([](Floats v) QUANTRY_LAMBDA { return v; },
                        [](Floats a, Floats b) QUANTRY_LAMBDA { return least(a, b); });
  }
  QUANTRY_INLINE Floats max() const {
    return over_columns([](Floats v) QUANTRY_LAMBDA { return v; },
                        [](Floats a, Floats b) QUANTRY_LAMBDA { return most(a, b); });
  }
  QUANTRY_INLINE Floats max_magnitude() const {
    return over_columns([](Floats v) QUANTRY_LAMBDA { return magnitude(v); },
                        [](Floats a, Floats b) QUANTRY_LAMBDA { return most(a, b); });
  }
  // The first of the values of largest magnitude, +0 where all are zero.
  QUANTRY_INLINE Floats extreme() const {
    const Floats low = min(), high = max();
    Floats found = pick(high > -low, high, low);
    for (uint32_t both = mask_bits(high == -low); both; both &= both - 1) {
      const int s = __builtin_ctz(both);
      int i = s * kColumns;
      while (magnitude(x[i]) != high[s]) i++;
      found[s] = high[s] == 0 ? 0 : x[i];
    }
    return found;
  }
};

constexpr int kMany = 4 * kWide;   // groups whose scales are found before any is used: hides the latency of the divisions

// For `count` blocks from x on: scale(group, number of its first block) returns whether the codes of the group are small,
// then write(small, x of a block, its number, its index) is called. Numbers run from 0 to kMany-1 again and again.
template <int kColumns, class Scale, class Write>
QUANTRY_INLINE void each_group(const float* x, int64_t count, const Scale& scale, const Write& write) {
  alignas(64) float rest[kWide * kColumns];
  for (int64_t b = 0; b < count; b += kMany) {
    const int left = static_cast<int>(min_of(kMany, count - b));
    const float* first = x + b * kColumns;
    bool small = true;
    for (int s = 0; s < left; s += kWide) {
      Group<kColumns> group{first + s * kColumns};
      if (left - s < kWide) {
        memset(rest, 0, sizeof rest);
        memcpy(rest, group.x, static_cast<size_t>((left - s) * kColumns) * 4);
        group.x = rest;
      }
      small &= scale(group, s);
    }
    if (__builtin_expect(small, 1)) {
      for (int s = 0; s < left; s++) write(Const<1>{}, first + s * kColumns, s, b + s);
    } else {
      for (int s = 0; s < left; s++) write(Const<0>{}, first + s * kColumns, s, b + s);
    }
  }
}

// roundf of numbers below 2^22: half away from zero. The constant is the number before 0.5, so that it does not carry.
QUANTRY_INLINE Ints rounded_small(Floats v) {
  const Ints half = ((Ints)v & INT32_MIN) | 0x3effffff;
  return __builtin_convertvector(v + (Floats)half, Ints);
}

// Of numbers whose sums are below 2^24: exact in any order.
QUANTRY_INLINE float lane_sum(Ints v) {
  return across(to_floats(v), [](Floats a, Floats b) QUANTRY_LAMBDA { return a + b; })[0];
}

constexpr float kInfinity = __builtin_inff();

QUANTRY_END
