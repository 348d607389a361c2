// The loop of every encoder whose rows are independent: rows of any float type, widened and checked a few at a time.
//
//   struct Ops { int (*encode)(const QuantryRows&, uint8_t* out); };        // in a header both sides include
//   int encode(const QuantryRows& rows, uint8_t* out) {                     // in a KERNELS source
//     return encode_rows(rows, [&](const float* x, int64_t first, int64_t count) { … out + first · row_bytes … });
//   }
//
// A run of rows stays in the second-level cache between widening, the check for NaN and Inf, and the encoder. Which thread
// takes which run does not matter: every row is encoded alone, so the bytes do not depend on `threads`.
#pragma once
#include <stdlib.h>

#include "../status.h"
#include "call.h"
#include "lanes.h"

QUANTRY_BEGIN

constexpr int64_t kRunElements = 32 * 1024;   // f32: half of a small second-level cache

typedef uint16_t Shorts __attribute__((vector_size(2 * kWide)));

// kWide floats of x from column i on; true lanes of `wrong` are NaN or Inf.
template <int D>
QUANTRY_INLINE Floats widen(const void* x, int64_t i, Ints& wrong) {
  Floats v;
  if constexpr (D == QUANTRY_F32) {
    v = read(static_cast<const float*>(x) + i);
  } else {
    Shorts h;
    memcpy(&h, static_cast<const uint16_t*>(x) + i, sizeof h);
    if constexpr (D == QUANTRY_BF16) {
      v = (Floats)(__builtin_convertvector(h, Ints) << 16);
    } else {   // as from_half, but any Inf or NaN becomes Inf: it is only refused
      const Ints u = __builtin_convertvector(h, Ints), rest = u & 0x7fff;
      Floats a = pick(rest < 0x400, to_floats(rest) * 0x1p-24f, (Floats)((rest << 13) + 0x38000000));
      a = pick(rest >= 0x7c00, Floats{} + __builtin_inff(), a);
      v = (Floats)((Ints)a | (u & 0x8000) << 16);
    }
  }
  wrong |= ((Ints)v & 0x7f800000) == 0x7f800000;
  return v;
}

QUANTRY_INLINE float widen_one(int dtype, const void* x, int64_t i) {
  if (dtype == QUANTRY_F32) return static_cast<const float*>(x)[i];
  const uint16_t h = static_cast<const uint16_t*>(x)[i];
  return dtype == QUANTRY_BF16 ? from_bf16(h) : from_half(h);
}

// One row to floats (to == null: only checked). Returns the first column that is NaN or Inf, or −1.
template <int D>
QUANTRY_INLINE int64_t widen_row(const void* x, int64_t columns, float* to) {
  Ints wrong = {};
  int64_t i = 0;
  for (; i + kWide <= columns; i += kWide) {
    Floats v = widen<D>(x, i, wrong);
    if (to) write(to + i, v);
  }
  int any = 0;
  for (int lane = 0; lane < kWide; lane++) any |= wrong[lane];
  for (; i < columns; i++) {
    float v = widen_one(D, x, i);
    if (to) to[i] = v;
    any |= (bits_of(v) & 0x7f800000u) == 0x7f800000u;
  }
  if (!any) return -1;
  for (i = 0; i < columns; i++)
    if ((bits_of(widen_one(D, x, i)) & 0x7f800000u) == 0x7f800000u) return i;
  return -1;
}

inline int64_t widen_row(int dtype, const void* x, int64_t columns, float* to) {
  if (dtype == QUANTRY_F32) return widen_row<QUANTRY_F32>(x, columns, to);
  if (dtype == QUANTRY_F16) return widen_row<QUANTRY_F16>(x, columns, to);
  return widen_row<QUANTRY_BF16>(x, columns, to);
}

// Calls body(x [count, columns] f32 contiguous, first row, count) for runs of rows, on r.threads threads. Returns a
// QuantryStatus; rows after a NaN or Inf (*r.bad) may be left out.
template <class Body>
int encode_rows(const QuantryRows& r, const Body& body) {
  *r.bad = -1;
  if (r.dtype < QUANTRY_F32 || r.dtype > QUANTRY_BF16) return QUANTRY_BAD_TYPE;
  if (r.rows < 0 || r.columns < 0 || (r.rows > 1 && r.stride < r.columns)) return QUANTRY_BAD_SHAPE;
  if (r.rows == 0 || r.columns == 0) return QUANTRY_OK;
  if (!r.x) return QUANTRY_BAD_BUFFER;
  int64_t step = kRunElements / r.columns;
  if (step > r.rows / (2 * (r.threads < 1 ? 1 : r.threads))) step = r.rows / (2 * (r.threads < 1 ? 1 : r.threads));
  if (step < 1) step = 1;
  const int64_t runs = (r.rows + step - 1) / step, item = r.dtype == QUANTRY_F32 ? 4 : 2;
  const bool in_place = r.dtype == QUANTRY_F32 && (r.stride == r.columns || r.rows == 1);
  int status = QUANTRY_OK;
  int64_t bad = INT64_MAX;
#pragma omp parallel num_threads(r.threads < 1 ? 1 : r.threads) if (r.threads > 1 && runs > 1)
  {
    float* space = in_place ? nullptr : static_cast<float*>(malloc(static_cast<size_t>(step * r.columns) * 4));
    if (!space && !in_place) {
#pragma omp atomic write
      status = QUANTRY_BAD_SCRATCH;
    }
#pragma omp for schedule(dynamic)
    for (int64_t run = 0; run < runs; run++) {
      if (!space && !in_place) continue;
      const int64_t first = run * step, count = first + step < r.rows ? step : r.rows - first;
      const char* from = static_cast<const char*>(r.x) + first * r.stride * item;
      int64_t wrong = -1;
      for (int64_t i = 0; i < count && wrong < 0; i++) {
        const int64_t column = widen_row(r.dtype, from + i * r.stride * item, r.columns, space ? space + i * r.columns : nullptr);
        if (column >= 0) wrong = (first + i) * r.columns + column;
      }
      if (wrong < 0) {
        body(in_place ? reinterpret_cast<const float*>(from) : space, first, count);
        continue;
      }
#pragma omp critical(quantry_encode_rows)
      bad = wrong < bad ? wrong : bad;
    }
    free(space);
  }
  if (bad != INT64_MAX) *r.bad = bad;
  return status;
}

QUANTRY_END
