// The quantizers of 8-bit floats and of f8q8 for one instruction set.
#pragma once
#include <stdint.h>

struct QuantryRows;   // quantry/encode/call.h

constexpr int kBlock = 32, kBlockBytes = 33;   // f8q8
constexpr float kMost = 416.0f;                // what mistral.rs takes for the largest e4m3 number

// Each takes contiguous rows and writes *beyond: the place of the first weight that the type cannot hold, or −1.
struct Fp8Ops {
  // One scale: codes [rows · columns], scale[0] what a code is multiplied by.
  int (*tensor)(const QuantryRows& rows, uint8_t* codes, float* scale, int64_t* beyond);
  // A scale a row: codes likewise, scales [rows].
  int (*channel)(const QuantryRows& rows, uint8_t* codes, float* scales);
  // Blocks of 32 of the flattened matrix, the last filled up with zeros: blocks [⌈rows · columns / 32⌉][33].
  int (*f8q8)(const QuantryRows& rows, uint8_t* blocks, int64_t* beyond);
};
