// The C function of the quantizer.
#include <quantry/calls.h>
#include <quantry/dispatch.h>

#include "encode.h"

QUANTRY_DECLARE_TABLES(HqqOps, quantry_hqq_encode_ops)

using namespace quantry::QUANTRY_TARGET;

extern "C" {

// x: [64 · groups] of `dtype`; the groups as HqqRule says. importance: of `columns`, whose rows x is, or null. codes: [groups, 8 · bits]; scales, zeros: [groups].
// *bad, *beyond: encode.h. Returns a QuantryStatus.
QUANTRY_EXPORT int quantry_hqq_encode(int target, int rule, int bits, int dtype, const void* x, int64_t groups,
                                      const float* importance, int64_t columns, uint8_t* codes, float* scales, float* zeros,
                                      int64_t* bad, int64_t* beyond, int threads) {
  const HqqOps* ops = QUANTRY_TABLE_FOR(quantry_hqq_encode_ops, target);
  if (!ops) return QUANTRY_BAD_TARGET;
  if (dtype < QUANTRY_F32 || dtype > QUANTRY_BF16 || rule < HQQ_MISTRALRS || rule > HQQ_PACKAGE) return QUANTRY_BAD_TYPE;
  if (!sane(groups, 64 * 64)) return QUANTRY_BAD_SHAPE;
  if (importance && groups > 0 && (columns < 1 || groups * kGroup % columns)) return QUANTRY_BAD_SHAPE;
  if (importance && rule == HQQ_PACKAGE && columns % kGroup) return QUANTRY_BAD_SHAPE;
  if (!bad || !beyond) return QUANTRY_BAD_BUFFER;
  *bad = *beyond = -1;
  if (groups == 0) return QUANTRY_OK;
  if (!x || !codes || !scales || !zeros) return QUANTRY_BAD_BUFFER;
  const HqqJob job{dtype, allowed(threads), groups, x, importance, columns, codes, scales, zeros, bad, beyond};
  return ops->encode(static_cast<HqqRule>(rule), bits, job);
}
}
