// AFQ encoders: groups of 64 neighbours to codes, a scale and a bias each. f32 arithmetic of the reference, no contraction.
//
// The rules are those of mlx/backend/cpu/quantized.cpp (quantize) and of mistral.rs (mistralrs-quant/src/afq/ops.rs, CPU).
// Groups go by batches: extremes of each group, then scales and biases of all groups of the batch at once, one per lane, then
// the codes, packed when the batch is complete. With importance, scales and biases are searched on from there
// (quantry/encode/weighted_affine.h).
#include "encode.h"

#include <quantry/dispatch.h>
#include <quantry/encode/across.h>
#include <quantry/encode/group_lanes.h>
#include <quantry/encode/pack_bits.h>
#include <quantry/encode/rows.h>
#include <quantry/encode/weighted_affine.h>

QUANTRY_BEGIN

constexpr int kBatch = 16;   // groups: 4 KiB of x; a multiple of the lanes

struct Batch {
  alignas(64) float low[kBatch], high[kBatch], scale[kBatch], bias[kBatch];
  alignas(64) uint8_t code[kBatch * kAfqGroup];
};

// rintf: half to even, whole numbers and Inf as they are.
QUANTRY_INLINE Floats whole(Floats v) {
  const Floats a = magnitude(v), near = (a + 0x1p23f) - 0x1p23f;
  return pick(a < 0x1p23f, (Floats)((Ints)near | ((Ints)v & INT32_MIN)), v);
}

QUANTRY_INLINE void find_extremes(const float* x, int groups, Batch& b) {
  for (int g = 0; g < groups; g++, x += kAfqGroup) {
    Floats low = read(x), high = low;
    for (int i = kWide; i < kAfqGroup; i += kWide) {
      const Floats v = read(x + i);
      low = smaller(low, v);
      high = larger(high, v);
    }
    b.low[g] = smallest(low)[0];
    b.high[g] = largest(high)[0];
  }
  for (int g = groups; g < kBatch; g++) b.low[g] = b.high[g] = 0;
}

// mlx: code 0 is the extreme of larger magnitude, and a code lies next to the value 0.
QUANTRY_INLINE void fit_mlx(float levels, int at, Batch& b) {
  const Floats low = read(b.low + at), high = read(b.high + at);
  const Ints down = magnitude(low) > magnitude(high);
  const Floats step = larger((high - low) / levels, all(1e-7f)), edge = pick(down, low, high);
  const Floats scale = pick(down, step, -step), steps = whole(edge / scale);
  const Ints some = steps != 0.0f;
  write(b.scale + at, pick(some, edge / steps, scale));
  write(b.bias + at, pick(some, edge, Floats{}));
}

// mistral.rs: from the smallest value to the largest.
QUANTRY_INLINE void fit_minmax(float levels, int at, Batch& b) {
  const Floats low = read(b.low + at), range = read(b.high + at) - low;
  write(b.scale + at, pick(range < 1e-12f, all(1.0f), range / levels));
  write(b.bias + at, low + 0.0f);   // −0 becomes 0: which of the two is found depends on the order
}

template <int Rule>
QUANTRY_INLINE void find_codes(const float* x, int groups, float levels, Batch& b) {
  constexpr float kWhole = 12582912.0f;   // 1.5 · 2^23: a sum below 2^24 has its whole part in the low bits
  for (int g = 0; g < groups; g++) {
    const Floats bias = all(b.bias[g]), scale = all(b.scale[g]);
    for (int i = g * kAfqGroup; i < (g + 1) * kAfqGroup; i += kWide) {
      Floats t = (read(x + i) - bias) / scale;
      t = smaller(larger(t, Floats{}), all(levels));   // 0 / 0 of a group that is all bias becomes 0
      Floats sum = t + kWhole;
      Ints q = (Ints)sum & 0xffff;   // an operation on whole numbers: GCC 12 narrows lane by lane without
      if constexpr (Rule == AFQ_MINMAX) q -= t - (sum - kWhole) >= 0.5f;   // half goes up; a true lane is −1
      const Bytes low = __builtin_convertvector(q, Bytes);
      memcpy(b.code + i, &low, sizeof low);
    }
  }
}

// The nearest numbers of type D.
template <int D>
QUANTRY_INLINE Floats as_stored(Floats v) {
  if constexpr (D == QUANTRY_F32) return v;
  const Ints u = (Ints)v, sign = u & INT32_MIN;
  if constexpr (D == QUANTRY_BF16) return (Floats)((u + 0x7fff + (u >> 16 & 1)) & ~0xffff);
  const Floats a = magnitude(v), small = (a + 0.5f) - 0.5f;   // multiples of 2^-24, the last place of 0.5
  const Ints normal = ((Ints)a + 0xfff + ((Ints)a >> 13 & 1)) & ~0x1fff;
  const Floats near = pick(a < 0x1p-14f, small, (Floats)normal);
  return (Floats)((Ints)pick(near < 65536.0f, near, all(__builtin_inff())) | sign);
}

template <int D>
struct ScaleAndBias {
  QUANTRY_INLINE static Line stored(Floats scale, Floats bias) {
    scale = as_stored<D>(scale);
    return {scale, as_stored<D>(bias), 1.0f / scale};
  }
  QUANTRY_INLINE static Floats bias(const Line& line) { return line.offset; }
  QUANTRY_INLINE static Floats place(Floats x, const Line& line) { return (x - line.offset) * line.inverse; }
  QUANTRY_INLINE static Floats value(Floats q, const Line& line) { return q * line.scale + line.offset; }
};

struct Weights {
  const float* importance;   // of columns, or null
  int64_t columns;
};

// `first` counts groups of the matrix.
template <int D>
QUANTRY_NOINLINE void fit_weighted(const float* x, const Weights& by, int64_t first, int groups, float levels, Batch& b) {
  GroupLanes<kAfqGroup> lanes;
  for (int at = 0; at < groups; at += kWide) {
    lanes.load(x + at * kAfqGroup, groups - at < kWide ? groups - at : kWide, by.importance, first + at, by.columns);
    Line line{read(b.scale + at), read(b.bias + at), Floats{}};
    search_line<ScaleAndBias<D>, kAfqGroup>(lanes.x, lanes.weight, kWide, levels, line);
    write(b.scale + at, line.scale);
    write(b.bias + at, line.offset);
  }
}

template <int D>
QUANTRY_INLINE void put(void* to, int64_t i, float x) {
  if constexpr (D == QUANTRY_F32) static_cast<float*>(to)[i] = x;
  else static_cast<uint16_t*>(to)[i] = D == QUANTRY_F16 ? to_half(x) : to_bf16(x);
}

// Groups of contiguous floats; `first` counts groups of the matrix. Returns the place in x of the extreme that overflows its
// scale, or −1.
template <int Bits, int Rule, int D>
int64_t encode_groups(const float* x, const Weights& by, int64_t first, int64_t count, const AfqOut& out) {
  constexpr float kLevels = (1 << Bits) - 1;
  Batch b;
  for (int64_t done = 0; done < count; done += kBatch) {
    const int groups = static_cast<int>(min_of(kBatch, count - done));
    const float* from = x + done * kAfqGroup;
    const int64_t group = first + done;
    find_extremes(from, groups, b);
    for (int at = 0; at < kBatch; at += kWide) Rule == AFQ_MLX ? fit_mlx(kLevels, at, b) : fit_minmax(kLevels, at, b);
    if (by.importance) fit_weighted<D>(from, by, group, groups, kLevels, b);
    for (int g = 0; g < groups; g++) {
      if (magnitude(b.high[g] - b.low[g]) > 3.402823466e38f) {
        const float extreme = magnitude(b.low[g]) > magnitude(b.high[g]) ? b.low[g] : b.high[g];
        int64_t i = g * kAfqGroup;
        while (from[i] != extreme) i++;
        return done * kAfqGroup + i;
      }
      put<D>(out.scales, group + g, b.scale[g]);
      put<D>(out.biases, group + g, b.bias[g]);
    }
    find_codes<Rule>(from, groups, kLevels, b);
    pack_bits<Bits>(b.code, groups * kAfqGroup, out.codes + group * (kAfqGroup / 8) * Bits);
  }
  return -1;
}

typedef int64_t (*Encode)(const float* x, const Weights& by, int64_t first, int64_t count, const AfqOut& out);

template <int Bits, int Rule>
Encode encoder_for(int dtype) {
  if (dtype == QUANTRY_F32) return encode_groups<Bits, Rule, QUANTRY_F32>;
  return dtype == QUANTRY_F16 ? encode_groups<Bits, Rule, QUANTRY_F16> : encode_groups<Bits, Rule, QUANTRY_BF16>;
}

template <int Bits>
Encode encoder_for(int rule, int dtype) {
  return rule == AFQ_MLX ? encoder_for<Bits, AFQ_MLX>(dtype) : encoder_for<Bits, AFQ_MINMAX>(dtype);
}

Encode encoder_for(int bits, int rule, int dtype) {
  switch (bits) {
    case 2: return encoder_for<2>(rule, dtype);
    case 3: return encoder_for<3>(rule, dtype);
    case 4: return encoder_for<4>(rule, dtype);
    case 5: return encoder_for<5>(rule, dtype);
    case 6: return encoder_for<6>(rule, dtype);
    case 8: return encoder_for<8>(rule, dtype);
    default: return nullptr;
  }
}

int encode(int bits, int rule, const QuantryRows& rows, const AfqOut& out) {
  const Encode groups = encoder_for(bits, rule, rows.dtype);
  if (!groups) return QUANTRY_BAD_TYPE;
  const int64_t per_row = rows.columns / kAfqGroup;
  const Weights by{rows.importance, rows.columns};
  int64_t wide = INT64_MAX;   // the first place that overflows
  const int status = encode_rows(rows, [&](const float* x, int64_t first, int64_t count) {
    const int64_t found = groups(x, by, first * per_row, count * per_row, out);
    if (found < 0) return;
#pragma omp critical(quantry_afq_encode)
    wide = min_of(wide, first * rows.columns + found);
  });
  if (*rows.bad < 0 && wide != INT64_MAX) *rows.bad = wide;
  return status;
}

QUANTRY_END

QUANTRY_TABLE(AfqEncodeOps, quantry_afq_encode_ops) {quantry::QUANTRY_TARGET::encode};
