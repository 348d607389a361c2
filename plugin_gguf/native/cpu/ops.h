// The functions every target offers, as a table of pointers. Arguments were checked by entry.cpp.
#pragma once
#include <stdint.h>

struct GgufOps {
  void (*pack)(int type, int64_t batch, int64_t rows, int64_t columns, const void* blocks, void* codes, void* high,
               void* meta, int threads);
  void (*unpack)(int type, int64_t batch, int64_t rows, int64_t columns, void* blocks, const void* codes,
                 const void* high, const void* meta, int threads);
  int64_t (*linear_scratch)(int type, int exact, int64_t m, int64_t columns, int threads);
  void (*linear)(int type, int exact, int dtype, int64_t m, int64_t rows, int64_t columns, const void* x, int64_t stride,
                 const void* codes, const void* high, const void* meta, const float* bias, void* y, int threads,
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
