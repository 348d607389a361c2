// quantry_bnb_encode: float rows to 4-bit codes, on `threads` threads, with the same bytes for any number of them.
#include <quantry/dispatch.h>
#include <quantry/encode/call.h>

#include "encode.h"

QUANTRY_DECLARE_TABLES(BnbEncodeOps, quantry_bnb_encode_ops)

extern "C" {

// x: [rows, columns] of `dtype`, rows `stride` elements apart; importance: [columns], or null; table: BnbTable; buffers:
// encode.h. *bad: rows.h. Returns a QuantryStatus.
QUANTRY_EXPORT int quantry_bnb_encode(int target, int table, int dtype, const void* x, int64_t stride,
                                      const float* importance, uint8_t* codes, float* scales, int64_t rows,
                                      int64_t columns, int64_t* bad, int threads) {
  const BnbEncodeOps* ops = QUANTRY_TABLE_FOR(quantry_bnb_encode_ops, target);
  if (!ops) return QUANTRY_BAD_TARGET;
  if (table != BNB_NF4 && table != BNB_FP4) return QUANTRY_BAD_TYPE;
  if (columns < 0 || columns % kBnbBlock) return QUANTRY_BAD_SHAPE;
  if (!bad || (rows > 0 && columns > 0 && (!codes || !scales))) return QUANTRY_BAD_BUFFER;
  return ops->rows(table, {dtype, threads, rows, columns, stride, x, importance, bad}, {codes, scales});
}
}
