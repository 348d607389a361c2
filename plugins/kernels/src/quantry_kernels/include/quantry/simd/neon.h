// AArch64 with the dot product instructions (ARMv8.2): 4 lanes, four strips a panel.
#pragma once
#include <arm_neon.h>

#include "../float16.h"
#include "../target.h"

QUANTRY_BEGIN

using vf = float32x4_t;
using vi = int32x4_t;
using vc = uint32x4_t;

constexpr int kLanes = 4;
constexpr int kFullZero = 0;   // sdot takes q itself, after undoing the XOR of the 8-bit plane

QUANTRY_INLINE vf zero() { return vdupq_n_f32(0.0f); }
QUANTRY_INLINE vf set1(float x) { return vdupq_n_f32(x); }
QUANTRY_INLINE vf load(const float* p) { return vld1q_f32(p); }
QUANTRY_INLINE void store(float* p, vf x) { vst1q_f32(p, x); }
QUANTRY_INLINE vf add(vf a, vf b) { return vaddq_f32(a, b); }
QUANTRY_INLINE vf sub(vf a, vf b) { return vsubq_f32(a, b); }
QUANTRY_INLINE vf mul(vf a, vf b) { return vmulq_f32(a, b); }
QUANTRY_INLINE vf fma(vf a, vf b, vf c) { return vfmaq_f32(c, a, b); }
QUANTRY_INLINE vf fnma(vf a, vf b, vf c) { return vfmsq_f32(c, a, b); }
QUANTRY_INLINE float sum_lanes(vf x) { return vaddvq_f32(x); }

QUANTRY_INLINE vf load_half(const uint16_t* p) { return vcvt_f32_f16(vreinterpret_f16_u16(vld1_u16(p))); }
QUANTRY_INLINE vf load_bf16(const uint16_t* p) { return vreinterpretq_f32_u32(vshll_n_u16(vld1_u16(p), 16)); }

QUANTRY_INLINE vi zero_int() { return vdupq_n_s32(0); }
QUANTRY_INLINE vi set1_int(int32_t x) { return vdupq_n_s32(x); }
QUANTRY_INLINE vi add_int(vi a, vi b) { return vaddq_s32(a, b); }
QUANTRY_INLINE vi mul_int(vi a, vi b) { return vmulq_s32(a, b); }
QUANTRY_INLINE vi max_int(vi a, vi b) { return vmaxq_s32(a, b); }
QUANTRY_INLINE int32_t sum_lanes_int(vi x) { return vaddvq_s32(x); }
QUANTRY_INLINE int32_t max_lanes_int(vi x) { return vmaxvq_s32(x); }
QUANTRY_INLINE vf to_float(vi x) { return vcvtq_f32_s32(x); }
QUANTRY_INLINE vi round_int(vf x) { return vcvtnq_s32_f32(x); }
QUANTRY_INLINE vi abs_bits(vf x) { return vreinterpretq_s32_f32(vabsq_f32(x)); }
QUANTRY_INLINE void store_bytes(int8_t* p, vi x) {
  int16x4_t h = vmovn_s32(x);
  int8x8_t b = vmovn_s16(vcombine_s16(h, h));
  int32_t four = vget_lane_s32(vreinterpret_s32_s8(b), 0);
  memcpy(p, &four, 4);
}

QUANTRY_INLINE vc load_codes(const uint8_t* p) { return vreinterpretq_u32_u8(vld1q_u8(p)); }
QUANTRY_INLINE void store_codes(uint8_t* p, vc v) { vst1q_u8(p, vreinterpretq_u8_u32(v)); }
QUANTRY_INLINE vc and_bits(vc v, uint32_t mask) { return vandq_u32(v, vdupq_n_u32(mask)); }
QUANTRY_INLINE vc xor_bits(vc v, uint32_t mask) { return veorq_u32(v, vdupq_n_u32(mask)); }
QUANTRY_INLINE vc or_codes(vc a, vc b) { return vorrq_u32(a, b); }
template <int S>
QUANTRY_INLINE vc shift_right(vc v) {
  if constexpr (S == 0) return v;   // the instruction cannot encode zero
  else return vshrq_n_u32(v, S);
}
template <int S>
QUANTRY_INLINE vc shift_left(vc v) { return vshlq_n_u32(v, S); }
QUANTRY_INLINE vi as_int(vc v) { return vreinterpretq_s32_u32(v); }
QUANTRY_INLINE vc as_codes(vi v) { return vreinterpretq_u32_s32(v); }
template <int B>
QUANTRY_INLINE vi signed_byte(vc v) { return vshrq_n_s32(vshlq_n_s32(as_int(v), 24 - 8 * B), 24); }
QUANTRY_INLINE void prefetch(const void* p) { __builtin_prefetch(p); }

QUANTRY_INLINE vi dot4(vi a, vc w, int32_t x) {   // codes of at most 7 bits are valid signed bytes
  return vdotq_s32(a, vreinterpretq_s8_u32(w), vreinterpretq_s8_s32(vdupq_n_s32(x)));
}
QUANTRY_INLINE vi dot4_full(vi a, vc w, int32_t x) { return dot4(a, xor_bits(w, 0x80808080u), x); }
QUANTRY_INLINE vi dot2(vi a, vi w, int32_t x) {
  int32x4_t low = vmulq_n_s32(vshrq_n_s32(vshlq_n_s32(w, 16), 16), static_cast<int16_t>(x));
  return vaddq_s32(a, vmlaq_n_s32(low, vshrq_n_s32(w, 16), x >> 16));
}

template <int B>
QUANTRY_INLINE vf byte_float(vc v) { return to_float(signed_byte<B>(v)); }
template <int Bits, int Zero, int Pos>
QUANTRY_INLINE vf field_float(vc v) {
  vi field = vreinterpretq_s32_u32(vandq_u32(shift_right<Pos>(v), vdupq_n_u32((1u << Bits) - 1)));
  return to_float(vsubq_s32(field, vdupq_n_s32(Zero)));
}

constexpr int kTilePanels = 1;
constexpr int kRowsInt8 = 3;         // 3 × 4 i32 and 3 × 4 f32 accumulators, 4 weights, 1 activation
constexpr int kRowsFloat = 6;        // 6 × 4 accumulators, 4 weights, 1 activation
constexpr int kSmallRowsInt8 = 4;
constexpr int kSmallRowsSixBit = 4;
constexpr int kSmallRowsFloat = 4;

QUANTRY_END
