// Rows to encode, as an encoder's C function takes them and its kernels get them (rows.h).
#pragma once
#include <stdint.h>

struct QuantryRows {
  int32_t dtype, threads;    // of x: QuantryDtype
  int64_t rows, columns, stride;   // elements from row to row
  const void* x;
  const float* importance;   // one weight >= 0 per column, or null
  int64_t* bad;              // out: position (row · columns + column) of the first NaN or Inf, −1 when all are finite
};
