// Encoders without a search: TQ1_0, TQ2_0, MXFP4, NVFP4, Q1_0, Q2_0. Rules: ggml-quants.c, ggml-impl.h.
#include <quantry/target.h>

#include "encode.h"
#include "encode_search.h"

QUANTRY_BEGIN

template <int kColumns>
QUANTRY_INLINE float max_magnitude(const float* x) {
  Floats top = magnitude(read(x));
  for (int i = kWide; i < kColumns; i += kWide) top = most(top, magnitude(read(x + i)));
  return largest(top)[0];
}

// lround(x · inverse) + 1 for |x · inverse| <= 1: 0, 1, 2.
QUANTRY_INLINE Ints trit(Floats x, float inverse) {
  const Floats v = x * inverse;
  return 1 - (v >= 0.5f) + (v <= -0.5f);   // a true lane is -1
}

// 1 / the largest magnitude of 256; 0 also where that overflows: C's cast to int makes 0 of what lround returns then.
QUANTRY_INLINE float trit_scale(const float* x, uint8_t* d) {
  const float top = max_magnitude<256>(x), inverse = top != 0 ? 1 / top : 0;
  put_half(d, top);
  return inverse < kInfinity ? inverse : 0;
}

// Trits as a fraction of 243 in 256ths, rounded up: ⌈256 q / 243⌉.
QUANTRY_INLINE Ints fraction(Ints q) { return q + ((13 * q + 242) * 4316 >> 20); }

// `kTrits` trits, `step` columns apart, first the most significant of five.
template <int kTrits>
QUANTRY_INLINE Ints trits(const float* x, int step, float inverse) {
  Ints q = {};
  for (int n = 0; n < 5; n++) q = 3 * q + (n < kTrits ? trit(read(x + n * step), inverse) : Ints{});
  return fraction(q);
}

QUANTRY_INLINE void tq1_0(const float* x, uint8_t* out) {
  const float inverse = trit_scale(x, out + 52);
  for (int m = 0; m < 32; m += kWide) write_bytes(out + m, trits<5>(x + m, 32, inverse));
  for (int m = 0; m < 16; m += kWide) write_bytes(out + 32 + m, trits<5>(x + 160 + m, 16, inverse));
  alignas(64) float rest[4][16] = {};   // the last 16 columns: four bytes of four trits
  for (int n = 0; n < 4; n++) memcpy(rest[n], x + 240 + 4 * n, 16);
  uint8_t bytes[16];
  write_bytes(bytes, trits<4>(rest[0], 16, inverse));
  memcpy(out + 48, bytes, 4);
}

QUANTRY_INLINE void tq2_0(const float* x, uint8_t* out) {
  const float inverse = trit_scale(x, out + 64);
  for (int h = 0; h < 2; h++)
    for (int m = 0; m < 32; m += kWide) {
      Ints q = {};
      for (int n = 0; n < 4; n++) q |= trit(read(x + 128 * h + 32 * n + m), inverse) << 2 * n;
      write_bytes(out + 32 * h + m, q);
    }
}

constexpr float kE2m1[] = {0, 1, 2, 3, 4, 6, 8, 12};   // doubled

// The code of the nearest of ±level·d, of equals the lower magnitude, never -0.
QUANTRY_INLINE Ints e2m1(Floats x, float d) {
  const Floats size = magnitude(x);
  Ints k = {};
  repeat<7>([&](auto i) QUANTRY_LAMBDA { k -= size > (kE2m1[i] + kE2m1[i + 1]) / 2 * d; });
  return k + (((Ints)x < 0) & (k > 0) & 8);
}

// The same where rounding of the distances decides: numbers far above 12·d, or d = 0.
QUANTRY_INLINE Ints e2m1_far(Floats x, float d) {
  const Floats size = magnitude(x);
  Ints k = {};
  Floats best = size;
  for (int i = 1; i < 8; i++) {
    const Floats error = magnitude(kE2m1[i] * d - size);
    const Ints nearer = error < best;
    best = pick(nearer, error, best);
    k = nearer ? Ints{} + i : k;
  }
  return k + (((Ints)x < 0) & (k > 0) & 8);
}

// floor(log2f(x)) of x > 0. Just below a power of two log2f rounds up to it: the closer, the smaller that number's own step.
QUANTRY_INLINE int floor_log2(float x) {
  uint32_t u = bits_of(x);
  if (u < 0x00800000) {   // subnormal
    const int shift = __builtin_clz(u) - 8;
    u = (u << shift) - (static_cast<uint32_t>(shift) << 23);
  }
  const int exponent = (static_cast<int32_t>(u) >> 23) - 127, next = exponent + 1;
  if (next == 0) return exponent;
  const int size = next < 0 ? -next : next - 1;   // log2 is just above it in magnitude, or just below size + 1
  if (size == 0) return exponent;
  const uint32_t missing = 0x00800000 - (u & 0x007fffff);   // of the 24 bits, in units of the last
  const uint32_t most = 0xb17217u >> (__builtin_clz(static_cast<uint32_t>(size)) - 7);   // ln 2 · 2^⌊log2 size⌋
  return missing <= most ? next : exponent;
}

void mxfp4(const EncodeJob& job) {
  alignas(64) float tops[kMany];
  each_group<32>(
      job.x + job.first * 32, job.count,
      [&](const Group<32>& group, int at) QUANTRY_LAMBDA {
        write(tops + at, group.max_magnitude());
        return true;
      },
      [&](auto, const float* x, int s, int64_t b) QUANTRY_LAMBDA {
        uint8_t* out = job.out + (job.first + b) * 17;
        const int exponent = tops[s] > 0 ? floor_log2(tops[s]) - 2 + 127 : 0;
        const uint8_t e = static_cast<uint8_t>(exponent);   // wraps below 2^-125, as in ggml
        const float d = e < 2 ? float_of(0x00200000u << e) : float_of((e - 1u) << 23);   // half of 2^(e-127)
        out[0] = e;
        for (int i = 0; i < 16; i += kWide) write_bytes(out + 1 + i, e2m1(read(x + i), d) | e2m1(read(x + 16 + i), d) << 4);
      });
}

// E4M3 without sign, rounded half up on bit 19; from 248 on, 448.
QUANTRY_INLINE uint8_t to_ue4m3(float x) {
  if (!(x > 0)) return 0;
  if (x >= 248) return 0x7e;
  const uint32_t u = bits_of(x);
  const int exponent = static_cast<int>(u >> 23) - 120;
  if (exponent > 0) return static_cast<uint8_t>((((u >> 19) - (120u << 4)) + 1) >> 1);
  const int mantissa = static_cast<int>(x * 512 + 0.5f);
  return static_cast<uint8_t>(mantissa < 7 ? mantissa : 7);
}

QUANTRY_INLINE float half_of_ue4m3(uint8_t x) {
  const int exponent = x >> 3, mantissa = x & 7;
  return exponent == 0 ? static_cast<float>(mantissa) * 0x1p-10f
                       : float_of(static_cast<uint32_t>(exponent + 119) << 23 | static_cast<uint32_t>(mantissa) << 20);
}

void nvfp4(const EncodeJob& job) {   // by sub-blocks of 16 columns, four a block
  alignas(64) float tops[kMany], sixths[kMany];
  each_group<16>(
      job.x + job.first * 64, 4 * job.count,
      [&](const Group<16>& group, int at) QUANTRY_LAMBDA {
        const Floats top = group.max_magnitude();
        write(tops + at, top);
        write(sixths + at, top / 6.0f);
        return true;
      },
      [&](auto, const float* x, int s, int64_t b) QUANTRY_LAMBDA {
        uint8_t* out = job.out + (job.first + b / 4) * 36;
        const int64_t part = b % 4;
        out[part] = to_ue4m3(sixths[s]);
        const float d = half_of_ue4m3(out[part]);
        alignas(16) uint8_t codes[16];
        const bool near = tops[s] <= 24 * d && d > 0;
        for (int i = 0; i < 16; i += kWide) {
          const Floats v = read(x + i);
          write_bytes(codes + i, near ? e2m1(v, d) : e2m1_far(v, d));
        }
        uint64_t low, high;
        memcpy(&low, codes, 8);
        memcpy(&high, codes + 8, 8);
        low |= high << 4;
        memcpy(out + 4 + 8 * part, &low, 8);
      });
}

QUANTRY_INLINE void q2_0(const float* x, uint8_t* out) {
  const float top = max_magnitude<64>(x), inverse = top > 0 ? 1 / top : 0;
  put_half(out, top);
  alignas(64) uint8_t codes[64];
  for (int i = 0; i < 64; i += kWide)
    write_bytes(codes + i, inverse < kInfinity ? trit(read(x + i), inverse)
                                               : clamp(rounded(read(x + i) * inverse) + 1, 0, 3));
  for (int j = 0; j < 16; j++) {
    uint32_t four;
    memcpy(&four, codes + 4 * j, 4);
    out[2 + j] = static_cast<uint8_t>(four | four >> 6 | four >> 12 | four >> 18);
  }
}

// d = mean of |x|, added in index order: sixteen blocks side by side.
void q1_0(const EncodeJob& job) {
  for (int64_t b = job.first, end = b + job.count; b < end; b += kTile) {
    const Lanes lanes(job.x + b * 128, nullptr, 0, job.columns, end - b, 128);
    alignas(64) float sums[kTile];
    for (int at = 0; at < kTile; at += kWide) {
      Floats sum = {};
      for (int i = 0; i < 128; i += kWide) {
        Floats v[kWide];
        repeat<kWide>([&](auto s) QUANTRY_LAMBDA { v[s] = read(lanes.x[at + s] + i); });
        transpose(v);
        repeat<kWide>([&](auto s) QUANTRY_LAMBDA { sum += magnitude(v[s]); });
      }
      write(&sums[at], sum / 128.0f);
    }
    for (int s = 0; s < lanes.count; s++) {
      uint8_t* out = job.out + (b + s) * 18;
      put_half(out, sums[s]);
      for (int i = 0; i < 128; i += 32) {
        uint32_t bits = 0;
        for (int k = 0; k < 32; k += kWide) bits |= mask_bits(read(lanes.x[s] + i + k) >= 0.0f) << k;
        memcpy(out + 2 + i / 8, &bits, 4);
      }
    }
  }
}

template <void (*kEncode)(const float*, uint8_t*), int kBlock, int kBytes>
QUANTRY_INLINE void each_block(const EncodeJob& job) {
  for (int64_t b = job.first; b < job.first + job.count; b++) kEncode(job.x + b * kBlock, job.out + b * kBytes);
}

QUANTRY_END

namespace quantry {
namespace QUANTRY_TARGET {
void encode_tq1_0(const EncodeJob& job) { each_block<tq1_0, 256, 54>(job); }
void encode_tq2_0(const EncodeJob& job) { each_block<tq2_0, 256, 66>(job); }
void encode_mxfp4(const EncodeJob& job) { mxfp4(job); }
void encode_nvfp4(const EncodeJob& job) { nvfp4(job); }
void encode_q1_0(const EncodeJob& job) { q1_0(job); }
void encode_q2_0(const EncodeJob& job) { each_block<q2_0, 64, 18>(job); }
}
}
