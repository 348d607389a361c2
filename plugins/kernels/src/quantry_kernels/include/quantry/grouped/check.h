// Whether a QuantryGrouped holds together: every size a kernel reads follows from checked numbers. For entry.h, which
// compiles once, with the baseline's flags.
#pragma once
#include "../calls.h"
#include "../dispatch.h"
#include "weight.h"

QUANTRY_BEGIN

inline bool in_range(int32_t value, int32_t first, int32_t last) { return first <= value && value <= last; }

inline int scale_bytes(int32_t scale) {
  switch (scale) {
    case QUANTRY_SCALE_F32: return 4;
    case QUANTRY_SCALE_F16: case QUANTRY_SCALE_BF16: return 2;
    default: return 1;
  }
}

struct PlaneBits {
  int low, high, top;
};
inline PlaneBits plane_bits(int bits) {
  static const PlaneBits planes[] = {{1, 0, 0}, {2, 0, 0}, {2, 1, 0}, {4, 0, 0},
                                     {4, 1, 0}, {4, 2, 0}, {4, 2, 1}, {8, 0, 0}};
  return planes[bits - 1];
}
inline int code_bits(const QuantryGrouped& w) {
  if (w.family == QUANTRY_AFFINE) return w.bits;
  return w.element <= QUANTRY_E2M1 ? 4 : 8;
}

// Names of types, and what goes with what.
inline int check_kind(const QuantryGrouped& w) {
  switch (w.family) {
    case QUANTRY_AFFINE:
      if (!in_range(w.bits, 1, 8) || !in_range(w.zero, QUANTRY_ZERO_NONE, QUANTRY_ZERO_BIAS)) return QUANTRY_BAD_TYPE;
      if (!in_range(w.scale, QUANTRY_SCALE_F32, QUANTRY_SCALE_BF16)) return QUANTRY_BAD_TYPE;
      if (!in_range(w.axis_out, 0, 1)) return QUANTRY_BAD_TYPE;
      break;
    case QUANTRY_CODEBOOK:
      if (!in_range(w.element, QUANTRY_NF4, QUANTRY_E2M1)) return QUANTRY_BAD_TYPE;
      if (!in_range(w.scale, QUANTRY_SCALE_F32, QUANTRY_SCALE_NESTED)) return QUANTRY_BAD_TYPE;
      break;
    case QUANTRY_FLOAT:
      if (!in_range(w.element, QUANTRY_E2M1, QUANTRY_E5M2)) return QUANTRY_BAD_TYPE;
      if (!in_range(w.scale, QUANTRY_SCALE_F32, QUANTRY_SCALE_E4M3)) return QUANTRY_BAD_TYPE;
      if (w.scale == QUANTRY_SCALE_NESTED) return QUANTRY_BAD_TYPE;
      break;
    default: return QUANTRY_BAD_TYPE;
  }
  if (w.family != QUANTRY_AFFINE && (w.axis_out || w.perm)) return QUANTRY_BAD_TYPE;
  if (w.family != QUANTRY_FLOAT && (w.outer || w.block_rows != 1)) return QUANTRY_BAD_TYPE;
  return QUANTRY_OK;
}

// Columns that share a rounding of x to int8, 0 where there is no int8 arithmetic.
inline int64_t activation_block(const QuantryGrouped& w) {
  if (w.axis_out) return 0;
  if (w.family != QUANTRY_AFFINE && (w.element > QUANTRY_E2M1 || kCodeTables[w.element].unit == 0.0f)) return 0;
  return max_of(kChunk, int64_t(1) << unit_shift_of(w));
}

inline int check_shape(const QuantryGrouped& w) {
  if (w.rows > kMostElements || w.columns > kMostElements) return QUANTRY_BAD_SHAPE;
  if (w.group < 1 || w.group > kMostElements) return QUANTRY_BAD_SHAPE;
  if (w.rows < 0 || w.columns < 0 || !sane(w.rows + kRows, w.columns + kChunk)) return QUANTRY_BAD_SHAPE;
  if (w.axis_out) return w.group % kRows || w.rows % w.group || w.perm ? QUANTRY_BAD_SHAPE : QUANTRY_OK;
  if (w.group % 16 && w.group < w.columns) return QUANTRY_BAD_SHAPE;
  if (w.block_rows != 1 && (w.block_rows < 0 || w.block_rows % kRows)) return QUANTRY_BAD_SHAPE;
  return QUANTRY_OK;
}

// A buffer of exactly `bytes`.
inline bool holds(const void* p, int64_t given, int64_t bytes) { return given == bytes && (bytes == 0 || p != nullptr); }

inline int check_buffers(const QuantryGrouped& g) {
  const GroupedWeight w(g);
  const PlaneBits bits = plane_bits(code_bits(g));
  const int64_t cells = w.panels * (w.padded / kChunk) * kCell;
  if (!holds(g.codes, g.codes_bytes, cells * bits.low) || !holds(g.high, g.high_bytes, cells * bits.high) ||
      !holds(g.top, g.top_bytes, cells * bits.top))
    return QUANTRY_BAD_BUFFER;
  int64_t scales = w.panels * kRows * w.groups;
  if (g.axis_out) scales = g.rows / g.group * g.columns;
  else if (g.block_rows != 1) scales = (g.block_rows ? (g.rows + g.block_rows - 1) / g.block_rows : g.rows > 0) * w.groups;
  if (!holds(g.scales, g.scales_bytes, scales * scale_bytes(g.scale))) return QUANTRY_BAD_BUFFER;
  const bool zeros = w.corrected();
  const int zero_bytes = g.zero == QUANTRY_ZERO_INT ? 1 : scale_bytes(g.scale);
  if (!holds(g.zeros, g.zeros_bytes, zeros ? scales * zero_bytes : 0)) return QUANTRY_BAD_BUFFER;
  const bool nested = g.scale == QUANTRY_SCALE_NESTED;
  if (!holds(g.nested, g.nested_bytes, nested ? (g.rows * w.groups + 255) / 256 * 4 : 0) || (nested && !g.offset))
    return QUANTRY_BAD_BUFFER;
  return QUANTRY_OK;
}

inline int check_weight(const QuantryGrouped* w) {
  if (!w) return QUANTRY_BAD_BUFFER;
  if (int bad = check_kind(*w)) return bad;
  if (int bad = check_shape(*w)) return bad;
  if (int bad = check_buffers(*w)) return bad;
  return w->exact || activation_block(*w) ? QUANTRY_OK : QUANTRY_BAD_TYPE;
}

QUANTRY_END
