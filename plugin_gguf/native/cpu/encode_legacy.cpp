// Encoders of the 32-column blocks Q4_0 … Q8_1. Rules: ggml-quants.c; layouts: ggml-common.h.
#include <quantry/target.h>

#include "encode.h"
#include "encode_search.h"

QUANTRY_BEGIN

constexpr int kColumns = 32;

// 32 codes of 4 or 5 bits: the high bits of all, then nibbles of j and j+16 in a byte.
template <bool kFive, class Code>
QUANTRY_INLINE void put_codes(uint8_t* to, const Code& code) {
  uint32_t high = 0;
  repeat<16 / kWide>([&](auto i) QUANTRY_LAMBDA {
    const Ints low = code(Const<i>{}), up = code(Const<i + 16 / kWide>{});
    if (kFive) high |= mask_bits(low << 27 < 0) << i * kWide | mask_bits(up << 27 < 0) << (16 + i * kWide);
    write_bytes(to + (kFive ? 4 : 0) + i * kWide, (low & 15) | up << 4);
  });
  if (kFive) memcpy(to, &high, 4);
}

// C's cast to int8, then ggml's upper bound; kSmall: of a number below 2^22, where the order does not matter.
template <bool kSmall>
QUANTRY_INLINE Ints byte_code(Floats v, int top) {
  if (kSmall) return __builtin_convertvector(least(v, all(static_cast<float>(top))), Ints);
  return clamp(truncated(v) << 24 >> 24, INT32_MIN, top);
}

QUANTRY_INLINE Floats inverse_of(Floats d) { return pick(d != 0.0f, 1.0f / d, Floats{}); }

// Q4_0, Q5_0: d·(code - half), the value of largest magnitude on code 0.
template <bool kFive>
QUANTRY_INLINE void symmetric(const EncodeJob& job) {
  constexpr int kHalf = kFive ? 16 : 8;
  alignas(64) float ds[kMany], inverses[kMany];
  constexpr int kBytes = kFive ? 22 : 18;
  each_group<kColumns>(
      job.x + job.first * kColumns, job.count,
      [&](const Group<kColumns>& group, int at) QUANTRY_LAMBDA {
        const Floats d = group.extreme() / (kFive ? -16.0f : -8.0f), inverse = inverse_of(d);
        write(ds + at, d);
        write(inverses + at, inverse);
        return everywhere(magnitude(inverse) < kInfinity);
      },
      [&](auto small, const float* x, int s, int64_t b) QUANTRY_LAMBDA {
        uint8_t* out = job.out + (job.first + b) * kBytes;
        put_half(out, ds[s]);
        put_codes<kFive>(out + 2, [&](auto i) QUANTRY_LAMBDA {
          return byte_code<small>(read(x + i * kWide) * inverses[s] + (kHalf + 0.5f), 2 * kHalf - 1);
        });
      });
}

// Q4_1, Q5_1: d·code + m.
template <bool kFive>
QUANTRY_INLINE void affine(const EncodeJob& job) {
  alignas(64) float ds[kMany], mins[kMany], inverses[kMany];
  constexpr int kBytes = kFive ? 24 : 20;
  each_group<kColumns>(
      job.x + job.first * kColumns, job.count,
      [&](const Group<kColumns>& group, int at) QUANTRY_LAMBDA {
        const Floats max = group.max();
        Floats min = group.min();
        for (uint32_t none = mask_bits(min == 0.0f); none; none &= none - 1) {
          const int s = __builtin_ctz(none);
          int i = s * kColumns;
          while (group.x[i] != 0) i++;
          min[s] = group.x[i];   // the first zero decides the sign that is stored
        }
        const Floats d = (max - min) / (kFive ? 31.0f : 15.0f), inverse = inverse_of(d);
        write(ds + at, d);
        write(mins + at, min);
        write(inverses + at, inverse);
        return everywhere((d < kInfinity) & (inverse < kInfinity));
      },
      [&](auto small, const float* x, int s, int64_t b) QUANTRY_LAMBDA {
        uint8_t* out = job.out + (job.first + b) * kBytes;
        put_half(out, ds[s]);
        put_half(out + 2, mins[s]);
        put_codes<kFive>(out + 4, [&](auto i) QUANTRY_LAMBDA {   // ggml does not clamp Q5_1
          return byte_code<small>((read(x + i * kWide) - mins[s]) * inverses[s] + 0.5f, kFive ? 127 : 15);
        });
      });
}

// Q8_0, and Q8_1 with d · Σ codes.
template <bool kSum>
QUANTRY_INLINE void bytes(const EncodeJob& job) {
  alignas(64) float ds[kMany], inverses[kMany];
  constexpr int kBytes = kSum ? 36 : 34;
  each_group<kColumns>(
      job.x + job.first * kColumns, job.count,
      [&](const Group<kColumns>& group, int at) QUANTRY_LAMBDA {
        const Floats d = group.max_magnitude() / 127.0f, inverse = inverse_of(d);
        write(ds + at, d);
        write(inverses + at, inverse);
        return everywhere(inverse < kInfinity);
      },
      [&](auto small, const float* x, int s, int64_t b) QUANTRY_LAMBDA {
        uint8_t* out = job.out + (job.first + b) * kBytes;
        put_half(out, ds[s]);
        Ints total = {};
        repeat<kColumns / kWide>([&](auto i) QUANTRY_LAMBDA {
          const Floats v = read(x + i * kWide) * inverses[s];
          const Ints q = small ? rounded_small(v) : rounded(v);
          write_bytes(out + (kSum ? 4 : 2) + i * kWide, q);
          total += q << 24 >> 24;
        });
        if (kSum) put_half(out + 2, lane_sum(total) * ds[s]);
      });
}

// Σ x² / columns of the rows that hold the blocks b, b+1, …, sixteen rows at a time.
struct RowSquares {
  alignas(64) float sums[kTile];
  int64_t first = 0, last = -1;   // rows in `sums`

  QUANTRY_INLINE float of(const EncodeJob& job, int64_t row) {
    if (row > last) {
      const int64_t end = (job.first + job.count) * kColumns / job.columns - 1;
      const float* rows[kTile];
      first = row;
      last = min_of(first + kTile - 1, end);
      for (int s = 0; s < kTile; s++) rows[s] = job.x + min_of(first + s, last) * job.columns;
      square_sums(rows, job.columns, sums);
      for (float& sum : sums) sum /= static_cast<float>(job.columns);
    }
    return sums[row - first];
  }
};

// Q4_0 … Q5_1 with importance: sigma2 spans the row; the codes of the search are final.
template <bool kFive, bool kAffine>
QUANTRY_INLINE void searched(const EncodeJob& job) {
  constexpr int kBytes = 2 + 16 + (kFive ? 4 : 0) + (kAffine ? 2 : 0), kTop = kFive ? 31 : 15;
  Tile<kColumns> tile;
  Fit fit;
  RowSquares squares;
  for (int64_t b = job.first, end = b + job.count; b < end; b += kTile) {
    const Lanes lanes(job.x + b * kColumns, job.importance, b * kColumns % job.columns, job.columns, end - b, kColumns);
    alignas(64) float sigma2[kTile];
    for (int s = 0; s < kTile; s++)
      sigma2[s] = squares.of(job, (b + (s < lanes.count ? s : lanes.count - 1)) * kColumns / job.columns);
    gather(lanes.x, 0, tile.x);
    gather(lanes.importance, 0, tile.weight);
    weigh(tile, sigma2);
    for (int at = 0; at < kTile; at += kWide) {
      if (kAffine) fit_affine<kTop, false>(tile, at, {-0.9f, 0.05f, 36}, fit);
      else fit_symmetric<(kTop + 1) / 2>(tile, at, fit);
    }
    for (int s = 0; s < lanes.count; s++) {
      uint8_t* out = job.out + (b + s) * kBytes;
      put_half(out, fit.scale[s]);
      if (kAffine) put_half(out + 2, -fit.min[s]);
      put_codes<kFive>(out + (kAffine ? 4 : 2), [&](auto i) QUANTRY_LAMBDA {
        const Floats x = read(lanes.x[s] + i * kWide);
        return kAffine ? affine_code<kTop>(fit, s, x) : symmetric_code<(kTop + 1) / 2>(fit, s, x);
      });
    }
  }
}

template <bool kFive, bool kAffine>
void legacy(const EncodeJob& job) {
  if (job.importance) searched<kFive, kAffine>(job);
  else if (kAffine) affine<kFive>(job);
  else symmetric<kFive>(job);
}

QUANTRY_END

namespace quantry {
namespace QUANTRY_TARGET {
void encode_q4_0(const EncodeJob& job) { legacy<false, false>(job); }
void encode_q4_1(const EncodeJob& job) { legacy<false, true>(job); }
void encode_q5_0(const EncodeJob& job) { legacy<true, false>(job); }
void encode_q5_1(const EncodeJob& job) { legacy<true, true>(job); }
void encode_q8_0(const EncodeJob& job) { bytes<false>(job); }
void encode_q8_1(const EncodeJob& job) { bytes<true>(job); }
}
}
