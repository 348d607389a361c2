// The table of encoders, and the loop over rows that they share.
#include "encode.h"

#include <quantry/dispatch.h>
#include <quantry/encode/rows.h>

QUANTRY_BEGIN

int encode_matrix(EncodeFn encode, int block, int bytes, const QuantryRows& rows, uint8_t* out) {
  const int64_t blocks = rows.columns / block;
  return encode_rows(rows, [&](const float* x, int64_t first, int64_t count) {
    encode(EncodeJob{x, rows.importance, rows.columns, 0, count * blocks, out + first * blocks * bytes});
  });
}

constexpr EncodeOps kEncodeOps = {
    encode_matrix, encode_q4_0,  encode_q4_1,  encode_q5_0,  encode_q5_1,  encode_q8_0, encode_q8_1,
    encode_q2_k,   encode_q3_k,  encode_q4_k,  encode_q5_k,  encode_q6_k,  encode_q8_k, encode_iq4_nl,
    encode_iq4_xs, encode_tq1_0, encode_tq2_0, encode_mxfp4, encode_nvfp4, encode_q1_0, encode_q2_0,
};

QUANTRY_END

QUANTRY_TABLE(EncodeOps, quantry_encode_ops) quantry::QUANTRY_TARGET::kEncodeOps;
