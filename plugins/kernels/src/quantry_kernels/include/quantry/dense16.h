// y[M, N] = x[M, K] · W[N, K]ᵀ (+ bias) with f16 or bf16 weights in file order, any K.
//
// No packing: one 16-bit load widens to a vector of f32 in one or two instructions, and a register block of rows of W ×
// rows of x with lanes along K needs its horizontal sums only once per output, so the weights can stay in the mapped file.
// Exact: 16-bit values widened without loss, f32 FMA, lane sums added at the end, then the K % lanes tail.
#pragma once
#include "output.h"
#include "threads.h"

QUANTRY_BEGIN

constexpr int kDenseRowsW = 4;
constexpr int kDenseRowsX = QUANTRY_IS(QUANTRY_TARGET) == 2 ? 2 : 4;   // 4 × 4 sums, or 4 × 2 with 16 registers

struct DenseArgs {
  Matrix x;
  const uint16_t* w;   // [N, K] contiguous
  int64_t rows;        // N
  int weight_dtype;    // QUANTRY_F16 or QUANTRY_BF16
  Output out;
  int threads;
  char* scratch;       // x as f32 [M, K]; unused when x is f32 already
};

inline int64_t dense_scratch(int64_t m, int64_t columns, int dtype) {
  return dtype == QUANTRY_F32 ? 0 : m * columns * 4;
}

template <int D, int W, int X>
QUANTRY_NOINLINE void micro_dense(const uint16_t* w, const float* x, int64_t stride, int64_t columns, float* sums) {
  vf acc[W * X];
  repeat<W * X>([&](auto i) QUANTRY_LAMBDA { acc[i] = zero(); });
  int64_t k = 0;
  for (; k + kLanes <= columns; k += kLanes) {
    vf row[W];
    repeat<W>([&](auto n) QUANTRY_LAMBDA { row[n] = load_as_float<D>(w + n * columns + k); });
    repeat<X>([&](auto m) QUANTRY_LAMBDA {
      vf v = load(x + m * stride + k);
      repeat<W>([&](auto n) QUANTRY_LAMBDA { acc[m * W + n] = fma(row[n], v, acc[m * W + n]); });
    });
  }
  repeat<W * X>([&](auto i) QUANTRY_LAMBDA {
    constexpr int n = i % W, m = i / W;
    float sum = sum_lanes(acc[i]);
    for (int64_t j = k; j < columns; ++j) sum += one_as_float<D>(w[n * columns + j]) * x[m * stride + j];
    sums[i] = sum;
  });
}

template <int D>
void dense_rows(const DenseArgs& a, const float* x, int64_t stride, Range mine) {
  const int64_t columns = a.x.columns;
  for (int64_t n = mine.begin; n < mine.end; n += kDenseRowsW) {
    int64_t count = min_of(kDenseRowsW, mine.end - n);
    const uint16_t* w = a.w + n * columns;
    for (int64_t m = 0; m < a.x.rows; m += kDenseRowsX) {
      int64_t height = min_of(kDenseRowsX, a.x.rows - m);
      with_count<kDenseRowsW>(static_cast<int>(count), [&](auto wn) QUANTRY_LAMBDA {
        with_count<kDenseRowsX>(static_cast<int>(height), [&](auto xn) QUANTRY_LAMBDA {
          constexpr int W = wn, X = xn;
          float sums[W * X];
          micro_dense<D, W, X>(w, x + m * stride, stride, columns, sums);
          for (int i = 0; i < X; ++i) a.out.put(m + i, n, W, sums + i * W);
        });
      });
    }
  }
}

inline void dense_linear(const DenseArgs& a) {
  if (a.x.rows == 0 || a.rows == 0) return;
  parallel(useful_threads(a.rows * a.x.columns * 2 * a.x.rows, a.threads), [&](Team team) {
    const float* x = static_cast<const float*>(a.x.data);
    int64_t stride = a.x.stride;
    if (a.x.dtype != QUANTRY_F32) {
      float* wide = reinterpret_cast<float*>(a.scratch);
      Range rows = team.share(a.x.rows);
      with_dtype(a.x.dtype, [&](auto d) {
        constexpr int D = d;
        for (int64_t i = rows.begin; i < rows.end; ++i)
          for (int64_t k = 0; k < a.x.columns; ++k) wide[i * a.x.columns + k] = one_as_float<D>(a.x.row<D>(i)[k]);
      });
      team.barrier();
      x = wide;
      stride = a.x.columns;
    }
    // Shares start at multiples of the register block, so that a row's arithmetic does not depend on the team.
    Range blocks = team.share((a.rows + kDenseRowsW - 1) / kDenseRowsW);
    Range mine{blocks.begin * kDenseRowsW, min_of(a.rows, blocks.end * kDenseRowsW)};
    if (a.weight_dtype == QUANTRY_F16) dense_rows<QUANTRY_F16>(a, x, stride, mine);
    else dense_rows<QUANTRY_BF16>(a, x, stride, mine);
  });
}

QUANTRY_END
