// The C ABI of the GGUF plugin: flat arguments, no state, no allocation; every function returns a QuantryStatus.
//
// target: QuantryTarget (quantry/dispatch.h). type: ggml's number. dtype: QuantryDtype of activations and results.
// Weights are [rows, columns] = [N, K]; planes as in quantry/panel.h and quantry/ggml/formats.h, `plane_bytes` their sum.
// threads: the most to use; small work and calls from inside an OpenMP region run on one.
#include <quantry/calls.h>
#include <quantry/dispatch.h>
#include <quantry/huge_pages.h>

#include "ops.h"

using namespace quantry::QUANTRY_TARGET;

QUANTRY_DECLARE_TABLES(GgufOps, quantry_gguf_ops)

namespace {

struct TypeSizes {
  int type, block, block_bytes, codes, high, meta;   // codes, high: bytes of 16 rows × 32 columns; meta: × one block
  bool panels() const { return codes != 0; }          // else the weight stays in file order: blocks in place of codes
};
// Repeats the constants of quantry/ggml/formats.h and row_types.h, which only per-target code may include; tests compare.
const TypeSizes kTypes[] = {
    {2, 32, 18, 256, 0, 32},      {3, 32, 20, 256, 0, 64},     {6, 32, 22, 256, 64, 32},    {7, 32, 24, 256, 64, 64},
    {8, 32, 34, 512, 0, 32},      {9, 32, 36, 512, 0, 64},     {10, 256, 84, 128, 0, 320},  {11, 256, 110, 128, 64, 224},
    {12, 256, 144, 256, 0, 256},  {13, 256, 176, 256, 64, 256}, {14, 256, 210, 256, 128, 288}, {20, 32, 18, 256, 0, 32},
    {23, 256, 136, 256, 0, 128},  {39, 32, 17, 256, 0, 16},    {40, 64, 36, 256, 0, 64},
    {35, 256, 66, 128, 0, 32},    {41, 128, 18, 64, 0, 32},    {42, 64, 18, 128, 0, 32},
    // in file order
    {15, 256, 292, 0, 0, 0},      {16, 256, 66, 0, 0, 0},      {17, 256, 74, 0, 0, 0},      {18, 256, 98, 0, 0, 0},
    {19, 256, 50, 0, 0, 0},       {21, 256, 110, 0, 0, 0},     {22, 256, 82, 0, 0, 0},      {29, 256, 56, 0, 0, 0},
    {34, 256, 54, 0, 0, 0},
};

const TypeSizes* sizes_of(int type) {
  for (const TypeSizes& t : kTypes)
    if (t.type == type) return &t;
  return nullptr;
}

int64_t panels_of(int64_t rows) { return rows / 16 + (rows % 16 != 0); }

int64_t plane_bytes_of(const TypeSizes& t, int64_t rows, int64_t columns) {
  if (!t.panels()) return rows * (columns / t.block) * t.block_bytes;
  return panels_of(rows) * (columns / 32 * (t.codes + t.high) + columns / t.block * t.meta);
}

// Type, shape and planes of a weight agree.
int check_weight(const TypeSizes* t, int64_t rows, int64_t columns, const void* codes, const void* high, const void* meta,
                 int64_t plane_bytes) {
  if (!t) return QUANTRY_BAD_TYPE;
  if (!sane(rows, columns) || columns % t->block) return QUANTRY_BAD_SHAPE;
  if (plane_bytes != plane_bytes_of(*t, rows, columns)) return QUANTRY_BAD_BUFFER;
  if (plane_bytes && (!codes || (t->meta && !meta) || (t->high && !high))) return QUANTRY_BAD_BUFFER;
  return QUANTRY_OK;
}

int check_call(int dtype, int64_t m, int64_t columns, int64_t stride, const void* x, const void* y) {
  if (int bad = check_activations(dtype, m, columns, stride, x)) return bad;
  return m && columns && !y ? QUANTRY_BAD_BUFFER : QUANTRY_OK;
}

int check_repack(const TypeSizes* t, int64_t batch, int64_t rows, int64_t columns, const void* blocks, int64_t block_bytes,
                 const void* codes, const void* high, const void* meta, int64_t plane_bytes) {
  if (!t || !t->panels()) return QUANTRY_BAD_TYPE;
  if (!sane(rows, columns) || columns % t->block || !sane(batch, panels_of(rows) * 16) ||
      !sane(batch * panels_of(rows) * 16, columns))
    return QUANTRY_BAD_SHAPE;
  if (block_bytes != batch * rows * (columns / t->block) * t->block_bytes || (block_bytes && !blocks))
    return QUANTRY_BAD_BUFFER;
  if (batch == 0) return plane_bytes ? QUANTRY_BAD_BUFFER : QUANTRY_OK;
  if (plane_bytes % batch) return QUANTRY_BAD_BUFFER;
  return check_weight(t, rows, columns, codes, high, meta, plane_bytes / batch);
}

}  // namespace

#define FIND_OPS(target)                                                \
  const GgufOps* ops = QUANTRY_TABLE_FOR(quantry_gguf_ops, target);     \
  if (!ops) return QUANTRY_BAD_TARGET
#define RETURN_IF_BAD(status)           \
  if (int bad = (status)) return bad

extern "C" {

// 1 if this machine can run `target`, else 0.
QUANTRY_EXPORT int quantry_gguf_target_runs(int target) { return QUANTRY_TABLE_FOR(quantry_gguf_ops, target) != nullptr; }

// Where this library's OpenMP runtime lies: the loader compares it with torch's.
QUANTRY_EXPORT const void* quantry_gguf_openmp_address(void) {
  return reinterpret_cast<const void*>(&omp_get_max_threads);
}

// out[5] = block, block bytes, code bytes and high bytes of 16 rows × 32 columns, meta bytes of 16 rows × a block.
QUANTRY_EXPORT int quantry_gguf_type_sizes(int type, int* out) {
  const TypeSizes* t = sizes_of(type);
  if (!t) return QUANTRY_BAD_TYPE;
  out[0] = t->block, out[1] = t->block_bytes, out[2] = t->codes, out[3] = t->high, out[4] = t->meta;
  return QUANTRY_OK;
}

// blocks [batch, rows, columns / block × block bytes] in file order → planes [batch, panels, …]. Moves bits only.
QUANTRY_EXPORT int quantry_gguf_pack(int target, int type, int64_t batch, int64_t rows, int64_t columns,
                                     const void* blocks, int64_t block_bytes, void* codes, void* high, void* meta,
                                     int64_t plane_bytes, int threads) {
  FIND_OPS(target);
  const TypeSizes* t = sizes_of(type);
  RETURN_IF_BAD(check_repack(t, batch, rows, columns, blocks, block_bytes, codes, high, meta, plane_bytes));
  if (block_bytes == 0) return QUANTRY_OK;
  quantry_advise_huge(codes, batch * panels_of(rows) * (columns / 32) * t->codes);
  ops->pack(type, batch, rows, columns, blocks, codes, high, meta, allowed(threads));
  return QUANTRY_OK;
}

// The inverse; rows that only pad the last panel are dropped.
QUANTRY_EXPORT int quantry_gguf_unpack(int target, int type, int64_t batch, int64_t rows, int64_t columns, void* blocks,
                                       int64_t block_bytes, const void* codes, const void* high, const void* meta,
                                       int64_t plane_bytes, int threads) {
  FIND_OPS(target);
  RETURN_IF_BAD(
      check_repack(sizes_of(type), batch, rows, columns, blocks, block_bytes, codes, high, meta, plane_bytes));
  if (block_bytes == 0) return QUANTRY_OK;
  ops->unpack(type, batch, rows, columns, blocks, codes, high, meta, allowed(threads));
  return QUANTRY_OK;
}

// *bytes = scratch that quantry_gguf_linear needs for `m` rows and these weights.
QUANTRY_EXPORT int quantry_gguf_linear_scratch(const QuantryBoundLinear* const* weights, int count, int64_t m, int threads,
                                               int64_t* bytes) {
  *bytes = 0;
  int64_t need = 0;
  for (int i = 0; i < count; ++i) {
    FIND_OPS(weights[i]->target);
    if (!sizes_of(weights[i]->type)) return QUANTRY_BAD_TYPE;
    if (!sane(m, weights[i]->columns)) return QUANTRY_BAD_SHAPE;
    need += ops->linear_scratch(*weights[i], m, allowed(threads));
  }
  *bytes = with_alignment(need);
  return QUANTRY_OK;
}

// ys[i][m, rows of weight i] = x[m, columns] · Wᵢᵀ + biases[i] for weights of one target and equal columns, in one parallel
// region. x: row stride in elements, columns contiguous; y: contiguous. biases: null, or f32 or null each.
QUANTRY_EXPORT int quantry_gguf_linear(const QuantryBoundLinear* const* weights, int count, int dtype, int64_t m,
                                       const void* x, int64_t stride, const float* const* biases, void* const* ys,
                                       int threads, void* scratch, int64_t scratch_bytes) {
  if (count <= 0) return QUANTRY_OK;
  FIND_OPS(weights[0]->target);
  threads = allowed(threads);
  int64_t need = 0;
  for (int i = 0; i < count; ++i) {
    const QuantryBoundLinear& w = *weights[i];
    RETURN_IF_BAD(check_weight(sizes_of(w.type), w.rows, w.columns, w.codes, w.high, w.meta, w.plane_bytes));
    RETURN_IF_BAD(check_call(dtype, m, w.columns, stride, x, ys[i]));
    if (!sane(m, w.rows) || w.columns != weights[0]->columns) return QUANTRY_BAD_SHAPE;
    if (w.target != weights[0]->target) return QUANTRY_BAD_TARGET;
    if (m && w.rows && !ys[i]) return QUANTRY_BAD_BUFFER;
    need += ops->linear_scratch(w, m, threads);
  }
  if (m == 0) return QUANTRY_OK;
  void* space = need ? aligned(scratch, scratch_bytes, need) : nullptr;
  if (need && !space) return QUANTRY_BAD_SCRATCH;
  ops->linear(weights, count, dtype, m, x, stride, biases, ys, threads, space);
  return QUANTRY_OK;
}

// The same for one weight: each argument costs a caller through ctypes 60 ns.
QUANTRY_EXPORT int quantry_gguf_linear_one(const QuantryBoundLinear* w, int dtype, int64_t m, const void* x,
                                           int64_t stride, const float* bias, void* y, int threads, void* scratch,
                                           int64_t scratch_bytes) {
  return quantry_gguf_linear(&w, 1, dtype, m, x, stride, &bias, &y, threads, scratch, scratch_bytes);
}

QUANTRY_EXPORT int quantry_gguf_experts_scratch(const QuantryBoundLinear* w, int64_t experts, int64_t tokens, int64_t slots,
                                                int threads, int64_t* bytes) {
  FIND_OPS(w->target);
  if (!sizes_of(w->type)) return QUANTRY_BAD_TYPE;
  if (!sane(tokens, slots) || experts < 0 || !sane(tokens * slots, w->columns)) return QUANTRY_BAD_SHAPE;
  *bytes = ops->experts_scratch(*w, experts, tokens * slots, allowed(threads)) + kAlignment;
  return QUANTRY_OK;
}

// y[tokens, slots, rows] = x · W[ids[token, slot]]ᵀ + bias[id] for `experts` matrices as described by `w`, whose planes lie
// one after the other; plane_bytes is of one. shared: x has one row a token, else one a slot. bias [experts, rows] or null.
QUANTRY_EXPORT int quantry_gguf_experts(const QuantryBoundLinear* w, int64_t experts, int dtype, int64_t tokens,
                                        int64_t slots, int shared, const void* x, int64_t stride, const int64_t* ids,
                                        const float* bias, void* y, int threads, void* scratch, int64_t scratch_bytes) {
  FIND_OPS(w->target);
  RETURN_IF_BAD(check_weight(sizes_of(w->type), w->rows, w->columns, w->codes, w->high, w->meta, w->plane_bytes));
  if (!sane(tokens, slots) || experts < 0 || !sane(experts, w->plane_bytes)) return QUANTRY_BAD_SHAPE;
  const int64_t pairs = tokens * slots;
  RETURN_IF_BAD(check_call(dtype, shared ? tokens : pairs, w->columns, stride, x, y));
  if (!sane(pairs, w->rows)) return QUANTRY_BAD_SHAPE;
  if (pairs == 0 || w->rows == 0) return QUANTRY_OK;
  if (!ids || !y) return QUANTRY_BAD_BUFFER;
  for (int64_t i = 0; i < pairs; ++i)
    if (ids[i] < 0 || ids[i] >= experts) return QUANTRY_BAD_INDEX;
  threads = allowed(threads);
  void* space = aligned(scratch, scratch_bytes, ops->experts_scratch(*w, experts, pairs, threads));
  if (!space) return QUANTRY_BAD_SCRATCH;
  ops->experts(*w, experts, dtype, tokens, slots, shared, x, stride, ids, bias, y, threads, space);
  return QUANTRY_OK;
}

QUANTRY_EXPORT int quantry_gguf_linear_dx_scratch(int target, int64_t m, int64_t rows, int threads, int64_t* bytes) {
  FIND_OPS(target);
  if (!sane(m, rows)) return QUANTRY_BAD_SHAPE;
  *bytes = ops->linear_dx_scratch(m, rows, allowed(threads)) + kAlignment;
  return QUANTRY_OK;
}

// dx[m, columns] = dy[m, rows] · W, exact. dy: row stride in elements; dx: contiguous, dtype of dy.
QUANTRY_EXPORT int quantry_gguf_linear_dx(int target, int type, int dtype, int64_t m, int64_t rows, int64_t columns,
                                          const void* dy, int64_t stride, const void* codes, const void* high,
                                          const void* meta, int64_t plane_bytes, void* dx, int threads, void* scratch,
                                          int64_t scratch_bytes) {
  FIND_OPS(target);
  RETURN_IF_BAD(check_weight(sizes_of(type), rows, columns, codes, high, meta, plane_bytes));
  RETURN_IF_BAD(check_call(dtype, m, rows, stride, dy, dx));
  if (!sane(m, columns)) return QUANTRY_BAD_SHAPE;
  if (m == 0 || columns == 0) return QUANTRY_OK;
  if (!dx) return QUANTRY_BAD_BUFFER;
  threads = allowed(threads);
  void* space = aligned(scratch, scratch_bytes, ops->linear_dx_scratch(m, rows, threads));
  if (!space) return QUANTRY_BAD_SCRATCH;
  ops->linear_dx(type, dtype, m, rows, columns, dy, stride, codes, high, meta, dx, threads, space);
  return QUANTRY_OK;
}

// y[i, :] = W[ids[i], :] from planes. No id is followed when one is out of range.
QUANTRY_EXPORT int quantry_gguf_embedding(int target, int type, int dtype, const int64_t* ids, int64_t count, int64_t rows,
                                          int64_t columns, const void* codes, const void* high, const void* meta,
                                          int64_t plane_bytes, void* y, int threads) {
  FIND_OPS(target);
  const TypeSizes* t = sizes_of(type);
  if (!t || !t->panels()) return QUANTRY_BAD_TYPE;
  RETURN_IF_BAD(check_weight(t, rows, columns, codes, high, meta, plane_bytes));
  RETURN_IF_BAD(check_call(dtype, count, columns, columns, ids, y));
  return ops->embedding(type, dtype, ids, count, rows, columns, nullptr, codes, high, meta, y, allowed(threads));
}

// The same from blocks in file order.
QUANTRY_EXPORT int quantry_gguf_embedding_rows(int target, int type, int dtype, const int64_t* ids, int64_t count,
                                               int64_t rows, int64_t columns, const void* blocks, int64_t block_bytes,
                                               void* y, int threads) {
  FIND_OPS(target);
  const TypeSizes* t = sizes_of(type);
  if (!t) return QUANTRY_BAD_TYPE;
  if (!sane(rows, columns) || columns % t->block) return QUANTRY_BAD_SHAPE;
  if (block_bytes != rows * (columns / t->block) * t->block_bytes || (block_bytes && !blocks)) return QUANTRY_BAD_BUFFER;
  RETURN_IF_BAD(check_call(dtype, count, columns, columns, ids, y));
  // A pointer that is never followed tells an empty matrix from planes.
  if (!blocks) blocks = kTypes;
  return ops->embedding(type, dtype, ids, count, rows, columns, blocks, nullptr, nullptr, nullptr, y, allowed(threads));
}

QUANTRY_EXPORT int quantry_gguf_dense_scratch(int target, int dtype, int64_t m, int64_t columns, int64_t* bytes) {
  FIND_OPS(target);
  if (!sane(m, columns)) return QUANTRY_BAD_SHAPE;
  int64_t need = ops->dense_scratch(dtype, m, columns);
  *bytes = with_alignment(need);
  return QUANTRY_OK;
}

// y[m, rows] = x[m, columns] · Wᵀ + bias with W [rows, columns] f16 or bf16 (weight_dtype), contiguous; exact.
QUANTRY_EXPORT int quantry_gguf_dense(int target, int weight_dtype, int dtype, int64_t m, int64_t rows, int64_t columns,
                                      const void* x, int64_t stride, const void* w, int64_t weight_bytes,
                                      const float* bias, void* y, int threads, void* scratch, int64_t scratch_bytes) {
  FIND_OPS(target);
  if (weight_dtype != QUANTRY_F16 && weight_dtype != QUANTRY_BF16) return QUANTRY_BAD_TYPE;
  if (!sane(rows, columns) || !sane(m, rows)) return QUANTRY_BAD_SHAPE;
  if (weight_bytes != rows * columns * 2 || (weight_bytes && !w)) return QUANTRY_BAD_BUFFER;
  RETURN_IF_BAD(check_call(dtype, m, columns, stride, x, y));
  if (m == 0 || rows == 0) return QUANTRY_OK;
  if (!y) return QUANTRY_BAD_BUFFER;
  int64_t need = ops->dense_scratch(dtype, m, columns);
  void* space = need ? aligned(scratch, scratch_bytes, need) : nullptr;
  if (need && !space) return QUANTRY_BAD_SCRATCH;
  ops->dense(weight_dtype, dtype, m, rows, columns, x, stride, w, bias, y, allowed(threads), space);
  return QUANTRY_OK;
}

}  // extern "C"
