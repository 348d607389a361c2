// Encoders of Q3_K, Q6_K and Q8_K, super-blocks without mins. Rules: ggml-quants.c; layouts: ggml-common.h.
#include <quantry/target.h>

#include "encode_super.h"

QUANTRY_BEGIN

// make_q3_quants: a first rounding, then up to five sweeps that move one code at a time. Codes, less 4, to `codes`;
// `from` is 1 where all x are zero: code 0.
QUANTRY_NOINLINE void fit_q3(const Tile<16>& t, int at, Fit& fit, float (&codes)[16][kTile]) {
  alignas(64) float weighted[16][kWide];
  const auto x = [&](int i) QUANTRY_LAMBDA { return read(&t.x[i][at]); };
  const auto w = [&](int i) QUANTRY_LAMBDA { return read(&t.weight[i][at]); };
  Floats top = {}, extreme = {};
  for (int i = 0; i < 16; i++) {
    const Ints more = magnitude(x(i)) > top;
    top = pick(more, magnitude(x(i)), top);
    extreme = pick(more, x(i), extreme);
    write(weighted[i], w(i) * x(i));
  }
  const Ints zero = top < 1e-15f;
  const Floats inverse = -4.0f / extreme;
  Floats xl = {}, l2 = {};
  for (int i = 0; i < 16; i++) {
    const Floats l = level<-4, 3, true>(inverse * x(i));   // at most 4, whatever a zero lane gives
    write(&codes[i][at], l);
    xl += read(weighted[i]) * l;
    l2 += w(i) * l * l;
  }
  bool changed = true;
  for (int sweep = 0; sweep < 5 && changed; sweep++) {
    changed = false;
    for (int i = 0; i < 16; i++) {
      const Floats wx = read(weighted[i]), old = read(&codes[i][at]);
      const Floats rest_xl = xl - wx * old, rest_l2 = l2 - w(i) * old * old, ratio = x(i) * rest_l2 / rest_xl;
      const Ints same = (level<-4, 3, true>(ratio) == old) & (magnitude(ratio) < 4194304.0f);
      if (everywhere(same | ~(rest_xl > 0.0f) | zero)) continue;   // one code in fifty moves: usually none of the lanes'
      const Floats l = level<-4, 3, false>(ratio), new_xl = rest_xl + wx * l, new_l2 = rest_l2 + w(i) * l * l;
      const Ints better = (rest_xl > 0.0f) & (l != old) & (new_l2 > 0.0f) & (new_xl * new_xl * l2 > xl * xl * new_l2);
      write(&codes[i][at], pick(better, l, old));
      xl = pick(better, new_xl, xl);
      l2 = pick(better, new_l2, l2);
      changed |= anywhere(better & ~zero);
    }
  }
  write(&fit.scale[at], pick(zero | ~(l2 > 0.0f), Floats{}, xl / l2));
  write(&fit.from[at], pick(zero, all(1), Floats{}));
}

// 16 six-bit scales in 12 bytes: low four bits of k and k+8, then the high two of k, k+4, k+8, k+12.
QUANTRY_INLINE void put_q3_scales(const int32_t (&codes)[16][kTile], int s, uint8_t* to) {
  memset(to, 0, 12);
  for (int k = 0; k < 16; k++) {
    to[k % 8] |= static_cast<uint8_t>((codes[k][s] & 15) << 4 * (k / 8));
    to[8 + k % 4] |= static_cast<uint8_t>(codes[k][s] >> 4 << 2 * (k / 4));
  }
}

// The signed scale of largest magnitude, of sixteen sub-blocks. Skips a NaN, as ggml does.
QUANTRY_INLINE Floats extreme_scale(const Fit (&fits)[16], int at) {
  Floats extreme = {};
  for (const Fit& f : fits) {
    const Floats scale = read(&f.scale[at]);
    extreme = pick(magnitude(scale) > magnitude(extreme), scale, extreme);
  }
  return extreme;
}

void q3_k(const EncodeJob& job) {
  Tile<16> tile;
  Fit fits[16];
  alignas(64) float codes[16][16][kTile];   // of the sweeps
  alignas(64) int32_t scales[16][kTile];
  alignas(64) float d[kTile];
  const bool weighted = job.importance;
  each_super<110>(
      job,
      [&](const Lanes& lanes) QUANTRY_LAMBDA {
        if (!weighted) {
          for (int k = 0; k < 16; k++) {
            gather(lanes.x, 16 * k, tile.x);
            square(tile);
            for (int at = 0; at < kTile; at += kWide) fit_q3(tile, at, fits[k], codes[k]);
          }
          for (int at = 0; at < kTile; at += kWide) {
            const Floats extreme = extreme_scale(fits, at), inverse = -32.0f / extreme;
            const Ints some = extreme != 0.0f;
            write(&d[at], pick(some, 1.0f / inverse, Floats{}));
            for (int k = 0; k < 16; k++) {
              const Ints l = nearest(inverse * read(&fits[k].scale[at])) << 24 >> 24;   // through int8, as in ggml
              write(&scales[k][at], some & (clamp(l, -32, 31) + 32));
            }
          }
          return;
        }
        alignas(64) float sigma2[kTile];
        mean_squares(lanes, 2, sigma2);
        for (int k = 0; k < 16; k++) {
          gather(lanes.x, 16 * k, tile.x);
          gather(lanes.importance, 16 * k, tile.weight);
          weigh(tile, sigma2);
          for (int at = 0; at < kTile; at += kWide) fit_symmetric<4>(tile, at, fits[k]);
        }
        collect(fits, &Fit::scale, tile.x);
        collect(fits, &Fit::weight, tile.weight);
        Fit whole;
        for (int at = 0; at < kTile; at += kWide) fit_symmetric<32>(tile, at, whole);
        memcpy(d, whole.scale, sizeof d);
        for (int k = 0; k < 16; k++)
          for (int s = 0; s < lanes.count; s++) scales[k][s] = symmetric_code<32>(whole, s, all(tile.x[k][s]))[0];
      },
      [&](const float* x, int s, uint8_t* out) QUANTRY_LAMBDA {
        put_half(out + 108, d[s]);
        put_q3_scales(scales, s, out + 96);
        float by[16];
        for (int k = 0; k < 16; k++) by[k] = get_half(out + 108) * static_cast<float>(scales[k][s] - 32);
        Ints high = {};
        each_four(
            [&](int k, int i) QUANTRY_LAMBDA {
              if (by[k] != 0) return clamp(nearest(read(x + i) / by[k]), -4, 3) + 4;
              if (weighted) return symmetric_code<4>(fits[k], s, read(x + i));
              Ints found = {};
              for (int lane = 0; lane < kWide && fits[k].from[s] == 0; lane++)
                found[lane] = static_cast<int>(codes[k][i % 16 + lane][s]) + 4;
              return found;
            },
            [&](int h, int l, const Ints (&c)[4]) QUANTRY_LAMBDA {
              const Ints low[4] = {c[0] & 3, c[1] & 3, c[2] & 3, c[3] & 3};
              put_pairs(out + 32 + 32 * h + l, low);
              high = high >> 4 | (c[0] >> 2 << 4 | c[1] >> 2 << 5 | c[2] >> 2 << 6 | c[3] >> 2 << 7);   // of h = 0, then 1
              if (h == 1) write_bytes(out + l, high);
            });
      });
}

void q6_k(const EncodeJob& job) {
  Fit fits[16];
  alignas(64) float extremes[kTile], d[kTile];
  alignas(64) int32_t scales[16][kTile];
  each_super<210>(
      job,
      [&](const Lanes& lanes) QUANTRY_LAMBDA {
        Tile<16> tile;
        for (int k = 0; k < 16; k++) {
          gather(lanes.x, 16 * k, tile.x);
          if (job.importance) gather(lanes.importance, 16 * k, tile.weight);
          else square(tile);
          for (int at = 0; at < kTile; at += kWide) fit_symmetric<32>(tile, at, fits[k]);
        }
        for (int at = 0; at < kTile; at += kWide) {
          const Floats extreme = extreme_scale(fits, at), inverse = -128.0f / extreme;
          write(&extremes[at], extreme);
          write(&d[at], 1.0f / inverse);
          for (int k = 0; k < 16; k++)
            write(&scales[k][at], clamp(nearest(inverse * read(&fits[k].scale[at])), INT32_MIN, 127));
        }
      },
      [&](const float* x, int s, uint8_t* out) QUANTRY_LAMBDA {
        if (magnitude(extremes[s]) < 1e-15f) {
          memset(out, 0, 210);
          return;
        }
        float by[16];
        put_half(out + 208, d[s]);
        for (int k = 0; k < 16; k++) {
          out[192 + k] = static_cast<uint8_t>(scales[k][s]);
          by[k] = get_half(out + 208) * static_cast<float>(static_cast<int8_t>(out[192 + k]));
        }
        each_four(
            [&](int k, int i) QUANTRY_LAMBDA {
              if (by[k] != 0) return clamp(nearest(read(x + i) / by[k]), -32, 31) + 32;
              return symmetric_code<32>(fits[k], s, read(x + i));
            },
            [&](int h, int l, const Ints (&c)[4]) QUANTRY_LAMBDA {
              write_bytes(out + 64 * h + l, (c[0] & 15) | c[2] << 4);
              write_bytes(out + 64 * h + 32 + l, (c[1] & 15) | c[3] << 4);
              const Ints high[4] = {c[0] >> 4, c[1] >> 4, c[2] >> 4, c[3] >> 4};
              put_pairs(out + 128 + 32 * h + l, high);
            });
      });
}

QUANTRY_INLINE void q8_k(const float* x, uint8_t* out) {
  Floats low = read(x), high = low;
  for (int i = kWide; i < kSuper; i += kWide) {
    low = least(low, read(x + i));
    high = most(high, read(x + i));
  }
  const float min = smallest(low)[0], max = largest(high)[0];
  float extreme = max > -min ? max : min;   // of equal magnitudes the first
  for (int i = 0; max == -min && i < kSuper; i++)
    if (magnitude(x[i]) == max) {
      extreme = x[i];
      break;
    }
  if (extreme == 0) {
    memset(out, 0, 292);
    return;
  }
  const float scale = -127.0f / extreme, d = 1 / scale;
  for (int k = 0; k < 16; k++) {
    Ints sum = {};
    for (int i = 0; i < 16; i += kWide) {
      const Ints q = clamp(nearest(scale * read(x + 16 * k + i)), INT32_MIN, 127);
      write_bytes(out + 4 + 16 * k + i, q);
      sum += q << 24 >> 24;   // the byte that is stored
    }
    const int16_t total = static_cast<int16_t>(lane_sum(sum));
    memcpy(out + 260 + 2 * k, &total, 2);
  }
  memcpy(out, &d, 4);
}

QUANTRY_END

namespace quantry {
namespace QUANTRY_TARGET {
void encode_q3_k(const EncodeJob& job) { q3_k(job); }
void encode_q6_k(const EncodeJob& job) { q6_k(job); }
void encode_q8_k(const EncodeJob& job) {
  for (int64_t b = job.first; b < job.first + job.count; b++) q8_k(job.x + b * kSuper, job.out + b * 292);
}
}
}
