// ggml's block types as panel formats, and how their scales lie in the `meta` plane.
//
//   kHalf    Q4_0 Q5_0 Q8_0 IQ4_NL : per block        16 × f16 d                                          32 bytes
//            Q1_0 Q2_0 TQ2_0
//   kHalves  Q4_1 Q5_1             : per 32 columns   16 × f16 d, 16 × f16 m                              64 bytes
//   kHalfSum Q8_1                  : the same, with ggml's unused d · Σ q for m
//   kE8m0    MXFP4                 : per 32 columns   16 × e8m0                                           16 bytes
//   kUe4m3   NVFP4                 : per 64 columns   one cell: byte b = ue4m3 of columns 16b … 16b+15    64 bytes
//   kSixBit  Q4_K Q5_K             : per 256 columns  three cells and 16 × f16 d, 16 × f16 dmin          256 bytes
//        cell 0: low nibbles of the 8 scales (low nibble of byte b: scale b, high nibble: scale 4 + b); cell 1: of the
//        mins; cell 2: bits 4-5 of byte b: scale b (bits 0-1), scale 4 + b (2-3), min b (4-5), min 4 + b (6-7)
//   kBytes   Q6_K                  : per 256 columns  four cells (byte b of cell c: i8 scale 4c + b), 16 × f16 d   288 bytes
//   kNibbles Q2_K                  : per 256 columns  four cells (byte b of cell c: scale 4c + b, min in the high nibble),
//                                                     16 × f16 d, 16 × f16 dmin                          320 bytes
//   kSixteen Q3_K                  : per 256 columns  three cells and 16 × f16 d                         224 bytes
//        scale 4c + b of 16, minus 32: low nibble (c < 2) or high nibble (c ≥ 2) of byte b of cell c mod 2, and bits 2c, 2c+1
//        of byte b of cell 2
//   kEight   IQ4_XS                : per 256 columns  one cell (nibble j of a lane: scale j), 16 × u16 (bits 2j, 2j+1: the two
//                                                     bits above), 16 × f16 d; scales minus 32           128 bytes
// Every source bit has one place here, so packing is undone exactly (ggml/pack.h).
#pragma once
#include "../panel.h"

QUANTRY_BEGIN

enum class Scales { kHalf, kHalves, kHalfSum, kE8m0, kUe4m3, kSixBit, kBytes, kNibbles, kSixteen, kEight };

constexpr int kMetaBytesOf[] = {32, 64, 64, 16, 64, 256, 288, 320, 224, 128};   // by Scales
constexpr int kMetaCellsOf[] = {0, 0, 0, 0, 1, 3, 4, 4, 3, 1};

struct Iq4 {   // kvalues_iq4nl
  static constexpr bool kUsed = true, kFull = true;
  alignas(16) static constexpr uint8_t kBytes[16] = {   // plus 128
      1, 24, 45, 63, 79, 93, 106, 118, 129, 141, 153, 166, 181, 197, 217, 241};
  alignas(64) static constexpr float kFloats[16] = {
      -127, -104, -83, -65, -49, -35, -22, -10, 1, 13, 25, 38, 53, 69, 89, 113};
};
struct E2m1 {   // kvalues_mxfp4: E2M1 doubled; the scales are halved
  static constexpr bool kUsed = true, kFull = false;
  alignas(16) static constexpr uint8_t kBytes[16] = {   // plus 12
      12, 13, 14, 15, 16, 18, 20, 24, 12, 11, 10, 9, 8, 6, 4, 0};
  alignas(64) static constexpr float kFloats[16] = {0, 1, 2, 3, 4, 6, 8, 12, 0, -1, -2, -3, -4, -6, -8, -12};
};

template <int Type, int Block, int BlockBytes, int Low, int High, int Zero, Scales S, class TableType = NoTable>
struct Format {
  using Table = TableType;
  static constexpr Scales kScales = S;
  static constexpr int kType = Type, kBlock = Block, kBlockBytes = BlockBytes, kLow = Low, kHigh = High, kZero = Zero,
                       kMetaBytes = kMetaBytesOf[static_cast<int>(S)], kMetaCells = kMetaCellsOf[static_cast<int>(S)];
  static constexpr int kGroup =
      S == Scales::kUe4m3 || S == Scales::kBytes || S == Scales::kNibbles || S == Scales::kSixteen ? 16 : 32;
  static constexpr bool kMins = S == Scales::kHalves || S == Scales::kSixBit || S == Scales::kNibbles;
  static constexpr bool kSuper = Block == 256;
  static constexpr int kCodeBits = Low == 1 ? 2 : Low + High;   // of what Chunk gives: one bit counts two
};

// ggml's type numbers (ggml.h); value = d·(q − zero), d·q + m for *_1, d·scale·(q − zero) − dmin·min for K types; q is a
// table's integer where there is one.
using Q4_0 = Format<2, 32, 18, 4, 0, 8, Scales::kHalf>;
using Q4_1 = Format<3, 32, 20, 4, 0, 0, Scales::kHalves>;
using Q5_0 = Format<6, 32, 22, 4, 1, 16, Scales::kHalf>;
using Q5_1 = Format<7, 32, 24, 4, 1, 0, Scales::kHalves>;
using Q8_0 = Format<8, 32, 34, 8, 0, 128, Scales::kHalf>;
using Q8_1 = Format<9, 32, 36, 8, 0, 128, Scales::kHalfSum>;
using Q2_K = Format<10, 256, 84, 2, 0, 0, Scales::kNibbles>;
using Q3_K = Format<11, 256, 110, 2, 1, 4, Scales::kSixteen>;
using Q4_K = Format<12, 256, 144, 4, 0, 0, Scales::kSixBit>;
using Q5_K = Format<13, 256, 176, 4, 1, 0, Scales::kSixBit>;
using Q6_K = Format<14, 256, 210, 4, 2, 32, Scales::kBytes>;
using IQ4_NL = Format<20, 32, 18, 4, 0, 128, Scales::kHalf, Iq4>;
using IQ4_XS = Format<23, 256, 136, 4, 0, 128, Scales::kEight, Iq4>;
using TQ2_0 = Format<35, 256, 66, 2, 0, 1, Scales::kHalf>;
using MXFP4 = Format<39, 32, 17, 4, 0, 12, Scales::kE8m0, E2m1>;
using NVFP4 = Format<40, 64, 36, 4, 0, 12, Scales::kUe4m3, E2m1>;
using Q1_0 = Format<41, 128, 18, 1, 0, 1, Scales::kHalf>;   // the number is 2·bit − 1
using Q2_0 = Format<42, 64, 18, 2, 0, 1, Scales::kHalf>;

QUANTRY_END
