// Results: bias added in f32, then rounded once to the caller's element type.
#pragma once
#include "elements.h"
#include "panel.h"

QUANTRY_BEGIN

struct Output {   // y [M, columns], rows contiguous; bias [columns] f32 or null
  void* y;
  int64_t columns;
  const float* bias;
  int dtype;
  const int64_t* index = nullptr;   // row i goes to row index[i] of y; null: to row i

  // y[row, first … first + count) = sums[0 … count) + bias; count ≤ kTileColumns.
  QUANTRY_INLINE void put(int64_t row, int64_t first, int64_t count, const float* sums) const {
    if (index) row = index[row];
    if (bias == nullptr) {
      store_as(dtype, y, row * columns + first, sums, count);
      return;
    }
    float biased[kTileColumns];
    for (int64_t i = 0; i < count; ++i) biased[i] = sums[i] + bias[first + i];
    store_as(dtype, y, row * columns + first, biased, count);
  }
};

QUANTRY_END
