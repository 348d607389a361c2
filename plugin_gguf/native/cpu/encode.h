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
  EncodeFn q4_0, q4_1, q5_0, q5_1, q8_0, q8_1, q4_k, q5_k, q6_k, q8_k;
};
