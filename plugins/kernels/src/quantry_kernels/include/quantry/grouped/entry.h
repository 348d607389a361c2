// The C functions of the grouped families. An ENTRY source of a plugin:
//
//   #define QUANTRY_GROUPED_PREFIX quantry_gptq
//   #define QUANTRY_GROUPED_TABLES(X) X(affine)          // the tables of its KERNELS sources (kernels.h)
//   #include <quantry/grouped/entry.h>
//
// No state, no allocation; every function returns a QuantryStatus. threads: the most to use; small work and calls from
// inside an OpenMP region run on one. x, dy: row stride in elements, columns contiguous; y, dx: contiguous.
#pragma once
#include "../calls.h"   // before threads.h, which declares less of OpenMP
#include "../threads.h"
#include "check.h"
#include "ops.h"

#define QUANTRY_GROUPED_JOIN_(prefix, name) prefix##_##name
#define QUANTRY_GROUPED_JOIN(prefix, name) QUANTRY_GROUPED_JOIN_(prefix, name)
#define QUANTRY_GROUPED_NAME(name) QUANTRY_GROUPED_JOIN(QUANTRY_GROUPED_PREFIX, name)

// One step more, so that the name is whole before others join to it.
#define QUANTRY_GROUPED_DECLARE_(table) QUANTRY_DECLARE_TABLES(GroupedOps, table)
#define QUANTRY_GROUPED_DECLARE(name) QUANTRY_GROUPED_DECLARE_(QUANTRY_GROUPED_NAME(name##_ops))
#define QUANTRY_GROUPED_TABLE_FOR(table, target) QUANTRY_TABLE_FOR(table, target)
QUANTRY_GROUPED_TABLES(QUANTRY_GROUPED_DECLARE)

QUANTRY_BEGIN

// The kernels for a checked weight; null, and why in *bad, when this library or machine has none.
inline const GroupedOps* find_ops(const QuantryGrouped* w, int* bad) {
  if (!quantry_target_runs(w->target)) {
    *bad = QUANTRY_BAD_TARGET;
    return nullptr;
  }
#define QUANTRY_GROUPED_FIND(name)                                                                                 \
  if (const GroupedOps* ops = QUANTRY_GROUPED_TABLE_FOR(QUANTRY_GROUPED_NAME(name##_ops), w->target)) {            \
    if (ops->serves(w)) return ops;                                                                                \
  }
  QUANTRY_GROUPED_TABLES(QUANTRY_GROUPED_FIND)
#undef QUANTRY_GROUPED_FIND
  *bad = QUANTRY_BAD_TYPE;
  return nullptr;
}

QUANTRY_END

#define RETURN_IF_BAD(status) \
  if (int bad = (status)) return bad
#define FIND_OPS(w)                         \
  RETURN_IF_BAD(check_weight(w));           \
  int missing = QUANTRY_OK;                 \
  const GroupedOps* ops = find_ops(w, &missing); \
  if (!ops) return missing

extern "C" {
using namespace quantry::QUANTRY_TARGET;

// 1 if this machine can run `target`, else 0.
QUANTRY_EXPORT int QUANTRY_GROUPED_NAME(target_runs)(int target) { return quantry_target_runs(target); }

// Where this library's OpenMP runtime lies: the loader compares it with torch's.
QUANTRY_EXPORT const void* QUANTRY_GROUPED_NAME(openmp_address)(void) {
  return reinterpret_cast<const void*>(&omp_get_max_threads);
}

// Everything about a weight, its permutation included, which the functions below trust. Call it once per weight.
QUANTRY_EXPORT int QUANTRY_GROUPED_NAME(grouped_check)(const QuantryGrouped* w) {
  FIND_OPS(w);
  const int32_t* perm = static_cast<const int32_t*>(w->perm);
  for (int64_t k = 0; perm && k < w->columns; ++k)
    if (perm[k] < 0 || perm[k] >= w->columns) return QUANTRY_BAD_INDEX;
  return QUANTRY_OK;
}

// Columns that share a rounding of x to int8; 0 when the weight has exact kernels only, or none.
QUANTRY_EXPORT int64_t QUANTRY_GROUPED_NAME(grouped_block)(const QuantryGrouped* w) {
  return !w || check_kind(*w) || check_shape(*w) ? 0 : activation_block(*w);
}

// *bytes = scratch for these weights and `m` rows in one call of grouped_linear_list.
QUANTRY_EXPORT int QUANTRY_GROUPED_NAME(grouped_scratch_list)(const QuantryGrouped* const* weights, int count, int64_t m,
                                                              int threads, int64_t* bytes) {
  int64_t need = 0;
  for (int i = 0; i < count; ++i) {
    FIND_OPS(weights[i]);
    if (!sane(m, weights[i]->columns + kChunk)) return QUANTRY_BAD_SHAPE;
    need += ops->linear_scratch(weights[i], m, allowed(threads));
  }
  *bytes = with_alignment(need);
  return QUANTRY_OK;
}
QUANTRY_EXPORT int QUANTRY_GROUPED_NAME(grouped_scratch)(const QuantryGrouped* w, int64_t m, int threads, int64_t* bytes) {
  return QUANTRY_GROUPED_NAME(grouped_scratch_list)(&w, 1, m, threads, bytes);
}

// ys[i][m, rows of weight i] = x[m, columns] · Wᵢᵀ + biases[i] for weights of one target and equal columns, in one parallel
// region. biases: null, or f32 or null each.
QUANTRY_EXPORT int QUANTRY_GROUPED_NAME(grouped_linear_list)(const QuantryGrouped* const* weights, int count, int dtype,
                                                             int64_t m, const void* x, int64_t stride,
                                                             const float* const* biases, void* const* ys, int threads,
                                                             void* scratch, int64_t scratch_bytes) {
  threads = allowed(threads);
  int64_t need = 0, work = 0;
  for (int i = 0; i < count; ++i) {
    const QuantryGrouped* w = weights[i];
    FIND_OPS(w);
    RETURN_IF_BAD(check_activations(dtype, m, w->columns, stride, x));
    if (!sane(m, w->rows + kRows) || !sane(m, w->columns + kChunk)) return QUANTRY_BAD_SHAPE;
    if (w->columns != weights[0]->columns) return QUANTRY_BAD_SHAPE;
    if (w->target != weights[0]->target) return QUANTRY_BAD_TARGET;
    if (m && w->rows && !ys[i]) return QUANTRY_BAD_BUFFER;
    need += ops->linear_scratch(w, m, threads);
    work += GroupedWeight(*w).bytes() * m;
  }
  if (m == 0) return QUANTRY_OK;
  char* space = need ? aligned(scratch, scratch_bytes, need) : nullptr;
  if (need && !space) return QUANTRY_BAD_SCRATCH;
  parallel(useful_threads(work, threads), [&](Team team) {
    char* mine = space;
    for (int i = 0; i < count; ++i) {
      int missing = QUANTRY_OK;
      const GroupedOps* ops = find_ops(weights[i], &missing);
      const GroupedCall call{dtype, m, x, stride, biases ? biases[i] : nullptr, ys[i]};
      ops->linear(weights[i], &call, team.id, team.count, mine);
      mine += ops->linear_scratch(weights[i], m, team.count);
    }
  });
  return QUANTRY_OK;
}
QUANTRY_EXPORT int QUANTRY_GROUPED_NAME(grouped_linear)(const QuantryGrouped* w, int dtype, int64_t m, const void* x,
                                                        int64_t stride, const float* bias, void* y, int threads,
                                                        void* scratch, int64_t scratch_bytes) {
  return QUANTRY_GROUPED_NAME(grouped_linear_list)(&w, 1, dtype, m, x, stride, &bias, &y, threads, scratch, scratch_bytes);
}

QUANTRY_EXPORT int QUANTRY_GROUPED_NAME(grouped_experts_scratch)(const QuantryGrouped* w, int64_t experts, int64_t tokens,
                                                                 int64_t slots, int threads, int64_t* bytes) {
  FIND_OPS(w);
  if (!sane(tokens, slots) || experts < 0 || experts > kMostElements || !sane(tokens * slots, w->columns + kChunk))
    return QUANTRY_BAD_SHAPE;
  *bytes = with_alignment(ops->experts_scratch(w, experts, tokens * slots, allowed(threads)));
  return QUANTRY_OK;
}

// y[tokens, slots, rows] = x · W[ids[token, slot]]ᵀ + bias[id] for `experts` matrices of the sizes in `w`, whose buffers
// lie one after the other. shared: x has one row a token, else one a slot. bias [experts, rows] or null.
QUANTRY_EXPORT int QUANTRY_GROUPED_NAME(grouped_experts)(const QuantryGrouped* w, int64_t experts, int dtype,
                                                         int64_t tokens, int64_t slots, int shared, const void* x, int64_t stride,
                                                         const int64_t* ids, const float* bias, void* y, int threads,
                                                         void* scratch, int64_t scratch_bytes) {
  FIND_OPS(w);
  if (!sane(tokens, slots) || experts < 0 || !sane(experts, w->codes_bytes)) return QUANTRY_BAD_SHAPE;
  const int64_t pairs = tokens * slots;
  RETURN_IF_BAD(check_activations(dtype, shared ? tokens : pairs, w->columns, stride, x));
  if (!sane(pairs, w->rows + kRows) || !sane(pairs, w->columns + kChunk)) return QUANTRY_BAD_SHAPE;
  if (pairs == 0 || w->rows == 0) return QUANTRY_OK;
  if (!ids || !y) return QUANTRY_BAD_BUFFER;
  for (int64_t i = 0; i < pairs; ++i)
    if (ids[i] < 0 || ids[i] >= experts) return QUANTRY_BAD_INDEX;
  threads = allowed(threads);
  char* space = aligned(scratch, scratch_bytes, ops->experts_scratch(w, experts, pairs, threads));
  if (!space) return QUANTRY_BAD_SCRATCH;
  const GroupedExperts e{experts, tokens, slots, shared, ids};
  const GroupedCall call{dtype, shared ? tokens : pairs, x, stride, bias, y};
  ops->experts(w, &e, &call, threads, space);
  return QUANTRY_OK;
}

QUANTRY_EXPORT int QUANTRY_GROUPED_NAME(grouped_dx_scratch)(const QuantryGrouped* w, int64_t m, int threads,
                                                            int64_t* bytes) {
  FIND_OPS(w);
  if (!sane(m, w->rows + kRows)) return QUANTRY_BAD_SHAPE;
  *bytes = with_alignment(ops->dx_scratch(w, m, allowed(threads)));
  return QUANTRY_OK;
}

// dx[m, columns] = dy[m, rows] · W, exact; dx has the dtype of dy.
QUANTRY_EXPORT int QUANTRY_GROUPED_NAME(grouped_dx)(const QuantryGrouped* w, int dtype, int64_t m, const void* dy,
                                                    int64_t stride, void* dx, int threads, void* scratch,
                                                    int64_t scratch_bytes) {
  FIND_OPS(w);
  RETURN_IF_BAD(check_activations(dtype, m, w->rows, stride, dy));
  if (!sane(m, w->columns) || !sane(m, w->rows + kRows)) return QUANTRY_BAD_SHAPE;
  if (m == 0 || w->columns == 0) return QUANTRY_OK;
  if (!dx) return QUANTRY_BAD_BUFFER;
  threads = allowed(threads);
  char* space = aligned(scratch, scratch_bytes, ops->dx_scratch(w, m, threads));
  if (!space) return QUANTRY_BAD_SCRATCH;
  const GroupedCall call{dtype, m, dy, stride, nullptr, dx};
  ops->dx(w, &call, threads, space);
  return QUANTRY_OK;
}

// y[count, columns] = rows ids[count] of W. Nothing is written when an id is out of range.
QUANTRY_EXPORT int QUANTRY_GROUPED_NAME(grouped_embedding)(const QuantryGrouped* w, int dtype, const int64_t* ids,
                                                           int64_t count, void* y, int threads) {
  FIND_OPS(w);
  RETURN_IF_BAD(check_activations(dtype, count, w->columns, w->columns, y));
  if (count && !ids) return QUANTRY_BAD_BUFFER;
  for (int64_t i = 0; i < count; ++i)
    if (ids[i] < 0 || ids[i] >= w->rows) return QUANTRY_BAD_INDEX;
  if (count && w->columns) ops->embedding(w, dtype, ids, count, y, allowed(threads));
  return QUANTRY_OK;
}

}  // extern "C"

#undef RETURN_IF_BAD
#undef FIND_OPS
