// The quantizer of HQQ for one instruction set: codes, scales and zeros of groups of 64 weights.
#pragma once
#include <stdint.h>

constexpr int kGroup = 64;

enum HqqRule {
  HQQ_MISTRALRS = 0,   // a group is a column of W.view(64, groups); 10 steps
  HQQ_PACKAGE = 1,     // a group is 64 neighbours; 20 steps, the zero of 4-bit codes rounded before the first
};

struct HqqJob {
  int32_t dtype, threads;   // of x: QuantryDtype
  int64_t groups;
  const void* x;            // [64 · groups], contiguous
  const float* importance;  // [columns] of the matrix that x is, or null
  int64_t columns;
  uint8_t* codes;           // [groups][8 · bits]: a bit stream a group
  float *scales, *zeros;    // [groups]
  int64_t* bad;             // out: place in x of the first NaN or Inf, −1 when all are finite
  int64_t* beyond;          // out: the largest weight of the first group whose numbers overflow, −1 when none do
};

struct HqqOps {
  int (*encode)(HqqRule rule, int bits, const HqqJob& job);
};
