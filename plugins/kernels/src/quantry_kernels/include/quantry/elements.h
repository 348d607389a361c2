// Loading activations of any float type as f32, storing f32 results as any of them.
#pragma once
#include "simd.h"
#include "status.h"

QUANTRY_BEGIN

template <int D>
struct Element {   // D: QuantryDtype
  using Type = uint16_t;
};
template <>
struct Element<QUANTRY_F32> {
  using Type = float;
};

QUANTRY_INLINE int dtype_bytes(int dtype) { return dtype == QUANTRY_F32 ? 4 : 2; }

template <int D>
QUANTRY_INLINE vf load_as_float(const typename Element<D>::Type* p) {
  if constexpr (D == QUANTRY_F32) return load(p);
  else if constexpr (D == QUANTRY_F16) return load_half(p);
  else return load_bf16(p);
}

template <int D>
QUANTRY_INLINE float one_as_float(typename Element<D>::Type x) {
  if constexpr (D == QUANTRY_F32) return x;
  else if constexpr (D == QUANTRY_F16) return from_half(x);
  else return from_bf16(x);
}

struct Matrix {   // rows of activations as the caller holds them; stride in elements
  const void* data;
  int64_t rows, columns, stride;
  int dtype;
  const int64_t* index = nullptr;   // row i is row index[i] of data; null: row i

  template <int D>
  QUANTRY_INLINE const typename Element<D>::Type* row(int64_t i) const {
    return static_cast<const typename Element<D>::Type*>(data) + (index ? index[i] : i) * stride;
  }
};

// Calls body(Const<D>) for a run-time dtype; the caller has checked it.
template <class Body>
QUANTRY_INLINE void with_dtype(int dtype, Body&& body) {
  if (dtype == QUANTRY_F32) body(Const<QUANTRY_F32>{});
  else if (dtype == QUANTRY_F16) body(Const<QUANTRY_F16>{});
  else body(Const<QUANTRY_BF16>{});
}

// y[index … index+count) = values, rounded to nearest even.
inline void store_as(int dtype, void* y, int64_t index, const float* values, int64_t count) {
  if (dtype == QUANTRY_F32) {
    memcpy(static_cast<float*>(y) + index, values, static_cast<size_t>(count) * 4);
    return;
  }
  uint16_t* out = static_cast<uint16_t*>(y) + index;
  if (dtype == QUANTRY_F16) {
    for (int64_t i = 0; i < count; ++i) out[i] = to_half(values[i]);
  } else {
    for (int64_t i = 0; i < count; ++i) out[i] = to_bf16(values[i]);
  }
}

QUANTRY_END
