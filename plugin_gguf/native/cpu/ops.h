// The functions every target offers, as a table of pointers. Arguments were checked by entry.cpp.
#pragma once
#include <stdint.h>

// One weight, described once: what does not change between calls. `exact` 1: x is used as given; 0: ggml's int8 activations.
struct QuantryBoundLinear {
  int32_t target, type, exact, unused;
  int64_t rows, columns;
  const void *codes, *high, *meta;
  int64_t plane_bytes;
};

struct GgufOps {
  void (*pack)(int type, int64_t batch, int64_t rows, int64_t columns, const void* blocks, void* codes, void* high,
               void* meta, int threads);
  void (*unpack)(int type, int64_t batch, int64_t rows, int64_t columns, void* blocks, const void* codes,
                 const void* high, const void* meta, int threads);
  int64_t (*linear_scratch)(const QuantryBoundLinear& w, int64_t m, int threads);
  void (*linear)(const QuantryBoundLinear* const* weights, int count, int dtype, int64_t m, const void* x, int64_t stride,
                 const float* const* biases, void* const* ys, int threads, void* scratch);
  int64_t (*experts_scratch)(const QuantryBoundLinear& w, int64_t count, int64_t pairs, int threads);
  void (*experts)(const QuantryBoundLinear& w, int64_t count, int dtype, int64_t tokens, int64_t slots, int shared,
                  const void* x, int64_t stride, const int64_t* ids, const float* bias, void* y, int threads,
                  void* scratch);
  int64_t (*linear_dx_scratch)(int64_t m, int64_t rows, int threads);
  void (*linear_dx)(int type, int dtype, int64_t m, int64_t rows, int64_t columns, const void* dy, int64_t stride,
                    const void* codes, const void* high, const void* meta, void* dx, int threads, void* scratch);
  int (*embedding)(int type, int dtype, const int64_t* ids, int64_t count, int64_t rows, int64_t columns,
                   const void* blocks, const void* codes, const void* high, const void* meta, void* y, int threads);
  int64_t (*dense_scratch)(int dtype, int64_t m, int64_t columns);
  void (*dense)(int weight_dtype, int dtype, int64_t m, int64_t rows, int64_t columns, const void* x, int64_t stride,
                const void* w, const float* bias, void* y, int threads, void* scratch);
};
