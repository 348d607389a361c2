// The C functions that pack and unpack codes of the grouped families. An ENTRY source of a plugin includes it after entry.h,
// with QUANTRY_GROUPED_PREFIX defined; its KERNELS sources have one QUANTRY_GROUPED_REPACK (repack.h).
//
// group 0: codes [batch, rows, ⌈columns · bits / 8⌉]; else codes [batch, rows / group · columns, group · bits / 8] of axis OUT.
// plane_bytes: of all planes together. Padding rows and columns become zero, and are dropped on the way back.
#pragma once
#include "../calls.h"
#include "../dispatch.h"
#include "../huge_pages.h"
#include "repack_ops.h"

#define QUANTRY_REPACK_JOIN_(prefix, name) prefix##_grouped_##name
#define QUANTRY_REPACK_JOIN(prefix, name) QUANTRY_REPACK_JOIN_(prefix, name)
#define QUANTRY_REPACK_NAME(name) QUANTRY_REPACK_JOIN(QUANTRY_GROUPED_PREFIX, name)
#define QUANTRY_REPACK_DECLARE(table) QUANTRY_DECLARE_TABLES(GroupedRepackOps, table)
#define QUANTRY_REPACK_TABLE(table, target) QUANTRY_TABLE_FOR(table, target)
QUANTRY_REPACK_DECLARE(QUANTRY_REPACK_NAME(repack_ops))

QUANTRY_BEGIN

inline int check_repack(const GroupedRepack& r, int64_t stream_bytes, int64_t plane_bytes) {
  if (r.bits < 1 || r.bits > 8) return QUANTRY_BAD_TYPE;
  if (!sane(r.rows, 1) || !sane(r.columns, 1) || !sane(r.rows + 16, r.columns + 32) || r.group < 0) return QUANTRY_BAD_SHAPE;
  const int64_t panels = (r.rows + 15) / 16, chunks = (r.columns + 31) / 32;
  if (!sane(r.batch, (r.rows + 16) * (r.columns + 32))) return QUANTRY_BAD_SHAPE;
  int64_t stream = r.rows * ((r.columns * r.bits + 7) / 8);
  if (r.group) {
    if (r.group % 16 || r.rows % r.group) return QUANTRY_BAD_SHAPE;
    stream = r.rows / 16 * r.columns * 2 * r.bits;
  }
  if (stream_bytes != r.batch * stream || plane_bytes != r.batch * panels * chunks * 64 * r.bits) return QUANTRY_BAD_BUFFER;
  const bool high = r.bits == 3 || (r.bits >= 5 && r.bits <= 7);
  if (stream_bytes && (!r.stream || !r.codes || (high && !r.high) || (r.bits == 7 && !r.top))) return QUANTRY_BAD_BUFFER;
  return QUANTRY_OK;
}

inline int64_t low_plane_bytes(int bits, int64_t all) { return all / bits * (bits == 8 ? 8 : bits >= 4 ? 4 : bits >= 2 ? 2 : 1); }

QUANTRY_END

using namespace quantry::QUANTRY_TARGET;

extern "C" {

QUANTRY_EXPORT int QUANTRY_REPACK_NAME(pack)(int target, int bits, int flip, int64_t batch, int64_t rows, int64_t columns,
                                             int64_t group, const void* stream, int64_t stream_bytes, void* codes,
                                             void* high, void* top, int64_t plane_bytes, int threads) {
  const GroupedRepackOps* ops = QUANTRY_REPACK_TABLE(QUANTRY_REPACK_NAME(repack_ops), target);
  if (!ops) return QUANTRY_BAD_TARGET;
  GroupedRepack r{bits, flip, batch, rows, columns, group, static_cast<uint8_t*>(const_cast<void*>(stream)),
                  static_cast<uint8_t*>(codes), static_cast<uint8_t*>(high), static_cast<uint8_t*>(top),
                  allowed(threads)};
  if (int bad = check_repack(r, stream_bytes, plane_bytes)) return bad;
  if (stream_bytes == 0) return QUANTRY_OK;
  quantry_advise_huge(codes, low_plane_bytes(bits, plane_bytes));
  ops->pack(&r);
  return QUANTRY_OK;
}

// The inverse.
QUANTRY_EXPORT int QUANTRY_REPACK_NAME(unpack)(int target, int bits, int flip, int64_t batch, int64_t rows, int64_t columns,
                                               int64_t group, void* stream, int64_t stream_bytes, const void* codes,
                                               const void* high, const void* top, int64_t plane_bytes, int threads) {
  const GroupedRepackOps* ops = QUANTRY_REPACK_TABLE(QUANTRY_REPACK_NAME(repack_ops), target);
  if (!ops) return QUANTRY_BAD_TARGET;
  auto bytes = [](const void* p) { return static_cast<uint8_t*>(const_cast<void*>(p)); };
  GroupedRepack r{bits, flip, batch, rows, columns, group, bytes(stream), bytes(codes), bytes(high), bytes(top),
                  allowed(threads)};
  if (int bad = check_repack(r, stream_bytes, plane_bytes)) return bad;
  if (stream_bytes) ops->unpack(&r);
  return QUANTRY_OK;
}

}  // extern "C"
