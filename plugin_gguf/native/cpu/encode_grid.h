// The encoders of the grid types: IQ1_S, IQ1_M, IQ2_XXS, IQ2_XS, IQ2_S, IQ3_XXS, IQ3_S.
//
// Each 8 (IQ1, IQ2) or 4 (IQ3) levels must be a row of a grid. A pattern that is none goes to one of its nearest grid rows.
// Which those are is in `tables`, made once by quantry_gguf_grid_tables (encode_grid_entry.cpp), owned by the caller:
//
//   u32 entry[patterns]   on the grid: kOnGrid | grid index << 16 | code; else: first block | blocks << kBlocksAt
//   u16 code[blocks][8]   from the next multiple of 64 bytes on: near grid rows by distance, then index, the last repeated
//
// A pattern's number is Σ level·3^i or Σ level·8^i, a code Σ level·4^i or Σ level·8^i. Lists of more than one block have an
// even number of them, and 16 bytes follow the last list: 16 lanes read two blocks at a time.
#pragma once
#include <stdint.h>

struct QuantryRows;   // quantry/encode/rows.h

constexpr uint32_t kOnGrid = 0x80000000u;
constexpr int kBlocksAt = 20, kListBlock = 8;

constexpr int64_t grid_lists_at(int64_t patterns) { return (4 * patterns + 63) / 64 * 64; }

// Encodes rows of any float type, byte-equal to llama.cpp's ggml_quantize_chunk. Numbers whose squares overflow, which end
// the process there, give some valid block, the same one on every target.
typedef int (*GridEncodeFn)(const QuantryRows& rows, const uint8_t* tables, uint8_t* out);

struct GridOps {
  GridEncodeFn iq2_xxs, iq2_xs, iq2_s, iq3_xxs, iq3_s;
};
struct TernaryGridOps {
  GridEncodeFn iq1_s, iq1_m;
};
