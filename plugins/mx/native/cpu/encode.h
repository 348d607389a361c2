// The encoders of one instruction set: blocks of 32 columns with an e8m0 scale.
#pragma once
#include <stdint.h>

struct QuantryRows;   // quantry/encode/rows.h

constexpr int kMxBlock = 32;

enum MxElement { MX_E2M1 = 0, MX_E4M3 = 1 };

// Buffers of the layouts float:e2m1,1x32,e8m0 and float:e4m3,1x32,e8m0.
struct MxOut {
  uint8_t* codes;    // e2m1 [rows, columns / 2], e4m3 [rows, columns]
  uint8_t* scales;   // [rows, columns / 32]
};

struct MxEncodeOps {
  // Columns are a multiple of 32. The same bytes on every target.
  int (*rows)(int element, const QuantryRows& rows, const MxOut& out);
};
