// The kernels of ggml's block types and of dense 16-bit weights for one instruction set.
#include <quantry/backward.h>
#include <quantry/dense16.h>
#include <quantry/dispatch.h>
#include <quantry/experts.h>
#include <quantry/ggml/repack.h>
#include <quantry/ggml/rows.h>
#include <quantry/ggml/source.h>

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

// Calls body(source, Const<exact>) for a weight of any type.
template <class Body>
QUANTRY_INLINE void with_source(const QuantryBoundLinear& w, Body&& body) {
  with_format(w.type, [&](auto f) {
    GgmlSource<decltype(f)> source{planes_of(w.codes, w.high, w.meta), w.rows, w.columns};
    if (w.exact) body(source, Const<1>{});
    else body(source, Const<0>{});
  });
}

int64_t scratch_of_linear(const QuantryBoundLinear& w, int64_t m, int threads) {
  int64_t bytes = 0;
  with_source(w, [&](auto source, auto exact) { bytes = linear_scratch<decltype(source), exact>(source, m, threads); });
  return bytes;
}

// One parallel region for all weights: the fork and join of a small matrix costs more than its product.
void run_linear(const QuantryBoundLinear* const* weights, int count, int dtype, int64_t m, const void* x, int64_t stride,
                const float* const* biases, void* const* ys, int threads, void* scratch) {
  int64_t bytes = 0;
  for (int i = 0; i < count; ++i) bytes += weights[i]->plane_bytes * m;
  parallel(useful_threads(bytes, threads), [&](Team team) {
    char* space = static_cast<char*>(scratch);
    for (int i = 0; i < count; ++i) {
      const QuantryBoundLinear& w = *weights[i];
      LinearArgs a{{x, m, w.columns, stride, dtype}, {ys[i], w.rows, biases ? biases[i] : nullptr, dtype}, space};
      with_source(w, [&](auto source, auto exact) {
        linear_team<decltype(source), exact>(source, a, team);
        space += linear_scratch<decltype(source), exact>(source, m, team.count);
      });
    }
  });
}

int64_t scratch_of_experts(const QuantryBoundLinear& w, int64_t count, int64_t pairs, int threads) {
  int64_t bytes = 0;
  with_source(w, [&](auto source, auto exact) {
    bytes = experts_scratch<decltype(source), exact>(source, pairs, count, threads);
  });
  return bytes;
}

void run_experts(const QuantryBoundLinear& w, int64_t count, int dtype, int64_t tokens, int64_t slots, int shared,
                 const void* x, int64_t stride, const int64_t* ids, const float* bias, void* y, int threads, void* scratch) {
  const int64_t pairs = tokens * slots;
  ExpertsArgs a{{x, shared ? tokens : pairs, w.columns, stride, dtype}, ids, pairs, slots, shared != 0, count,
                {y, w.rows, bias, dtype}, static_cast<char*>(scratch)};
  with_source(w, [&](auto source, auto exact) {
    using S = decltype(source);
    const Planes first = source.w;
    auto expert = [&](int64_t e) {
      const int64_t panels = (w.rows + kRows - 1) / kRows;
      S one = source;
      one.w = S::expert(first, panels * e, w.columns);
      return one;
    };
    experts<S, exact>(expert, a, threads);
  });
}

int64_t scratch_of_linear_dx(int64_t m, int64_t rows, int threads) { return backward_scratch(m, rows, threads); }

void run_linear_dx(int type, int dtype, int64_t m, int64_t rows, int64_t columns, const void* dy, int64_t stride,
                   const void* codes, const void* high, const void* meta, void* dx, int threads, void* scratch) {
  BackwardArgs a{{dy, m, rows, stride, dtype}, {dx, columns, nullptr, dtype}, static_cast<char*>(scratch)};
  with_format(type, [&](auto f) {
    linear_dx(GgmlSource<decltype(f)>{planes_of(codes, high, meta), rows, columns}, a, threads);
  });
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
  pack, unpack, scratch_of_linear, run_linear, scratch_of_experts, run_experts, scratch_of_linear_dx, run_linear_dx, run_embedding, scratch_of_dense,
  run_dense,
};
