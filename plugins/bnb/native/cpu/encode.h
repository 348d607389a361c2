// The encoders of one instruction set: blocks of 64 columns with an f32 scale.
#pragma once
#include <stdint.h>

struct QuantryRows;   // quantry/encode/rows.h

constexpr int kBnbBlock = 64;

enum BnbTable { BNB_NF4 = 0, BNB_FP4 = 1 };

// Buffers of the layouts codebook:nf4,g64,f32 and codebook:fp4,g64,f32.
struct BnbOut {
  uint8_t* codes;   // [rows, columns / 2]
  float* scales;    // [rows, columns / 64]
};

struct BnbEncodeOps {
  // Columns are a multiple of 64. Without importance the codes and scales of bitsandbytes, the same on every target.
  int (*rows)(int table, const QuantryRows& rows, const BnbOut& out);
};
