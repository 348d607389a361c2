// The encoders of one instruction set.
//
// Each writes the ggml blocks first … first+count-1 of a matrix, counted row by row, byte-equal to llama.cpp's
// ggml_quantize_chunk: f32 arithmetic, every sum in index order, no contraction. Finite input only.
#pragma once
#include <stdint.h>

struct QuantryRows;   // quantry/encode/rows.h

struct EncodeJob {
  const float* x;            // the matrix, contiguous rows
  const float* importance;   // one weight >= 0 per column, or null
  int64_t columns;           // a multiple of the type's block
  int64_t first, count;      // blocks
  uint8_t* out;              // block 0 of the matrix
};

typedef void (*EncodeFn)(const EncodeJob& job);

struct EncodeOps {
  // Encodes rows of any float type with one of the functions; blocks of `block` columns take `bytes`.
  int (*rows)(EncodeFn encode, int block, int bytes, const QuantryRows& rows, uint8_t* out);
  EncodeFn q4_0, q4_1, q5_0, q5_1, q8_0, q8_1, q2_k, q3_k, q4_k, q5_k, q6_k, q8_k;
  EncodeFn iq4_nl, iq4_xs, tq1_0, tq2_0, mxfp4, nvfp4, q1_0, q2_0;
};

// Defined once per instruction set, outside the unnamed namespace: encode.cpp puts them into its table.
namespace quantry {
namespace QUANTRY_TARGET {
// encode_legacy.cpp
void encode_q4_0(const EncodeJob&), encode_q4_1(const EncodeJob&), encode_q5_0(const EncodeJob&);
void encode_q5_1(const EncodeJob&), encode_q8_0(const EncodeJob&), encode_q8_1(const EncodeJob&);
// encode_k.cpp, encode_k_symmetric.cpp
void encode_q2_k(const EncodeJob&), encode_q4_k(const EncodeJob&), encode_q5_k(const EncodeJob&);
void encode_q3_k(const EncodeJob&), encode_q6_k(const EncodeJob&), encode_q8_k(const EncodeJob&);
// encode_table.cpp
void encode_iq4_nl(const EncodeJob&), encode_iq4_xs(const EncodeJob&);
// encode_small.cpp
void encode_tq1_0(const EncodeJob&), encode_tq2_0(const EncodeJob&), encode_mxfp4(const EncodeJob&);
void encode_nvfp4(const EncodeJob&), encode_q1_0(const EncodeJob&), encode_q2_0(const EncodeJob&);
}
}
