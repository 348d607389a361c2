// The C functions of the quantizers.
#include <quantry/calls.h>
#include <quantry/dispatch.h>
#include <quantry/encode/call.h>

#include "encode.h"

QUANTRY_DECLARE_TABLES(Fp8Ops, quantry_fp8_encode_ops)

using namespace quantry::QUANTRY_TARGET;

enum { FP8_TENSOR = 0, FP8_CHANNEL = 1, FP8_F8Q8 = 2 };

extern "C" {

// x: [rows, columns] of `dtype`, contiguous. out, scales: encode.h; f8q8 has no scales. *bad: the first NaN or Inf; *beyond:
// encode.h. Returns a QuantryStatus.
QUANTRY_EXPORT int quantry_fp8_encode(int target, int kind, int dtype, const void* x, int64_t rows, int64_t columns,
                                      uint8_t* out, float* scales, int64_t* bad, int64_t* beyond, int threads) {
  const Fp8Ops* ops = QUANTRY_TABLE_FOR(quantry_fp8_encode_ops, target);
  if (!ops) return QUANTRY_BAD_TARGET;
  if (kind < FP8_TENSOR || kind > FP8_F8Q8) return QUANTRY_BAD_TYPE;
  if (!sane(rows, columns)) return QUANTRY_BAD_SHAPE;
  if (!bad || !beyond) return QUANTRY_BAD_BUFFER;
  *bad = *beyond = -1;
  if (rows == 0 || columns == 0) return QUANTRY_OK;
  if (!out || (kind != FP8_F8Q8 && !scales)) return QUANTRY_BAD_BUFFER;
  const QuantryRows all{dtype, allowed(threads), rows, columns, columns, x, nullptr, bad};
  switch (kind) {
    case FP8_TENSOR: return ops->tensor(all, out, scales, beyond);
    case FP8_CHANNEL: return ops->channel(all, out, scales);
    default: return ops->f8q8(all, out, beyond);
  }
}
}
