// Codes for one way of grouping only: a format whose groups are all alike compiles in less than half the time.
//
//   QUANTRY_GROUPED_KERNELS(quantry_afq, affine, InMode<AffineCodes<2>, kWhole>, InMode<AffineCodes<4>, kWhole>)
#pragma once
#include "weight.h"

QUANTRY_BEGIN

QUANTRY_INLINE int mode_of(const QuantryGrouped& w) {
  if (w.axis_out) return kOut;
  return 1 << unit_shift_of(w) < kChunk ? kHalf : kWhole;
}

// The codes C in weights of one UnitMode (weight.h).
template <class C, int Mode>
struct InMode : C {
  QUANTRY_INLINE static bool serves(const QuantryGrouped& w) { return C::serves(w) && mode_of(w) == Mode; }
};

// The only mode of a code family, −1 when it has all.
template <class C>
constexpr int kOnlyMode = -1;
template <class C, int Mode>
constexpr int kOnlyMode<InMode<C, Mode>> = Mode;

QUANTRY_END
