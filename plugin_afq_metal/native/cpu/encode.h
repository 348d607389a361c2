// The AFQ encoders of one instruction set.
#pragma once
#include <stdint.h>

struct QuantryRows;   // quantry/encode/rows.h

constexpr int kAfqGroup = 64;

enum AfqRule { AFQ_MLX = 0, AFQ_MINMAX = 1 };

// Buffers of the layout affine:b<bits>,g64,in,bias,<type of x>.
struct AfqOut {
  uint8_t* codes;        // [rows, columns · bits / 8]
  void *scales, *biases; // [rows, columns / 64] in the type of x
};

struct AfqEncodeOps {
  // Columns are a multiple of 64. Without importance bytes equal to mlx's CPU quantizer or to mistral.rs' (encode.cpp);
  // the same on every target. *rows.bad also names the value that makes a scale overflow.
  int (*rows)(int bits, int rule, const QuantryRows& rows, const AfqOut& out);
};
