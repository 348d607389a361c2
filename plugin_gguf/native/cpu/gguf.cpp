// The kernels of ggml's block types and of dense 16-bit weights for one instruction set.
#include <quantry/dense16.h>
#include <quantry/dispatch.h>
#include <quantry/ggml/backward.h>
#include <quantry/ggml/linear.h>
#include <quantry/ggml/repack.h>
#include <quantry/ggml/rows.h>

#include "ops.h"

QUANTRY_BEGIN

Planes planes_of(const void* codes, const void* high, const void* meta) {
  return {static_cast<const uint8_t*>(codes), static_cast<const uint8_t*>(high), static_cast<const uint8_t*>(meta)};
}

void pack(int type, int64_t batch, int64_t rows, int64_t columns, const void* blocks, void* codes, void* high, void* meta,
          int threads) {
  RepackArgs a{batch, rows, columns, static_cast<uint8_t*>(const_cast<void*>(blocks)), static_cast<uint8_t*>(codes),
               static_cast<uint8_t*>(high), static_cast<uint8_t*>(meta), threads};
  with_format(type, [&](auto f) { pack_panels<decltype(f)>(a); });
}

void unpack(int type, int64_t batch, int64_t rows, int64_t columns, void* blocks, const void* codes, const void* high,
            const void* meta, int threads) {
  RepackArgs a{batch, rows, columns, static_cast<uint8_t*>(blocks), static_cast<uint8_t*>(const_cast<void*>(codes)),
               static_cast<uint8_t*>(const_cast<void*>(high)), static_cast<uint8_t*>(const_cast<void*>(meta)), threads};
  with_format(type, [&](auto f) { unpack_panels<decltype(f)>(a); });
}

int64_t scratch_of_linear(int type, int exact, int64_t m, int64_t columns, int threads) {
  int64_t bytes = 0;
  with_format(type, [&](auto f) {
    using F = decltype(f);
    bytes = exact ? linear_scratch<F, true>(m, columns, threads) : linear_scratch<F, false>(m, columns, threads);
  });
  return bytes;
}

void run_linear(int type, int exact, int dtype, int64_t m, int64_t rows, int64_t columns, const void* x, int64_t stride,
                const void* codes, const void* high, const void* meta, const float* bias, void* y, int threads,
                void* scratch) {
  LinearArgs a{{x, m, columns, stride, dtype}, planes_of(codes, high, meta), rows, {y, rows, bias, dtype}, threads,
               static_cast<char*>(scratch)};
  with_format(type, [&](auto f) {
    using F = decltype(f);
    if (exact) linear<F, true>(a);
    else linear<F, false>(a);
  });
}

int64_t scratch_of_linear_dx(int64_t m, int64_t rows, int threads) { return backward_scratch(m, rows, threads); }

void run_linear_dx(int type, int dtype, int64_t m, int64_t rows, int64_t columns, const void* dy, int64_t stride,
                   const void* codes, const void* high, const void* meta, void* dx, int threads, void* scratch) {
  BackwardArgs a{{dy, m, rows, stride, dtype}, planes_of(codes, high, meta), columns, {dx, columns, nullptr, dtype},
                 threads, static_cast<char*>(scratch)};
  with_format(type, [&](auto f) { linear_dx<decltype(f)>(a); });
}

int run_embedding(int type, int dtype, const int64_t* ids, int64_t count, int64_t rows, int64_t columns,
                  const void* blocks, const void* codes, const void* high, const void* meta, void* y, int threads) {
  EmbeddingArgs a{ids, count, rows, columns, static_cast<const uint8_t*>(blocks), planes_of(codes, high, meta), y, dtype,
                  threads};
  bool ok = true;
  with_format(type, [&](auto f) { ok = embedding<decltype(f)>(a); });
  return ok ? QUANTRY_OK : QUANTRY_BAD_INDEX;
}

int64_t scratch_of_dense(int dtype, int64_t m, int64_t columns) { return dense_scratch(m, columns, dtype); }

void run_dense(int weight_dtype, int dtype, int64_t m, int64_t rows, int64_t columns, const void* x, int64_t stride,
               const void* w, const float* bias, void* y, int threads, void* scratch) {
  dense_linear({{x, m, columns, stride, dtype}, static_cast<const uint16_t*>(w), rows, weight_dtype,
                {y, rows, bias, dtype}, threads, static_cast<char*>(scratch)});
}

QUANTRY_END

using namespace quantry::QUANTRY_TARGET;
QUANTRY_TABLE(GgufOps, quantry_gguf_ops) {
  pack, unpack, scratch_of_linear, run_linear, scratch_of_linear_dx, run_linear_dx, run_embedding, scratch_of_dense,
  run_dense,
};
