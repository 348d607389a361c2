// The vector helpers of the target being compiled. All files of simd/ offer the same names:
//
//   kLanes                 32-bit lanes of a vector; a panel of 16 rows is kStrips = 16 / kLanes strips
//   vf, vi, vc             vectors of f32, i32, and of kLanes × 4 code bytes (lane = row, byte = column)
//   load load_half load_bf16 store set1 zero add sub mul fma fnma abs_bits …    one instruction each, or nearly
//   dot4(a, w, x)          a[lane] += Σ_b w[lane].byte[b] · x.byte[b], w unsigned ≤ 127, x signed, equal for all lanes
//   dot4_full(a, w, x)     the same for bytes stored as q + 128, q signed; the result is Σ (q + kFullZero) · x
//   dot2(a, w, x)          a[lane] += Σ_h w[lane].s16[h] · x.s16[h]
//   field_float<bits, zero, pos>   bits pos … pos + bits − 1 of each lane as a float, minus zero
//   byte_float<b>          signed byte b of each lane as a float
//   table_bytes(t, v)      t[byte] of 16 aligned bytes for bytes 0 … 15; table_float<pos>(t, v) of 16 aligned floats for the four
//                          bits at pos of each lane (where kFloatTables)
//   load_u8 load_u16 load_i8   numbers, one a lane; where_equal(x, c, yes, no) picks by lane
//
// A span is kSpan bytes of one row, lanes along K: vb as loaded, SignedSpan split into what a dot product wants.
//   span_of_8(w), span_of_4(w)   from words w(0), w(1) … of 8 or 4 bytes
//   signed_span(codes), signed_span(magnitude, negative)   signed bytes, or bytes ≤ 127 with a bit a column that negates
//   add_eights(v, bits, x) v + x in the columns 8j … 8j+7 whose bit j is set
//   scale_span(s)          one unsigned byte for each 16 columns
//   dot_span(a, w, x, s)   a += Σ scale · w · x, in lanes that belong to groups of 4 columns in their order (vector targets)
//
// Tile sizes that follow from the number of registers stand at the end of each file.
#pragma once
#include "float8.h"
#include "target.h"

#define QUANTRY_IS_scalar 1
#define QUANTRY_IS_avx2 2
#define QUANTRY_IS_avx512 3
#define QUANTRY_IS_neon 4
#define QUANTRY_IS_(t) QUANTRY_IS_##t
#define QUANTRY_IS(t) QUANTRY_IS_(t)

#if QUANTRY_IS(QUANTRY_TARGET) == 3
#include "simd/avx512.h"
#elif QUANTRY_IS(QUANTRY_TARGET) == 2
#include "simd/avx2.h"
#elif QUANTRY_IS(QUANTRY_TARGET) == 4
#include "simd/neon.h"
#else
#include "simd/scalar.h"
#endif

QUANTRY_BEGIN

constexpr int kStrips = 16 / kLanes;
constexpr int kStripBytes = 4 * kLanes;               // of one 64-byte cell
constexpr int kTileColumns = 16 * kTilePanels;        // columns (rows of W) of a micro-kernel
constexpr int kTileStrips = kTileColumns / kLanes;

// The next code bytes of the lanes as i32: byte 0, then the vector moves on by one byte.
QUANTRY_INLINE vi take_byte(vc& v) {
  vi b = as_int(and_bits(v, 0xff));
  v = shift_right<8>(v);
  return b;
}

// While this lives, operands that are subnormal count, whatever the caller chose. Code that depends on it is a function of
// its own (QUANTRY_NOINLINE), so that nothing moves out of this object's life.
struct KeepSubnormals {
#if defined(__x86_64__)
  static constexpr unsigned kDenormalsAreZero = 0x40;
  unsigned before = __builtin_ia32_stmxcsr();
  QUANTRY_INLINE KeepSubnormals() {
    if (before & kDenormalsAreZero) __builtin_ia32_ldmxcsr(before & ~kDenormalsAreZero);
  }
  QUANTRY_INLINE ~KeepSubnormals() {
    if (before & kDenormalsAreZero) __builtin_ia32_ldmxcsr(before);
  }
#endif
};

QUANTRY_END
