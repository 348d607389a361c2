// One packed weight [N, K] of the families affine, codebook and float, in panels of 16 rows, as the C functions take it.
//
// K' = K rounded up to 32 columns, P = panels, G = ceil(K / group) groups of a row. Columns beyond K and rows beyond N have
// zero codes; rows beyond N have zero scales, activations of columns beyond K are never read.
//
//   planes of codes   as drawn in quantry/panel.h; a b-bit code is split into planes, low bits first:
//                       1: 1   2: 2   3: 2+1   4: 4   5: 4+1   6: 4+2   7: 4+2+1   8: 8
//                     `codes` [P, K'/32 · 64·low], `high` and `top` likewise, null where there is none
//                     two's complement codes (zero NONE) are stored as q + 2^(b−1), 8-bit ones too
//   scales            one per row and group: [P, G, 16] of the scale's own type;
//                     float with blocks of several rows: [ceil(N/block_rows), G] as in the file, block_rows a multiple of 16
//                     or 0 for all rows
//   zeros             affine INT u8, FLOAT and BIAS in the scale's type, laid out as the scales
//   perm              affine: i32 [K], stored column j multiplies x[perm[j]]; null when columns are in order
//   nested, offset    codebook with NESTED scales: scale = dynamic[u8] · nested[i / 256] + offset, i = n·G + g
//   outer             float: one f32 that multiplies every scale, null for none
//
// axis OUT (affine, HQQ's axis 0): weight (n, k) has the scale of column (n mod N/group)·K + k of W.view(group, ·). N is a
// multiple of the group, the group of 16. Panel p holds rows r + i·(N/group), i = 16·(p mod group/16) …, r = p / (group/16);
// scales and zeros are [N/group, K].
#pragma once
#include <stdint.h>

enum QuantryFamily { QUANTRY_AFFINE = 0, QUANTRY_CODEBOOK = 1, QUANTRY_FLOAT = 2 };
enum QuantryZero { QUANTRY_ZERO_NONE = 0, QUANTRY_ZERO_MID = 1, QUANTRY_ZERO_INT = 2, QUANTRY_ZERO_FLOAT = 3, QUANTRY_ZERO_BIAS = 4 };
enum QuantryScale {
  QUANTRY_SCALE_F32 = 0, QUANTRY_SCALE_F16 = 1, QUANTRY_SCALE_BF16 = 2,   // numbers as QuantryDtype
  QUANTRY_SCALE_NESTED = 3, QUANTRY_SCALE_E8M0 = 4, QUANTRY_SCALE_E4M3 = 5,
};
enum QuantryElement {   // codebook tables, then 8-bit floats
  QUANTRY_NF4 = 0, QUANTRY_FP4 = 1, QUANTRY_IQ4_NL = 2, QUANTRY_E2M1 = 3, QUANTRY_E4M3 = 4, QUANTRY_E5M2 = 5,
};

struct QuantryGrouped {
  int32_t target, family, exact;    // exact 1: activations as given; 0: rounded to int8
  int32_t bits, zero, axis_out;     // affine
  int32_t element, scale;
  int64_t rows, columns, group, block_rows;   // N, K; group: columns of a scale (axis OUT: rows), never 0, K or more for whole rows;
                                              // block_rows: rows of a scale, 1 or as above
  const void *codes, *high, *top, *scales, *zeros, *nested, *offset, *outer, *perm;
  int64_t codes_bytes, high_bytes, top_bytes, scales_bytes, zeros_bytes, nested_bytes;
};
