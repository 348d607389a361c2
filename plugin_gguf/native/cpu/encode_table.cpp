// Encoders of IQ4_NL and IQ4_XS, whose codes stand for the sixteen levels of a table. Rules: ggml-quants.c.
#include <quantry/target.h>

#include "encode.h"
#include "encode_search.h"

QUANTRY_BEGIN

constexpr int kColumns = 32, kLevels = 16;
constexpr float kLevel[kLevels] = {-127, -104, -83, -65, -49, -35, -22, -10, 1, 13, 25, 38, 53, 69, 89, 113};
constexpr float kLast = kLevel[kLevels - 1];

constexpr float middle(int i) { return (kLevel[i] + kLevel[i + 1]) / 2; }   // a number there goes up

// Code of the nearest level. ggml compares distances in float32, which is exact near each middle. A NaN goes to the last.
QUANTRY_INLINE Ints nearest_level(Floats v) {
  Ints code = Ints{} + (kLevels - 1);
  for (int i = 0; i < kLevels - 1; i++) code += v < middle(i);
  return code;
}

#if defined(__AVX512F__)
// By eighths: no two middles are within 8 of each other, so that each run of 8 has two levels at most.
struct Eighths {
  alignas(64) float middle[32], below[32], above[32];
  constexpr Eighths() : middle(), below(), above() {
    for (int n = 0; n < 32; n++) {   // n: numbers round to 8·(n - 16)
      const float low = 8.0f * static_cast<float>(n - 16) - 4;
      int i = 0;
      while (i < kLevels - 2 && quantry::QUANTRY_TARGET::middle(i) < low) i++;   // the first middle not below the run
      middle[n] = quantry::QUANTRY_TARGET::middle(i);
      below[n] = kLevel[i];
      above[n] = kLevel[i + 1];
    }
  }
};
constexpr Eighths kEighths;

QUANTRY_INLINE Floats entry(const float (&table)[32], Ints i) {
  return (Floats)_mm512_permutex2var_ps((__m512)read(table), (__m512i)i, (__m512)read(table + 16));
}

// The nearest level of a number.
QUANTRY_INLINE Floats level_of(Floats v) {
  const Ints run = (Ints)(least(most(v, all(-119)), all(119)) * 0.125f + (12582912.0f + 16));   // its low bits
  return pick(v < entry(kEighths.middle, run), entry(kEighths.below, run), entry(kEighths.above, run));
}
#else
QUANTRY_INLINE Floats level_of(Floats v) {
  Floats level = all(kLevel[0]);
  for (int i = 0; i < kLevels - 1; i++) level += pick(v < middle(i), Floats{}, all(kLevel[i + 1] - kLevel[i]));
  return level;
}
#endif

// x ≈ scale · level with the least Σ weight · error², by the scale of 1 + 15 trials.
QUANTRY_NOINLINE void fit_levels(const Tile<kColumns>& t, int at, float (&scales)[kTile]) {
  Floats top = {}, extreme = {};
  for (int i = 0; i < kColumns; i++) {
    Floats v = read(&t.x[i][at]);
    Ints more = magnitude(v) > top;
    top = pick(more, magnitude(v), top);
    extreme = pick(more, v, extreme);
  }
  const Ints zero = top < 1e-15f;
  Floats scale = {}, best = {};
  for (int s = -8; s <= 7; s++) {
    const bool start = s == -8;   // the extreme on the first level, taken whatever its error
    const Floats inverse = start ? 1.0f / (-extreme / kLevel[0]) : (static_cast<float>(s) + kLevel[0]) / extreme;
    Floats sum_qx = {}, sum_q2 = {};
    for (int i = 0; i < kColumns; i++) {
      const Floats x = read(&t.x[i][at]), q = level_of(inverse * x), wq = read(&t.weight[i][at]) * q;
      sum_qx += wq * x;
      sum_q2 += wq * q;
    }
    const Ints some = sum_q2 > 0.0f;
    const Ints better = start ? Ints{} - 1 : some & (sum_qx * sum_qx > best * sum_q2);
    const Floats refit = start ? pick(some, sum_qx / sum_q2, Floats{}) : sum_qx / sum_q2;
    scale = pick(better, refit, scale);
    best = pick(better, refit * sum_qx, best);
  }
  write(&scales[at], pick(zero, Floats{}, scale));
}

QUANTRY_INLINE void fill(Tile<kColumns>& t, const Lanes& lanes, int offset, const float (&sigma2)[kTile]) {
  gather(lanes.x, offset, t.x);
  if (lanes.importance[0]) {
    gather(lanes.importance, offset, t.weight);
    return weigh(t, sigma2);
  }
  for (int i = 0; i < kColumns; i++)
    for (int at = 0; at < kTile; at += kWide) {
      Floats x = read(&t.x[i][at]);
      write(&t.weight[i][at], x * x);
    }
}

// Nibbles of j and j+16 in a byte.
QUANTRY_INLINE void put_levels(const float* x, float inverse, uint8_t* to) {
  for (int i = 0; i < 16; i += kWide)
    write_bytes(to + i, nearest_level(read(x + i) * inverse) | nearest_level(read(x + 16 + i) * inverse) << 4);
}

QUANTRY_INLINE float inverse_of(float d) { return d != 0 ? 1 / d : 0; }

// Calls search(lanes, sigma2) and write(x, lane, out) for blocks of `kBlock` columns, sixteen by sixteen.
template <int kBlock, int kBytes, class Search, class Write>
QUANTRY_INLINE void each_block(const EncodeJob& job, const Search& search, const Write& write) {
  for (int64_t b = job.first, end = b + job.count; b < end; b += kTile) {
    const Lanes lanes(job.x + b * kBlock, job.importance, b * kBlock % job.columns, job.columns, end - b, kBlock);
    alignas(64) float sigma2[kTile];
    if (job.importance) square_sums(lanes.x, kBlock, sigma2);
    for (float& sum : sigma2) sum *= 2.0f / kBlock;
    search(lanes, sigma2);
    for (int s = 0; s < lanes.count; s++) write(lanes.x[s], s, job.out + (b + s) * kBytes);
  }
}

void iq4_nl(const EncodeJob& job) {
  Tile<kColumns> tile;
  alignas(64) float d[kTile];
  each_block<kColumns, 18>(
      job,
      [&](const Lanes& lanes, const float (&sigma2)[kTile]) QUANTRY_LAMBDA {
        fill(tile, lanes, 0, sigma2);
        for (int at = 0; at < kTile; at += kWide) fit_levels(tile, at, d);
      },
      [&](const float* x, int s, uint8_t* out) QUANTRY_LAMBDA {
        put_half(out, d[s]);
        put_levels(x, inverse_of(d[s]), out + 2);   // of the float32 d
      });
}

void iq4_xs(const EncodeJob& job) {
  Tile<kColumns> tile;
  alignas(64) float scales[8][kTile];
  each_block<256, 136>(
      job,
      [&](const Lanes& lanes, const float (&sigma2)[kTile]) QUANTRY_LAMBDA {
        for (int j = 0; j < 8; j++) {
          fill(tile, lanes, 32 * j, sigma2);
          for (int at = 0; at < kTile; at += kWide) fit_levels(tile, at, scales[j]);
        }
      },
      [&](const float* x, int s, uint8_t* out) QUANTRY_LAMBDA {
        float extreme = 0;
        for (int j = 0; j < 8; j++) extreme = magnitude(scales[j][s]) > magnitude(extreme) ? scales[j][s] : extreme;
        const float d = -extreme / 32, inverse = inverse_of(d);
        put_half(out, d);
        int high = 0;
        memset(out + 4, 0, 4);
        for (int j = 0; j < 8; j++) {
          int l = nearest(inverse * scales[j][s]);
          l = l < -32 ? -32 : l > 31 ? 31 : l;
          put_levels(x + 32 * j, inverse_of(d * static_cast<float>(l)), out + 8 + 16 * j);
          out[4 + j / 2] |= static_cast<uint8_t>(((l + 32) & 15) << 4 * (j % 2));
          high |= (l + 32) >> 4 << 2 * j;
        }
        const uint16_t two_bits = static_cast<uint16_t>(high);
        memcpy(out + 2, &two_bits, 2);
      });
}

QUANTRY_END

namespace quantry {
namespace QUANTRY_TARGET {
void encode_iq4_nl(const EncodeJob& job) { iq4_nl(job); }
void encode_iq4_xs(const EncodeJob& job) { iq4_xs(job); }
}
}
