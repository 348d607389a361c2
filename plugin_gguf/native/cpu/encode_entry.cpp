// quantry_gguf_encode: float32 rows to ggml blocks, on `threads` threads, with the same bytes for any number of them.
#include <quantry/dispatch.h>
#include <quantry/encode/call.h>

#include "encode.h"

QUANTRY_DECLARE_TABLES(EncodeOps, quantry_encode_ops)

namespace {

struct Encoder {
  int type;   // ggml's id
  int block, bytes;
  EncodeFn EncodeOps::*function;
};

constexpr Encoder kEncoders[] = {
    {2, 32, 18, &EncodeOps::q4_0},    {3, 32, 20, &EncodeOps::q4_1},    {6, 32, 22, &EncodeOps::q5_0},
    {7, 32, 24, &EncodeOps::q5_1},    {8, 32, 34, &EncodeOps::q8_0},    {9, 32, 36, &EncodeOps::q8_1},
    {10, 256, 84, &EncodeOps::q2_k},  {11, 256, 110, &EncodeOps::q3_k}, {12, 256, 144, &EncodeOps::q4_k},
    {13, 256, 176, &EncodeOps::q5_k}, {14, 256, 210, &EncodeOps::q6_k}, {15, 256, 292, &EncodeOps::q8_k},
    {20, 32, 18, &EncodeOps::iq4_nl}, {23, 256, 136, &EncodeOps::iq4_xs}, {34, 256, 54, &EncodeOps::tq1_0},
    {35, 256, 66, &EncodeOps::tq2_0}, {39, 32, 17, &EncodeOps::mxfp4},  {40, 64, 36, &EncodeOps::nvfp4},
    {41, 128, 18, &EncodeOps::q1_0},  {42, 64, 18, &EncodeOps::q2_0},
};

const Encoder* encoder_of(int type) {
  for (const Encoder& e : kEncoders)
    if (e.type == type) return &e;
  return nullptr;
}

}  // namespace

extern "C" {

// x: [rows, columns] of `dtype`, rows `stride` elements apart. importance: [columns] f32 >= 0, or null (types without a
// search ignore it). out: rows · columns / block · block bytes. *bad: rows.h. Returns a QuantryStatus.
QUANTRY_EXPORT int quantry_gguf_encode(int target, int type, int dtype, const void* x, int64_t stride,
                                       const float* importance, uint8_t* out, int64_t rows, int64_t columns,
                                       int64_t* bad, int threads) {
  const EncodeOps* ops = QUANTRY_TABLE_FOR(quantry_encode_ops, target);
  if (!ops) return QUANTRY_BAD_TARGET;
  const Encoder* encoder = encoder_of(type);
  if (!encoder) return QUANTRY_BAD_TYPE;
  if (columns < 0 || columns % encoder->block) return QUANTRY_BAD_SHAPE;
  if (!bad || (rows > 0 && columns > 0 && !out)) return QUANTRY_BAD_BUFFER;
  const QuantryRows all{dtype, threads, rows, columns, stride, x, importance, bad};
  return ops->rows(ops->*encoder->function, encoder->block, encoder->bytes, all, out);
}
}
