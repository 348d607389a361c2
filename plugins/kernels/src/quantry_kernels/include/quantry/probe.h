// What the machine can do at most, with the kernels' own instructions: bytes read in one stream per thread with the
// prefetch of the panel kernels, and products per second of dot products that never leave the registers.
#pragma once
#include "probe_ops.h"
#include "simd.h"
#include "threads.h"

QUANTRY_BEGIN

constexpr int kProbeSums = 12;   // independent chains: more than latency × units of every core we know
constexpr int kProbeDots = kLanes == 8 ? 6 : 12;   // AVX2's chains are short, its registers few
constexpr int kProbeLine = 64;
constexpr int kProbeStep = 2 * kProbeLine;   // bytes read between two requests
constexpr int kProbeAhead = 2048;            // kPrefetchBytes of the panel kernels

// OR instead of a sum: one instruction a vector, on any port.
QUANTRY_NOINLINE int32_t read_stream(const uint8_t* p, int64_t bytes) {
  constexpr int vectors = kProbeStep / kStripBytes;
  vc seen[2] = {as_codes(zero_int()), as_codes(zero_int())};
  for (int64_t at = 0; at + kProbeStep <= bytes; at += kProbeStep) {
    prefetch(p + at + kProbeAhead);
    prefetch(p + at + kProbeAhead + kProbeLine);
    repeat<vectors>([&](auto i) QUANTRY_LAMBDA {
      seen[i % 2] = or_codes(seen[i % 2], load_codes(p + at + i * kStripBytes));
    });
  }
  return sum_lanes_int(as_int(or_codes(seen[0], seen[1])));
}

inline int32_t probe_read(const uint8_t* p, int64_t bytes, int threads) {
  volatile int32_t all = 0;
  parallel(threads, [&](Team team) {
    Range steps = team.share(bytes / kProbeStep);
    all = read_stream(p + steps.begin * kProbeStep, (steps.end - steps.begin) * kProbeStep);
  });
  return all;
}

// Weights change with every turn, so that no compiler sums the series in closed form; they stay in L1.
struct ProbeData {
  alignas(64) uint8_t codes[16 * kProbeLine];
  alignas(64) float floats[16 * 16];

  ProbeData() {
    for (int i = 0; i < 16 * kProbeLine; ++i) codes[i] = static_cast<uint8_t>(i * 7 & 0x3f);
    for (int i = 0; i < 16 * 16; ++i) floats[i] = 0.25f + static_cast<float>(i & 3) * 0.125f;   // sums converge
  }
};

QUANTRY_NOINLINE int64_t peak_int8(const ProbeData& data, int64_t rounds) {
  vi sums[kProbeDots];
  repeat<kProbeDots>([&](auto i) QUANTRY_LAMBDA { sums[i] = zero_int(); });
  for (int64_t r = 0; r < rounds; ++r) {
    vc w = load_codes(data.codes + (r & 15) * kProbeLine);
    // equal factors would be multiplied once
    repeat<kProbeDots>([&](auto i) QUANTRY_LAMBDA { sums[i] = dot4(sums[i], w, 0x02fd01f0 + i); });
  }
  volatile int32_t needed = 0;
  repeat<kProbeDots>([&](auto i) QUANTRY_LAMBDA { needed = needed + sum_lanes_int(sums[i]); });
  return rounds * kProbeDots * kLanes * 4 * 2;
}

QUANTRY_NOINLINE int64_t peak_float(const ProbeData& data, int64_t rounds) {
  vf sums[kProbeSums];
  repeat<kProbeSums>([&](auto i) QUANTRY_LAMBDA { sums[i] = set1(static_cast<float>(i)); });
  for (int64_t r = 0; r < rounds; ++r) {
    vf w = load(data.floats + (r & 15) * 16);
    repeat<kProbeSums>([&](auto i) QUANTRY_LAMBDA { sums[i] = fma(sums[i], w, w); });
  }
  volatile float needed = 0;
  repeat<kProbeSums>([&](auto i) QUANTRY_LAMBDA { needed = needed + sum_lanes(sums[i]); });
  return rounds * kProbeSums * kLanes * 2;
}

#if QUANTRY_IS(QUANTRY_TARGET) == 3
#define QUANTRY_HAS_BF16_PEAK 1
// The one function that uses AVX-512 BF16; compiled for it alone and called where the processor says it is there.
__attribute__((noinline, target("avx512bf16"))) int64_t peak_bf16(const ProbeData& data, int64_t rounds) {
  __m512 sums[kProbeSums];
  for (int i = 0; i < kProbeSums; ++i) sums[i] = _mm512_set1_ps(static_cast<float>(i));
  for (int64_t r = 0; r < rounds; ++r) {
    __m512bh w = (__m512bh)_mm512_loadu_si512(data.codes + (r & 15) * kProbeLine);   // subnormal numbers: read as zeros
#pragma GCC unroll 12
    for (int i = 0; i < kProbeSums; ++i) sums[i] = _mm512_dpbf16_ps(sums[i], w, w);
  }
  volatile float needed = 0;
#pragma GCC unroll 12
  for (int i = 0; i < kProbeSums; ++i) needed = needed + _mm512_reduce_add_ps(sums[i]);
  return rounds * kProbeSums * 32 * 2;
}
#endif

inline int64_t probe_peak(int kind, int64_t rounds, int threads) {
#ifdef QUANTRY_HAS_BF16_PEAK
  if (kind == QUANTRY_PEAK_BF16 && !__builtin_cpu_supports("avx512bf16")) return 0;
#else
  if (kind == QUANTRY_PEAK_BF16) return 0;
#endif
  int64_t done = 0;
  parallel(threads, [&](Team team) {
    ProbeData data;
    int64_t mine = 0;
    if (kind == QUANTRY_PEAK_INT8) mine = peak_int8(data, rounds);
    else if (kind == QUANTRY_PEAK_F32) mine = peak_float(data, rounds);
#ifdef QUANTRY_HAS_BF16_PEAK
    else mine = peak_bf16(data, rounds);
#endif
    if (team.id == 0) done = mine * team.count;
  });
  return done;
}

QUANTRY_END
