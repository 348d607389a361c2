// What every kernel header starts with: the namespace of the instruction set and compile-time loops.
#pragma once
#include <stddef.h>
#include <stdint.h>
#include <string.h>

#ifndef QUANTRY_TARGET
#error "compile with -DQUANTRY_TARGET=scalar|avx2|avx512|neon (quantry_add_library does)"
#endif

// The unnamed namespace gives each object its own copy of everything: no symbol is shared between targets.
#define QUANTRY_BEGIN namespace quantry { namespace QUANTRY_TARGET { namespace {
#define QUANTRY_END } } }

#define QUANTRY_INLINE inline __attribute__((always_inline))
#define QUANTRY_LAMBDA __attribute__((always_inline))
// Micro-kernels stay functions of their own, so that the build check finds them by name in the object file.
#define QUANTRY_NOINLINE __attribute__((noinline))

// Values loaded after this point are loaded anew: keeps what is needed before and after a hot loop out of its registers.
#define QUANTRY_RELOAD() asm volatile("" ::: "memory")

QUANTRY_BEGIN

template <int N>
struct Const {
  constexpr operator int() const { return N; }
};

template <class T>
struct PlainType {
  using Type = T;
};
template <class T>
struct PlainType<const T&> {
  using Type = T;
};
template <class T>   // without const&; <type_traits> is not for kernels
using Plain = typename PlainType<T>::Type;

// Calls body(Const<0>), …, body(Const<N-1>): indices are constants, so arrays of registers stay in registers at -O2.
template <int N, int I = 0, class Body>
QUANTRY_INLINE void repeat(Body&& body) {
  if constexpr (I < N) {
    body(Const<I>{});
    repeat<N, I + 1>(body);
  }
}

// Calls body(Const<n>) for a run-time n of Min…Max: picks the instance of a kernel made for n rows.
template <int Max, int Min = 1, class Body>
QUANTRY_INLINE void with_count(int n, Body&& body) {
  if constexpr (Max >= Min) {
    if (n == Max) body(Const<Max>{});
    else with_count<Max - 1, Min>(n, body);
  }
}

QUANTRY_INLINE constexpr int64_t min_of(int64_t a, int64_t b) { return a < b ? a : b; }
QUANTRY_INLINE constexpr int64_t max_of(int64_t a, int64_t b) { return a > b ? a : b; }

QUANTRY_END
