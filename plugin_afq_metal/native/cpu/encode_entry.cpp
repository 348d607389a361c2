// quantry_afq_encode: float rows to AFQ, on `threads` threads, with the same bytes for any number of them.
#include <quantry/dispatch.h>
#include <quantry/encode/call.h>

#include "encode.h"

QUANTRY_DECLARE_TABLES(AfqEncodeOps, quantry_afq_encode_ops)

extern "C" {

// x: [rows, columns] of `dtype`, rows `stride` elements apart; importance: [columns], or null; bits 2 3 4 5 6 8; rule:
// AfqRule; buffers: encode.h.
// *bad: position (row · columns + column) of the first value that is NaN or Inf, or too far from its neighbours for a
// finite scale; −1 when all went well. Returns a QuantryStatus.
QUANTRY_EXPORT int quantry_afq_encode(int target, int bits, int rule, int dtype, const void* x, int64_t stride,
                                      const float* importance, uint8_t* codes, void* scales, void* biases, int64_t rows,
                                      int64_t columns, int64_t* bad, int threads) {
  const AfqEncodeOps* ops = QUANTRY_TABLE_FOR(quantry_afq_encode_ops, target);
  if (!ops) return QUANTRY_BAD_TARGET;
  if (rule != AFQ_MLX && rule != AFQ_MINMAX) return QUANTRY_BAD_TYPE;
  if (columns < 0 || columns % kAfqGroup) return QUANTRY_BAD_SHAPE;
  if (!bad || (rows > 0 && columns > 0 && (!codes || !scales || !biases))) return QUANTRY_BAD_BUFFER;
  return ops->rows(bits, rule, {dtype, threads, rows, columns, stride, x, importance, bad}, {codes, scales, biases});
}
}
