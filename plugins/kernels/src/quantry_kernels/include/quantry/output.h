// Results: bias added in f32, then rounded once to the caller's element type.
#pragma once
#include "elements.h"
#include "panel.h"

QUANTRY_BEGIN

// Where column j of a result belongs, for weights whose rows or columns are stored in another order.
struct ColumnOrder {
  const int32_t* perm = nullptr;    // at perm[j]
  int64_t group = 0, step = 0;      // or, unless 0, at j / group + j % group · step

  QUANTRY_INLINE bool kept() const { return perm == nullptr && group == 0; }
  QUANTRY_INLINE int64_t at(int64_t j) const { return perm ? perm[j] : group ? j / group + j % group * step : j; }
};

struct Output {   // y [M, columns], rows contiguous; bias [columns] f32 or null
  void* y;
  int64_t columns;
  const float* bias;
  int dtype;
  const int64_t* index = nullptr;   // row i goes to row index[i] of y; null: to row i
  ColumnOrder order = {};

  // y[row, first … first + count) = sums[0 … count) + bias; count ≤ kTileColumns.
  QUANTRY_INLINE void put(int64_t row, int64_t first, int64_t count, const float* sums) const {
    if (index) row = index[row];
    if (!order.kept()) return put_ordered(row, first, count, sums);
    if (bias == nullptr) {
      store_as(dtype, y, row * columns + first, sums, count);
      return;
    }
    float biased[kTileColumns];
    for (int64_t i = 0; i < count; ++i) biased[i] = sums[i] + bias[first + i];
    store_as(dtype, y, row * columns + first, biased, count);
  }

  QUANTRY_NOINLINE void put_ordered(int64_t row, int64_t first, int64_t count, const float* sums) const {
    for (int64_t i = 0; i < count; ++i) {
      const int64_t j = order.at(first + i);
      const float value = bias ? sums[i] + bias[j] : sums[i];
      store_as(dtype, y, row * columns + j, &value, 1);
    }
  }
};

QUANTRY_END
