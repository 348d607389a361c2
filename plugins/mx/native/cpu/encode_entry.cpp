// quantry_mx_encode: float rows to MX blocks, on `threads` threads, with the same bytes for any number of them.
#include <quantry/dispatch.h>
#include <quantry/encode/call.h>

#include "encode.h"

QUANTRY_DECLARE_TABLES(MxEncodeOps, quantry_mx_encode_ops)

extern "C" {

// x: [rows, columns] of `dtype`, rows `stride` elements apart; element: MxElement; buffers: encode.h. *bad: rows.h.
// Returns a QuantryStatus.
QUANTRY_EXPORT int quantry_mx_encode(int target, int element, int dtype, const void* x, int64_t stride, uint8_t* codes,
                                     uint8_t* scales, int64_t rows, int64_t columns, int64_t* bad, int threads) {
  const MxEncodeOps* ops = QUANTRY_TABLE_FOR(quantry_mx_encode_ops, target);
  if (!ops) return QUANTRY_BAD_TARGET;
  if (element != MX_E2M1 && element != MX_E4M3) return QUANTRY_BAD_TYPE;
  if (columns < 0 || columns % kMxBlock) return QUANTRY_BAD_SHAPE;
  if (!bad || (rows > 0 && columns > 0 && (!codes || !scales))) return QUANTRY_BAD_BUFFER;
  return ops->rows(element, {dtype, threads, rows, columns, stride, x, nullptr, bad}, {codes, scales});
}
}
