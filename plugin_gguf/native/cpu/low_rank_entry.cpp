// The C function of what adapters add.
#include <quantry/calls.h>
#include <quantry/dispatch.h>
#include <quantry/low_rank_ops.h>

using namespace quantry::QUANTRY_TARGET;

QUANTRY_DECLARE_TABLES(QuantryLowRankOps, quantry_gguf_low_rank_ops)

// ys[i][widths[i]] += (a x)_i · bs[i] for x [columns]; all f32, exact.
extern "C" QUANTRY_EXPORT int quantry_gguf_low_rank(const QuantryLowRank* w, const float* x, float* const* ys, int threads) {
  if (!w || !ys) return QUANTRY_BAD_BUFFER;
  const QuantryLowRankOps* ops = QUANTRY_TABLE_FOR(quantry_gguf_low_rank_ops, w->target);
  if (!ops) return QUANTRY_BAD_TARGET;
  if (w->count < 1 || w->columns < 0) return QUANTRY_BAD_SHAPE;
  if (!w->a || !w->ranks || !w->widths || !w->bs || !x) return QUANTRY_BAD_BUFFER;
  int64_t ranks = 0, elements = 0;
  for (int i = 0; i < w->count; ++i) {
    if (w->ranks[i] < 1 || w->ranks[i] > kMostRanks - ranks || !sane(kMostRanks, w->widths[i])) return QUANTRY_BAD_SHAPE;
    if (w->widths[i] && (!w->bs[i] || !ys[i])) return QUANTRY_BAD_BUFFER;
    ranks += w->ranks[i];
    elements += w->ranks[i] * w->widths[i];
    if (elements > kMostElements) return QUANTRY_BAD_SHAPE;
  }
  if (!sane(ranks, w->columns)) return QUANTRY_BAD_SHAPE;
  if (w->bytes != (ranks * w->columns + elements) * 4) return QUANTRY_BAD_BUFFER;
  ops->add(*w, x, ys, allowed(threads));
  return QUANTRY_OK;
}
