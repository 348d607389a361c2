// The functions of one instruction set: block types by their number, and dense 16-bit weights.
#include <quantry/dense16.h>
#include <quantry/dispatch.h>

#include "format_ops.h"

extern "C" {
extern const FormatList QUANTRY_CAT(quantry_gguf_legacy, QUANTRY_TARGET), QUANTRY_CAT(quantry_gguf_k, QUANTRY_TARGET),
    QUANTRY_CAT(quantry_gguf_table, QUANTRY_TARGET), QUANTRY_CAT(quantry_gguf_bits, QUANTRY_TARGET),
    QUANTRY_CAT(quantry_gguf_iq2, QUANTRY_TARGET), QUANTRY_CAT(quantry_gguf_iq3, QUANTRY_TARGET),
    QUANTRY_CAT(quantry_gguf_small, QUANTRY_TARGET);
}

QUANTRY_BEGIN

// The entry of a type; entry.cpp has checked that there is one.
const FormatOps& ops_of_type(int type) {
  static const FormatList* const lists[] = {
      &QUANTRY_CAT(quantry_gguf_k, QUANTRY_TARGET),     &QUANTRY_CAT(quantry_gguf_legacy, QUANTRY_TARGET),
      &QUANTRY_CAT(quantry_gguf_table, QUANTRY_TARGET), &QUANTRY_CAT(quantry_gguf_bits, QUANTRY_TARGET),
      &QUANTRY_CAT(quantry_gguf_iq2, QUANTRY_TARGET),   &QUANTRY_CAT(quantry_gguf_iq3, QUANTRY_TARGET),
      &QUANTRY_CAT(quantry_gguf_small, QUANTRY_TARGET),
  };
  for (const FormatList* list : lists)
    for (int i = 0; i < list->count; ++i)
      if (list->ops[i].type == type) return list->ops[i];
  __builtin_unreachable();
}

void pack_type(int type, int64_t batch, int64_t rows, int64_t columns, const void* blocks, void* codes, void* high, void* meta,
               int threads) {
  ops_of_type(type).pack(batch, rows, columns, blocks, codes, high, meta, threads);
}

void unpack_type(int type, int64_t batch, int64_t rows, int64_t columns, void* blocks, const void* codes, const void* high,
                 const void* meta, int threads) {
  ops_of_type(type).unpack(batch, rows, columns, blocks, codes, high, meta, threads);
}

int64_t linear_scratch_of(const QuantryBoundLinear& w, int64_t m, int threads) {
  return ops_of_type(w.type).linear_scratch(w, m, threads);
}

// One parallel region for all weights: the fork and join of a small matrix costs more than its product.
void linear_all(const QuantryBoundLinear* const* weights, int count, int dtype, int64_t m, const void* x, int64_t stride,
                const float* const* biases, void* const* ys, int threads, void* scratch) {
  int64_t bytes = 0;
  for (int i = 0; i < count; ++i) bytes += weights[i]->plane_bytes * m;
  parallel(useful_threads(bytes, threads), [&](Team team) {
    char* space = static_cast<char*>(scratch);
    for (int i = 0; i < count; ++i) {
      const QuantryBoundLinear& w = *weights[i];
      const FormatOps& ops = ops_of_type(w.type);
      ops.linear_share(w, dtype, m, x, stride, biases ? biases[i] : nullptr, ys[i], team.id, team.count, space);
      space += ops.linear_scratch(w, m, team.count);
    }
  });
}

int64_t experts_scratch_of(const QuantryBoundLinear& w, int64_t count, int64_t pairs, int threads) {
  return ops_of_type(w.type).experts_scratch(w, count, pairs, threads);
}

void experts_of(const QuantryBoundLinear& w, int64_t count, int dtype, int64_t tokens, int64_t slots, int shared,
                const void* x, int64_t stride, const int64_t* ids, const float* bias, void* y, int threads, void* scratch) {
  ops_of_type(w.type).experts(w, count, dtype, tokens, slots, shared, x, stride, ids, bias, y, threads, scratch);
}

int64_t linear_dx_scratch_of(int64_t m, int64_t rows, int threads) { return backward_scratch(m, rows, threads); }

void linear_dx_of(int type, int dtype, int64_t m, int64_t rows, int64_t columns, const void* dy, int64_t stride,
                  const void* codes, const void* high, const void* meta, void* dx, int threads, void* scratch) {
  const QuantryBoundLinear w{0, type, 1, 0, rows, columns, codes, high, meta, 0};
  ops_of_type(type).linear_dx(w, dtype, m, dy, stride, dx, threads, scratch);
}

int embedding_of(int type, int dtype, const int64_t* ids, int64_t count, int64_t rows, int64_t columns, const void* blocks,
                 const void* codes, const void* high, const void* meta, void* y, int threads) {
  return ops_of_type(type).embedding(dtype, ids, count, rows, columns, blocks, codes, high, meta, y, threads);
}

int64_t dense_scratch_of(int dtype, int64_t m, int64_t columns) { return dense_scratch(m, columns, dtype); }

void dense_of(int weight_dtype, int dtype, int64_t m, int64_t rows, int64_t columns, const void* x, int64_t stride,
              const void* w, const float* bias, void* y, int threads, void* scratch) {
  dense_linear({{x, m, columns, stride, dtype}, static_cast<const uint16_t*>(w), rows, weight_dtype,
                {y, rows, bias, dtype}, threads, static_cast<char*>(scratch)});
}

QUANTRY_END

using namespace quantry::QUANTRY_TARGET;
QUANTRY_TABLE(GgufOps, quantry_gguf_ops) {
  pack_type, unpack_type, linear_scratch_of, linear_all, experts_scratch_of, experts_of, linear_dx_scratch_of, linear_dx_of,
  embedding_of, dense_scratch_of, dense_of,
};
