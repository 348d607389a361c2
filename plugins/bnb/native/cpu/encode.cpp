// Encoders of nf4 and fp4: a scale per block of 64 and the nearest of 16 numbers. f32 arithmetic, no contraction.
//
// Without importance as bitsandbytes 0.50 (backends/default/ops.py, quantize_4bit): the scale is the largest magnitude, a
// weight is multiplied by 1 / scale and takes the nearest number, of two that are as near the lower. With importance the
// scale is searched, a block a lane, for the least Σ importance · (x − number · scale)².
#include "encode.h"

#include <quantry/dispatch.h>
#include <quantry/encode/across.h>
#include <quantry/encode/group_lanes.h>
#include <quantry/encode/pack_bits.h>
#include <quantry/encode/rows.h>

QUANTRY_BEGIN

constexpr int kBatch = 16;   // blocks: 4 KiB of x; a multiple of the lanes
constexpr float kLeastScale = 1e-38f;

// The numbers of a code table in ascending order, and the code of each (bitsandbytes, functional.py, get_4bit_type).
template <int Table>
struct Numbers;

template <>
struct Numbers<BNB_NF4> {
  static constexpr float kNumber[16] = {
      -1.0f, -0.6961928009986877f, -0.5250730514526367f, -0.39491748809814453f, -0.28444138169288635f, -0.18477343022823334f,
      -0.09105003625154495f, 0.0f, 0.07958029955625534f, 0.16093020141124725f, 0.24611230194568634f, 0.33791524171829224f,
      0.44070982933044434f, 0.5626170039176941f, 0.7229568362236023f, 1.0f};
  static constexpr uint8_t kCode[16] = {0, 1, 2, 3, 4, 5, 6, 7, 8, 9, 10, 11, 12, 13, 14, 15};
};

template <>
struct Numbers<BNB_FP4> {   // both zeros: what lies above 0 takes code 8, 0 and what lies below take code 0
  static constexpr float kNumber[16] = {
      -1.0f, -0.6666666865348816f, -0.5f, -0.3333333432674408f, -0.25f, -0.1666666716337204f, -0.0052083334885537624f, 0.0f,
      0.0f, 0.0052083334885537624f, 0.1666666716337204f, 0.25f, 0.3333333432674408f, 0.5f, 0.6666666865348816f, 1.0f};
  static constexpr uint8_t kCode[16] = {11, 10, 13, 12, 15, 14, 9, 0, 8, 1, 6, 7, 4, 5, 2, 3};
};

template <int Table, int I>   // halfway between neighbours
constexpr float kBound = (Numbers<Table>::kNumber[I] + Numbers<Table>::kNumber[I + 1]) / 2;

struct Batch {
  alignas(64) float scale[kBatch];
  alignas(64) uint8_t code[kBatch * kBnbBlock];
};

QUANTRY_INLINE Floats inverse_of(Floats scale) { return 1.0f / larger(scale, all(kLeastScale)); }

template <int Table>
QUANTRY_INLINE void find_codes(const float* x, int blocks, Batch& b) {
  for (int i = 0; i < blocks; i++) {
    const Floats inverse = inverse_of(all(b.scale[i]));
    for (int k = i * kBnbBlock; k < (i + 1) * kBnbBlock; k += kWide) {
      const Floats v = read(x + k) * inverse;
      Ints rank = {};
      repeat<15>([&](auto n) QUANTRY_LAMBDA { rank -= v > kBound<Table, n>; });   // a true lane is −1
      const Bytes q = __builtin_convertvector(rank, Bytes);
      memcpy(b.code + k, &q, sizeof q);
    }
  }
  if constexpr (Table != BNB_NF4)
    for (int i = 0; i < blocks * kBnbBlock; i++) b.code[i] = Numbers<Table>::kCode[b.code[i]];
}

// Σ weight · (x − number · scale)² of a block, and the scale of least error for the same numbers.
template <int Table>
QUANTRY_INLINE Floats scale_error(const float* x, const float* weight, Floats scale, Floats& next) {
  const Floats inverse = inverse_of(scale);
  Floats error = {}, tilt = {}, squares = {};
  for (int r = 0; r < kBnbBlock; r++) {
    const Floats v = read(x + r * kWide), w = read(weight + r * kWide), t = v * inverse;
    Floats number = all(Numbers<Table>::kNumber[0]);
    repeat<15>([&](auto n) QUANTRY_LAMBDA {
      constexpr int above = n + 1;
      number = pick(t > kBound<Table, n>, all(Numbers<Table>::kNumber[above]), number);
    });
    const Floats e = v - number * scale, wn = w * number;
    error += w * e * e;
    tilt += wn * e;
    squares += wn * number;
  }
  const Floats moved = scale + tilt / squares;
  next = pick((squares > 0.0f) & (moved > kLeastScale), moved, scale);
  return error;
}

// The scales that are tried first: the largest magnitude, and it by these factors. Then codes and the least-squares scale for
// them take turns, from the best of those on.
constexpr int kStarts = 20, kTurns = 3;
constexpr float kFirstStart = 1.09f, kStartStep = 0.03f;

// `first` counts blocks of the matrix. Blocks whose weights are all 0 keep their scale.
template <int Table>
QUANTRY_NOINLINE void fit_weighted(const float* x, const QuantryRows& rows, int64_t first, int blocks, Batch& b) {
  GroupLanes<kBnbBlock> lanes;
  for (int at = 0; at < blocks; at += kWide) {
    const int count = blocks - at < kWide ? blocks - at : kWide;
    lanes.load(x + at * kBnbBlock, count, rows.importance, first + at, rows.columns);
    const Floats most = read(b.scale + at);
    Floats best = most, next, after, least = scale_error<Table>(lanes.x, lanes.weight, most, after);
    auto attempt = [&](Floats scale) QUANTRY_LAMBDA {
      const Floats error = scale_error<Table>(lanes.x, lanes.weight, scale, next);
      const Ints better = error < least;
      least = pick(better, error, least);
      best = pick(better, scale, best);
      after = pick(better, next, after);
    };
    for (int start = 0; start < kStarts; start++) attempt(most * (kFirstStart - kStartStep * static_cast<float>(start)));
    for (int turn = 0; turn < kTurns; turn++) attempt(after);
    write(b.scale + at, best);
  }
}

template <int Table>
void encode_blocks(const float* x, const QuantryRows& rows, int64_t first, int64_t count, const BnbOut& out) {
  Batch b;
  for (int64_t done = 0; done < count; done += kBatch) {
    const int blocks = static_cast<int>(min_of(kBatch, count - done));
    const float* from = x + done * kBnbBlock;
    const int64_t block = first + done;
    block_magnitudes<kBnbBlock>(from, blocks, kBatch, b.scale);
    if (rows.importance) fit_weighted<Table>(from, rows, block, blocks, b);
    memcpy(out.scales + block, b.scale, static_cast<size_t>(blocks) * 4);
    find_codes<Table>(from, blocks, b);
    pack_bits<4>(b.code, blocks * kBnbBlock, out.codes + block * (kBnbBlock / 2));
  }
}

int encode(int table, const QuantryRows& rows, const BnbOut& out) {
  const int64_t per_row = rows.columns / kBnbBlock;
  return encode_rows(rows, [&](const float* x, int64_t first, int64_t count) {
    if (table == BNB_NF4) encode_blocks<BNB_NF4>(x, rows, first * per_row, count * per_row, out);
    else encode_blocks<BNB_FP4>(x, rows, first * per_row, count * per_row, out);
  });
}

QUANTRY_END

QUANTRY_TABLE(BnbEncodeOps, quantry_bnb_encode_ops) {quantry::QUANTRY_TARGET::encode};
