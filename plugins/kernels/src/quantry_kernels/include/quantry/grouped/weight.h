// The sizes that follow from a QuantryGrouped, and where its planes, scales and zeros lie.
//
// A *unit* is the run of columns that shares one multiplication by a scale: the largest power of two of 16 … 128 that
// divides the group (of a whole row: what the caller gave as its group). Activations are rounded to int8 per unit, but not
// below 32 columns.
#pragma once
#include "../output.h"
#include "codes.h"

QUANTRY_BEGIN

constexpr int kMostUnit = 128;

// Units of at least a chunk, of half a chunk, or groups across rows (axis OUT): a scale for each column.
enum UnitMode { kWhole, kHalf, kOut };

QUANTRY_INLINE int unit_shift_of(const QuantryGrouped& w) {
  if (w.axis_out) return 7;
  int shift = 4;
  while (shift < 7 && w.group % (int64_t(2) << shift) == 0) ++shift;
  return shift;
}

struct GroupedWeight {
  QuantryGrouped g;
  int64_t padded, panels, groups;   // columns rounded up to chunks
  int64_t group;                    // at least `padded` when a row has one scale
  int unit_shift;

  QUANTRY_INLINE explicit GroupedWeight(const QuantryGrouped& w)
      : g(w), padded((w.columns + kChunk - 1) / kChunk * kChunk), panels((w.rows + kRows - 1) / kRows),
        groups(w.axis_out ? w.columns : (w.columns + w.group - 1) / w.group),
        group(w.group >= w.columns ? max_of(w.group, padded) : w.group), unit_shift(unit_shift_of(w)) {}

  QUANTRY_INLINE int unit() const { return 1 << unit_shift; }
  QUANTRY_INLINE int64_t units() const { return (padded + unit() - 1) >> unit_shift; }
  QUANTRY_INLINE bool corrected() const { return g.family == QUANTRY_AFFINE && g.zero >= QUANTRY_ZERO_INT; }
  QUANTRY_INLINE int64_t bytes() const {
    return g.codes_bytes + g.high_bytes + g.top_bytes + g.scales_bytes + g.zeros_bytes;
  }

  template <class C>
  QUANTRY_INLINE CodePlanes planes(int64_t panel, int64_t k) const {
    const int64_t chunk = (panel * padded + k) / kChunk;
    auto at = [chunk](const void* plane, int bits) {
      return static_cast<const uint8_t*>(plane) + chunk * C::Chunk::cells(bits);
    };
    return {at(g.codes, C::kLow), C::kHigh ? at(g.high, C::kHigh) : nullptr, C::kTop ? at(g.top, C::kTop) : nullptr};
  }

  // axis OUT: the row of scales of a panel.
  QUANTRY_INLINE int64_t scale_row(int64_t panel) const { return panel / (g.group / kRows); }
  // Where the result of stored row j belongs, and its inverse: the stored row of row n.
  QUANTRY_INLINE ColumnOrder row_order() const {
    if (!g.axis_out) return {};
    return {nullptr, g.group, g.rows / g.group};
  }
  QUANTRY_INLINE int64_t stored_row(int64_t n) const {
    if (!g.axis_out) return n;
    const int64_t step = g.rows / g.group;
    return n % step * g.group + n / step;
  }
  // Where stored column j belongs.
  QUANTRY_INLINE ColumnOrder column_order() const { return {static_cast<const int32_t*>(g.perm)}; }

  // The weight `index` places on in a stack of equal ones.
  QUANTRY_INLINE GroupedWeight expert(int64_t index) const {
    GroupedWeight e = *this;
    auto move = [index](const void*& p, int64_t bytes) {
      if (p) p = static_cast<const uint8_t*>(p) + index * bytes;
    };
    move(e.g.codes, g.codes_bytes);
    move(e.g.high, g.high_bytes);
    move(e.g.top, g.top_bytes);
    move(e.g.scales, g.scales_bytes);
    move(e.g.zeros, g.zeros_bytes);
    move(e.g.nested, g.nested_bytes);
    move(e.g.offset, 4);
    move(e.g.outer, 4);
    move(e.g.perm, 4 * g.columns);
    return e;
  }
};

QUANTRY_END
