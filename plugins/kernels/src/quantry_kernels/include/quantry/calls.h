// What every exported function checks or asks before it runs kernels. For ENTRY sources, which compile once.
#pragma once
#include <omp.h>

#include "status.h"
#include "target.h"

QUANTRY_BEGIN

constexpr int64_t kMostElements = int64_t(1) << 40;   // keeps every product below 2^63

inline bool sane(int64_t a, int64_t b) { return a >= 0 && b >= 0 && (b == 0 || a <= kMostElements / b); }

// Rows of x or dy: a known dtype, sizes that can be, and a buffer where there is something to read.
inline int check_activations(int dtype, int64_t m, int64_t columns, int64_t stride, const void* x) {
  if (dtype < QUANTRY_F32 || dtype > QUANTRY_BF16) return QUANTRY_BAD_TYPE;
  if (!sane(m, columns) || !sane(m, stride) || (m > 1 && stride < columns)) return QUANTRY_BAD_SHAPE;
  return m && columns && !x ? QUANTRY_BAD_BUFFER : QUANTRY_OK;
}

// Inside a caller's parallel region a call runs on one thread.
inline int allowed(int threads) { return threads < 1 || omp_in_parallel() ? 1 : threads; }

constexpr int64_t kAlignment = 64;

// What to ask a caller for, so that `bytes` fit from an aligned address on.
inline int64_t with_alignment(int64_t bytes) { return bytes ? bytes + kAlignment : 0; }

// `need` bytes from the first aligned address of scratch on; null when they do not fit.
inline char* aligned(void* scratch, int64_t bytes, int64_t need) {
  uintptr_t at = (reinterpret_cast<uintptr_t>(scratch) + kAlignment - 1) & ~uintptr_t(kAlignment - 1);
  int64_t lost = static_cast<int64_t>(at - reinterpret_cast<uintptr_t>(scratch));
  return scratch && bytes - lost >= need ? reinterpret_cast<char*>(at) : nullptr;
}

QUANTRY_END
