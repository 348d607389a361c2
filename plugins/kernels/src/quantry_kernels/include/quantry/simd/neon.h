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
QUANTRY_INLINE vc add_codes(vc v, uint32_t x) { return vaddq_u32(v, vdupq_n_u32(x)); }
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

QUANTRY_INLINE vc table_bytes(const uint8_t* table, vc v) {
  return vreinterpretq_u32_u8(vqtbl1q_u8(vld1q_u8(table), vreinterpretq_u8_u32(v)));
}
QUANTRY_INLINE vi load_u8(const uint8_t* p) {
  uint32_t four;
  memcpy(&four, p, 4);
  return vreinterpretq_s32_u32(vmovl_u16(vget_low_u16(vmovl_u8(vreinterpret_u8_u32(vdup_n_u32(four))))));
}
QUANTRY_INLINE vi load_u16(const uint8_t* p) {
  uint16x4_t v;
  memcpy(&v, p, 8);
  return vreinterpretq_s32_u32(vmovl_u16(v));
}
QUANTRY_INLINE vf bits_float(vi x) { return vreinterpretq_f32_s32(x); }
QUANTRY_INLINE vf where_equal(vi x, int32_t c, vf yes, vf no) { return vbslq_f32(vceqq_s32(x, vdupq_n_s32(c)), yes, no); }

constexpr bool kFloatTables = false;

template <int Pos>
QUANTRY_INLINE vf table_float(const float* table, vc v) {   // the four bytes of each entry
  const uint8_t* bytes = reinterpret_cast<const uint8_t*>(table);
  uint8x16x4_t entries = {{vld1q_u8(bytes), vld1q_u8(bytes + 16), vld1q_u8(bytes + 32), vld1q_u8(bytes + 48)}};
  uint32x4_t i = vmlaq_u32(vdupq_n_u32(0x03020100u), vandq_u32(shift_right<Pos>(v), vdupq_n_u32(15)), vdupq_n_u32(0x04040404u));
  return vreinterpretq_f32_u8(vqtbl4q_u8(entries, vreinterpretq_u8_u32(i)));
}

// Byte B of each lane as an E4M3 float without its NaN (480 instead).
template <int B>
QUANTRY_INLINE vf e4m3_float(vc v) {   // as an f16 with a larger exponent
  v = shift_right<8 * B>(v);
  uint32x4_t h = vorrq_u32(and_bits(vshlq_n_u32(v, 8), 0x8000), and_bits(vshlq_n_u32(v, 7), 0x3f80));
  return vmulq_n_f32(vcvt_f32_f16(vreinterpret_f16_u16(vmovn_u32(h))), 256.0f);
}
template <int B>
QUANTRY_INLINE vf e5m2_float(vc v) {   // the upper byte of an f16
  uint32x4_t h = vshlq_n_u32(and_bits(shift_right<8 * B>(v), 0xff), 8);
  return vcvt_f32_f16(vreinterpret_f16_u16(vmovn_u32(h)));
}

template <int B>
QUANTRY_INLINE vf byte_float(vc v) { return to_float(signed_byte<B>(v)); }
template <int Bits, int Zero, int Pos>
QUANTRY_INLINE vf field_float(vc v) {
  vi field = vreinterpretq_s32_u32(vandq_u32(shift_right<Pos>(v), vdupq_n_u32((1u << Bits) - 1)));
  return to_float(vsubq_s32(field, vdupq_n_s32(Zero)));
}

QUANTRY_INLINE float one_half(uint16_t h) { return from_half(h); }
QUANTRY_INLINE vi load_i8(const int8_t* p) {
  int32_t four;
  memcpy(&four, p, 4);
  return vmovl_s16(vget_low_s16(vmovl_s8(vreinterpret_s8_s32(vdup_n_s32(four)))));
}

constexpr int kSpan = 32;
using vb = uint8x16x2_t;
struct SignedSpan {
  int8x16x2_t code;
};
QUANTRY_INLINE vb load_span(const void* p) {
  const uint8_t* bytes = static_cast<const uint8_t*>(p);
  return {{vld1q_u8(bytes), vld1q_u8(bytes + 16)}};
}
QUANTRY_INLINE vb set_span(int x) { return {{vdupq_n_u8(static_cast<uint8_t>(x)), vdupq_n_u8(static_cast<uint8_t>(x))}}; }
QUANTRY_INLINE vb sub_span(vb a, vb b) { return {{vsubq_u8(a.val[0], b.val[0]), vsubq_u8(a.val[1], b.val[1])}}; }
QUANTRY_INLINE vb add_eights(vb v, uint32_t where, int x) {
  uint64_t all[4];
  for (int i = 0; i < 4; ++i) all[i] = (where >> i & 1) * 0x0101010101010101 * static_cast<uint64_t>(x);
  vb more = load_span(all);
  return {{vaddq_u8(v.val[0], more.val[0]), vaddq_u8(v.val[1], more.val[1])}};
}
template <class Word>
QUANTRY_INLINE vb span_of_8(const Word& w) {
  uint64_t words[4] = {w(0), w(1), w(2), w(3)};
  return load_span(words);
}
template <class Word>
QUANTRY_INLINE vb span_of_4(const Word& w) {
  uint32_t words[8] = {w(0), w(1), w(2), w(3), w(4), w(5), w(6), w(7)};
  return load_span(words);
}
QUANTRY_INLINE SignedSpan signed_span(vb codes) {
  return {{{vreinterpretq_s8_u8(codes.val[0]), vreinterpretq_s8_u8(codes.val[1])}}};
}
QUANTRY_INLINE SignedSpan signed_span(vb magnitude, uint64_t negative) {
  SignedSpan s = signed_span(magnitude);
  const uint8x16_t bits = vreinterpretq_u8_u64(vdupq_n_u64(0x8040201008040201));
  for (int i = 0; i < 2; ++i) {
    uint8x16_t bytes = vcombine_u8(vdup_n_u8(static_cast<uint8_t>(negative >> 16 * i)),
                                   vdup_n_u8(static_cast<uint8_t>(negative >> (16 * i + 8))));
    s.code.val[i] = vbslq_s8(vtstq_u8(bytes, bits), vnegq_s8(s.code.val[i]), s.code.val[i]);
  }
  return s;
}
QUANTRY_INLINE void store_span(int8_t* p, const SignedSpan& w) {
  vst1q_s8(p, w.code.val[0]);
  vst1q_s8(p + 16, w.code.val[1]);
}
QUANTRY_INLINE const uint8_t* scale_span(const uint8_t* scales) { return scales; }
QUANTRY_INLINE vi dot_span(vi a, const SignedSpan& w, vb x, const uint8_t* scales) {
  for (int i = 0; i < 2; ++i)
    a = vmlaq_n_s32(a, vdotq_s32(vdupq_n_s32(0), w.code.val[i], vreinterpretq_s8_u8(x.val[i])), scales[i]);
  return a;
}

constexpr int kTilePanels = 1;
constexpr int kRowsInt8 = 3;         // 3 × 4 i32 and 3 × 4 f32 accumulators, 4 weights, 1 activation
constexpr int kRowsFloat = 6;        // 6 × 4 accumulators, 4 weights, 1 activation
constexpr int kSmallRowsInt8 = 4;
constexpr int kSmallRowsSixBit = 4;
constexpr int kSmallRowsFloat = 4;

QUANTRY_END
