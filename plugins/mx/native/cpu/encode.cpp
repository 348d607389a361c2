// MX encoders: a power of two per block of 32 from its largest magnitude, then the elements. f32 arithmetic, no contraction.
//
//   e2m1   mistral.rs (mistralrs-quant/src/mxfp4/mod.rs, quantize): exponent floor(log2(largest / 6)), halfway cases up
//   e4m3   OCP microscaling 1.0, 6.3: exponent floor(log2(largest)) − 8, half to even, saturating
//
// Blocks go by batches: the largest of each block, then the scales of the whole batch, one per lane, then the codes.
#include "encode.h"

#include <quantry/dispatch.h>
#include <quantry/encode/across.h>
#include <quantry/encode/e2m1.h>
#include <quantry/encode/e4m3.h>
#include <quantry/encode/pack_bits.h>
#include <quantry/encode/rows.h>

QUANTRY_BEGIN

constexpr int kBatch = 32;   // blocks: 4 KiB of x; a multiple of the lanes
constexpr int kBias = 127;   // of f32's and e8m0's exponents

struct Batch {
  alignas(64) float largest[kBatch], inverse[kBatch];
  alignas(64) int32_t scale[kBatch];
  alignas(64) uint8_t code[kBatch * kMxBlock];
};

// floor(log2f(y)) + 127 of a y whose last seven bits of mantissa are all but full: a logarithm within half a place of the
// next whole number is that number in f32.
int rounded_log2(float y) {
  const int32_t bits = static_cast<int32_t>(bits_of(y)), exponent = bits >> 23;
  const int next = (exponent ? exponent : 1) - kBias + (exponent ? 1 : 0);            // y = 2^next · (1 − short)
  const double rest = static_cast<double>(0x800000 - (bits & 0x7fffff)) * (exponent ? 0x1p-24 : 0x1p-23);
  const double log2 = next - rest * (1 + rest / 2) * 1.4426950408889634;              // two terms of log(1 − rest)
  return static_cast<float>(log2) == static_cast<float>(next) ? next + kBias : exponent;
}

QUANTRY_INLINE Ints exponent_e2m1(Floats most) {
  const Floats y = most / 6.0f;
  Ints exponent = (Ints)y >> 23;
  const Ints full = ((Ints)y & 0x7fff80) == 0x7fff80;
  for (int lane = 0; lane < kWide; lane++)
    if (full[lane]) exponent[lane] = rounded_log2(y[lane]);
  return exponent;
}

template <int Element>
QUANTRY_INLINE void find_scales(int at, Batch& b) {
  const Floats most = read(b.largest + at);
  Ints scale = Element == MX_E2M1 ? exponent_e2m1(most) : ((Ints)most >> 23) - 8;
  scale = scale > 0 ? scale : Ints{};
  scale = most == 0.0f ? Ints{} + kBias : scale;
  write(b.scale + at, scale);
  write(b.inverse + at, (Floats)((2 * kBias - scale) << 23));   // 2^(127 − scale): scales end at 252, all are normal
}

template <int Element>
QUANTRY_INLINE void find_codes(const float* x, int blocks, uint8_t* code, const Batch& b) {
  for (int i = 0; i < blocks; i++) {
    const Floats inverse = all(b.inverse[i]);
    for (int k = i * kMxBlock; k < (i + 1) * kMxBlock; k += kWide) {
      const Floats v = read(x + k) * inverse;
      const Bytes q = __builtin_convertvector(Element == MX_E2M1 ? to_e2m1(v) : to_e4m3(v), Bytes);
      memcpy(code + k, &q, sizeof q);
    }
  }
}

// `first` counts blocks of the matrix.
template <int Element>
void encode_blocks(const float* x, int64_t first, int64_t count, const MxOut& out) {
  Batch b;
  for (int64_t done = 0; done < count; done += kBatch) {
    const int blocks = static_cast<int>(min_of(kBatch, count - done));
    const float* from = x + done * kMxBlock;
    const int64_t block = first + done;
    block_magnitudes<kMxBlock>(from, blocks, kBatch, b.largest);
    for (int at = 0; at < kBatch; at += kWide) find_scales<Element>(at, b);
    for (int i = 0; i < blocks; i++) out.scales[block + i] = static_cast<uint8_t>(b.scale[i]);
    if constexpr (Element == MX_E2M1) {
      find_codes<Element>(from, blocks, b.code, b);
      pack_bits<4>(b.code, blocks * kMxBlock, out.codes + block * (kMxBlock / 2));
    } else {
      find_codes<Element>(from, blocks, out.codes + block * kMxBlock, b);
    }
  }
}

int encode(int element, const QuantryRows& rows, const MxOut& out) {
  const int64_t per_row = rows.columns / kMxBlock;
  return encode_rows(rows, [&](const float* x, int64_t first, int64_t count) {
    if (element == MX_E2M1) encode_blocks<MX_E2M1>(x, first * per_row, count * per_row, out);
    else encode_blocks<MX_E4M3>(x, first * per_row, count * per_row, out);
  });
}

QUANTRY_END

QUANTRY_TABLE(MxEncodeOps, quantry_mx_encode_ops) {quantry::QUANTRY_TARGET::encode};
