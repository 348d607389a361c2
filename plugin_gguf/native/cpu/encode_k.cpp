// Encoders of Q2_K, Q4_K and Q5_K, super-blocks of scales and mins. Rules: ggml-quants.c; layouts: ggml-common.h.
#include <quantry/target.h>

#include "encode_super.h"

QUANTRY_BEGIN

// Scales or mins to the codes of their super-block, where kTop stands for the largest. Codes are bytes that wrap.
template <int kTop, bool kClamp, int kSubs>
QUANTRY_INLINE void share_of_largest(const float (&x)[kSubs][kTile], int32_t (&codes)[kSubs][kTile], float (&d)[kTile]) {
  for (int at = 0; at < kTile; at += kWide) {
    Floats max = {};
    for (int j = 0; j < kSubs; j++) max = pick(read(&x[j][at]) > max, read(&x[j][at]), max);
    const float top = kTop;
    const Floats inverse = pick(max > 0.0f, top / max, Floats{});
    for (int j = 0; j < kSubs; j++) {
      const Ints l = nearest(inverse * read(&x[j][at])) & 255;
      write(&codes[j][at], kClamp ? clamp(l, 0, kTop) : l);
    }
    write(&d[at], max / top);
  }
}

// The searched sub-blocks of sixteen super-blocks, and what is stored of them.
template <int kSubs>
struct Affine {
  Fit fits[kSubs];
  alignas(64) int32_t scales[kSubs][kTile], mins[kSubs][kTile];
  alignas(64) float d[kTile], dmin[kTile];

  template <int kTop, bool kClamp>
  QUANTRY_INLINE void share(bool weighted) {
    Tile<kSubs> t;
    collect(fits, &Fit::scale, t.x);
    if (!weighted) {
      share_of_largest<kTop, kClamp>(t.x, scales, d);
      collect(fits, &Fit::min, t.x);
      return share_of_largest<kTop, kClamp>(t.x, mins, dmin);
    }
    collect(fits, &Fit::weight, t.weight);
    for (int at = 0; at < kTile; at += kWide) fit_positive<kTop>(t, at, scales, d);
    collect(fits, &Fit::min, t.x);
    for (int at = 0; at < kTile; at += kWide) fit_positive<kTop>(t, at, mins, dmin);
  }
};

// The stored scale of a sub-block: where it is zero, the codes of the search stay.
struct Stored {
  float scale, min;
};

template <int kTop>
QUANTRY_INLINE Ints affine_code(const Stored& stored, const Fit& fit, int lane, Floats x) {
  if (stored.scale == 0) return affine_code<kTop>(fit, lane, x);
  return clamp(nearest((x + stored.min) / stored.scale), 0, kTop);
}

void q2_k(const EncodeJob& job) {
  Affine<16> found;
  each_super<84>(
      job,
      [&](const Lanes& lanes) QUANTRY_LAMBDA {
        Tile<16> tile;
        alignas(64) float sigma2[kTile];
        const bool weighted = job.importance;
        if (weighted) mean_squares(lanes, 1, sigma2);
        for (int j = 0; j < 16; j++) {
          fill(tile, lanes, 16 * j, sigma2, [&](Tile<16>& t) QUANTRY_LAMBDA {
            for (int i = 0; i < 16; i++)
              for (int at = 0; at < kTile; at += kWide) write(&t.weight[i][at], magnitude(read(&t.x[i][at])));
          });
          for (int at = 0; at < kTile; at += kWide) {
            if (weighted) fit_affine<3, false>(tile, at, {-0.9f, 0.05f, 36}, found.fits[j]);
            else fit_affine<3, true>(tile, at, {-0.5f, 0.1f, 15}, found.fits[j]);
          }
        }
        found.share<15, false>(weighted);
      },
      [&](const float* x, int s, uint8_t* out) QUANTRY_LAMBDA {
        put_half(out + 80, found.d[s]);
        put_half(out + 82, found.dmin[s]);
        const float d = get_half(out + 80), dmin = get_half(out + 82);
        Stored stored[16];
        for (int j = 0; j < 16; j++) {
          out[j] = static_cast<uint8_t>(found.scales[j][s] | found.mins[j][s] << 4);
          stored[j] = {d * static_cast<float>(out[j] & 15), dmin * static_cast<float>(out[j] >> 4)};
        }
        each_four(
            [&](int k, int i) QUANTRY_LAMBDA { return affine_code<3>(stored[k], found.fits[k], s, read(x + i)); },
            [&](int h, int l, const Ints (&c)[4]) QUANTRY_LAMBDA { put_pairs(out + 16 + 32 * h + l, c); });
      });
}

// The eight 6-bit scales and mins of Q4_K and Q5_K in 12 bytes.
QUANTRY_INLINE void put_scales(const uint8_t (&scale)[8], const uint8_t (&min)[8], uint8_t* to) {
  memcpy(to, scale, 4);
  memcpy(to + 4, min, 4);
  for (int j = 4; j < 8; j++) {
    to[j + 4] = static_cast<uint8_t>((scale[j] & 15) | (min[j] & 15) << 4);
    to[j - 4] |= static_cast<uint8_t>(scale[j] >> 4 << 6);
    to[j] |= static_cast<uint8_t>(min[j] >> 4 << 6);
  }
}

QUANTRY_INLINE Stored get_scale(const uint8_t* s, int j) {
  const bool low = j < 4;
  return {static_cast<float>(low ? s[j] & 63 : (s[j + 4] & 15) | s[j - 4] >> 6 << 4),
          static_cast<float>(low ? s[j + 4] & 63 : s[j + 4] >> 4 | s[j] >> 6 << 4)};
}

// sqrt(mean of x²) + |x|
QUANTRY_INLINE void weigh_by_size(Tile<32>& t) {
  for (int at = 0; at < kTile; at += kWide) {
    Floats sum = {};
    for (int i = 0; i < 32; i++) sum += read(&t.x[i][at]) * read(&t.x[i][at]);
    const Floats mean = root(sum / 32.0f);
    for (int i = 0; i < 32; i++) write(&t.weight[i][at], mean + magnitude(read(&t.x[i][at])));
  }
}

// Q4_K (kTop 15), Q5_K (31).
template <int kTop>
void q45_k(const EncodeJob& job) {
  constexpr Steps kPlain = kTop == 31 ? Steps{-0.5f, 0.1f, 15} : Steps{-1.0f, 0.1f, 20};
  Affine<8> found;
  each_super<kTop == 31 ? 176 : 144>(
      job,
      [&](const Lanes& lanes) QUANTRY_LAMBDA {
        Tile<32> tile;
        alignas(64) float sigma2[kTile];
        if (job.importance) mean_squares(lanes, 2, sigma2);
        for (int j = 0; j < 8; j++) {
          fill(tile, lanes, 32 * j, sigma2, [](Tile<32>& t) QUANTRY_LAMBDA { weigh_by_size(t); });
          const Steps steps = job.importance ? Steps{-0.9f, 0.05f, 36} : kPlain;
          for (int at = 0; at < kTile; at += kWide) fit_affine<kTop, false>(tile, at, steps, found.fits[j]);
        }
        found.template share<63, true>(job.importance);
      },
      [&](const float* x, int s, uint8_t* out) QUANTRY_LAMBDA {
        put_half(out, found.d[s]);
        put_half(out + 2, found.dmin[s]);
        const float d = get_half(out), dmin = get_half(out + 2);
        uint8_t scales[8], mins[8];
        for (int j = 0; j < 8; j++) {
          scales[j] = static_cast<uint8_t>(found.scales[j][s]);
          mins[j] = static_cast<uint8_t>(found.mins[j][s]);
          if (kTop == 31) {   // ggml clamps the wrapped bytes of Q5_K only
            scales[j] = scales[j] < 63 ? scales[j] : 63;
            mins[j] = mins[j] < 63 ? mins[j] : 63;
          }
        }
        put_scales(scales, mins, out + 4);
        Stored stored[8];
        for (int j = 0; j < 8; j++) {
          stored[j] = get_scale(out + 4, j);
          stored[j] = {d * stored[j].scale, dmin * stored[j].min};
        }
        uint8_t* qs = out + (kTop == 31 ? 48 : 16);
        for (int l = 0; l < 32; l += kWide) {
          Ints high = {};
          for (int p = 0; p < 4; p++) {
            Ints c[2];
            repeat<2>([&](auto i) QUANTRY_LAMBDA {
              const int j = 2 * p + i;
              c[i] = affine_code<kTop>(stored[j], found.fits[j], s, read(x + 32 * j + l));
            });
            high |= (c[0] >> 4 | c[1] >> 4 << 1) << 2 * p;
            write_bytes(qs + 32 * p + l, (c[0] & 15) | c[1] << 4);
          }
          if (kTop == 31) write_bytes(out + 16 + l, high);
        }
      });
}

QUANTRY_END

namespace quantry {
namespace QUANTRY_TARGET {
void encode_q2_k(const EncodeJob& job) { q2_k(job); }
void encode_q4_k(const EncodeJob& job) { q45_k<15>(job); }
void encode_q5_k(const EncodeJob& job) { q45_k<31>(job); }
}
}
