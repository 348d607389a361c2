// quantry_gguf_grid_tables, quantry_gguf_encode_grid: the C functions of the grid encoders (encode_grid.h).
#include "encode_grid.h"

#include <quantry/dispatch.h>
#include <quantry/encode/call.h>

#include "grids.h"

QUANTRY_DECLARE_TABLES(GridOps, quantry_grid_ops)
QUANTRY_DECLARE_TABLES(TernaryGridOps, quantry_ternary_grid_ops)

namespace {

using namespace quantry::entry;

struct Grid {
  int type;       // ggml's id
  int bytes;      // of a block of 256 columns
  int width;      // bytes of a grid row: 8 or 4 levels
  int low, step;  // level = (byte - low) / step, close enough for 8, 25, 43 and 4 … 62
  int wanted;     // how many of the least distances the neighbours have
  int rows;
  const void* grid;
  GridEncodeFn GridOps::*encode;
  GridEncodeFn TernaryGridOps::*encode_ternary;
};

// ggml-quants.c: iq2xs_init_impl, iq3xs_init_impl
constexpr Grid kGrids[] = {
    {16, 66, 8, 8, 17, 2, 256, kIq2XxsGrid, &GridOps::iq2_xxs, nullptr},
    {17, 74, 8, 8, 17, 2, 512, kIq2XsGrid, &GridOps::iq2_xs, nullptr},
    {22, 82, 8, 8, 17, 1, 1024, kIq2SGrid, &GridOps::iq2_s, nullptr},
    {18, 98, 4, 4, 8, 2, 256, kIq3XxsGrid, &GridOps::iq3_xxs, nullptr},
    {21, 110, 4, 1, 2, 3, 512, kIq3SGrid, &GridOps::iq3_s, nullptr},
    {19, 50, 8, 0, 8, 3, 2048, kIq1SGrid, nullptr, &TernaryGridOps::iq1_s},
    {29, 56, 8, 0, 8, 3, 2048, kIq1SGrid, nullptr, &TernaryGridOps::iq1_m},
};
constexpr int kMostRows = 2048, kMostDistance = 4 * 7 * 7;

const Grid* grid_of(int type) {
  for (const Grid& g : kGrids)
    if (g.type == type) return &g;
  return nullptr;
}

// Half a row's levels as one number: two of three levels are Σ level·3^i, two of eight Σ level·8^i.
struct Halves {
  int base, levels, count;   // `levels` in a half, `count` = base^levels
  explicit Halves(const Grid& g) : base(g.width == 8 ? 3 : 8), levels(g.width / 2), count(g.width == 8 ? 81 : 64) {}

  int code(int half) const {   // 2 or 3 bits a level
    int code = 0;
    for (int i = 0, at = 0; i < levels; i++, half /= base, at += base == 3 ? 2 : 3) code |= half % base << at;
    return code;
  }
  int distance(int a, int b) const {
    int sum = 0;
    for (int i = 0; i < levels; i++, a /= base, b /= base) sum += (a % base - b % base) * (a % base - b % base);
    return sum;
  }
};

struct Workspace {
  uint8_t low[kMostRows], high[kMostRows];   // halves of the grid rows
  uint16_t code[kMostRows];
  int16_t index[6561];                       // of a pattern in the grid, or -1
  uint8_t distance[kMostRows];
  uint8_t between[81][81];                   // of two halves
};

void read_grid(const Grid& g, const Halves& halves, Workspace& w) {
  const uint8_t* byte = static_cast<const uint8_t*>(g.grid);
  memset(w.index, 0xff, sizeof w.index);
  for (int row = 0; row < g.rows; row++) {
    int half[2] = {0, 0};
    for (int i = g.width - 1; i >= 0; i--) {
      int& h = half[i / halves.levels];
      h = h * halves.base + (byte[row * g.width + i] - g.low + 1) / g.step;
    }
    w.low[row] = static_cast<uint8_t>(half[0]);
    w.high[row] = static_cast<uint8_t>(half[1]);
    w.code[row] = static_cast<uint16_t>(halves.code(half[0]) | halves.code(half[1]) << (g.width == 8 ? 8 : 6));
    w.index[half[1] * halves.count + half[0]] = static_cast<int16_t>(row);
  }
  for (int a = 0; a < halves.count; a++)
    for (int b = 0; b < halves.count; b++) w.between[a][b] = static_cast<uint8_t>(halves.distance(a, b));
}

// The rows at the `wanted` least distances of a pattern, in blocks; returns how many blocks. list: null to count only.
int neighbours(const Grid& g, Workspace& w, int low, int high, uint16_t* list) {
  int rows_at[kMostDistance + 1] = {};
  for (int row = 0; row < g.rows; row++) {
    const int d = w.between[low][w.low[row]] + w.between[high][w.high[row]];
    w.distance[row] = static_cast<uint8_t>(d);
    rows_at[d]++;
  }
  int count = 0;
  for (int d = 0, left = g.wanted; left; d++) {
    if (rows_at[d] == 0) continue;
    left--;
    int at = count;
    count += rows_at[d];
    for (int row = 0; list && at < count; row++)
      if (w.distance[row] == d) list[at++] = w.code[row];
  }
  int blocks = (count + kListBlock - 1) / kListBlock;
  if (blocks > 1) blocks += blocks % 2;
  for (; list && count < blocks * kListBlock; count++) list[count] = list[count - 1];
  return blocks;
}

// Blocks of all lists. entries, lists: null to count only.
int64_t blocks_of(const Grid& g, const Halves& halves, Workspace& w, uint32_t* entries, uint16_t* lists) {
  int64_t first = 0;
  for (int high = 0, pattern = 0; high < halves.count; high++)
    for (int low = 0; low < halves.count; low++, pattern++) {
      const int row = w.index[pattern];
      if (row >= 0) {
        if (entries) entries[pattern] = kOnGrid | static_cast<uint32_t>(row) << 16 | w.code[row];
        continue;
      }
      const int blocks = neighbours(g, w, low, high, lists ? lists + first * kListBlock : nullptr);
      if (entries) entries[pattern] = static_cast<uint32_t>(first) | static_cast<uint32_t>(blocks) << kBlocksAt;
      first += blocks;
    }
  return first;
}

}  // namespace

extern "C" {

// Fills `to` (aligned to 64 bytes) with what encode_grid takes for a type. *need: its size in bytes; to == null asks for
// that alone. Up to 0.1 s: a caller does it once. Returns a QuantryStatus.
QUANTRY_EXPORT int quantry_gguf_grid_tables(int type, uint8_t* to, int64_t size, int64_t* need) {
  const Grid* g = grid_of(type);
  if (!g) return QUANTRY_BAD_TYPE;
  if (!need) return QUANTRY_BAD_BUFFER;
  const Halves halves(*g);
  Workspace w;
  read_grid(*g, halves, w);
  const int64_t lists_at = grid_lists_at(halves.count * halves.count);
  *need = lists_at + blocks_of(*g, halves, w, nullptr, nullptr) * kListBlock * 2 + 16;
  if (!to) return QUANTRY_OK;
  if (size < *need) return QUANTRY_BAD_BUFFER;
  memset(to + *need - 16, 0, 16);
  blocks_of(*g, halves, w, reinterpret_cast<uint32_t*>(to), reinterpret_cast<uint16_t*>(to + lists_at));
  return QUANTRY_OK;
}

// As quantry_gguf_encode, for the grid types. tables: of grid_tables for this type.
QUANTRY_EXPORT int quantry_gguf_encode_grid(int target, int type, int dtype, const void* x, int64_t stride,
                                            const float* importance, const uint8_t* tables, uint8_t* out, int64_t rows,
                                            int64_t columns, int64_t* bad, int threads) {
  const GridOps* ops = QUANTRY_TABLE_FOR(quantry_grid_ops, target);
  const TernaryGridOps* ternary = QUANTRY_TABLE_FOR(quantry_ternary_grid_ops, target);
  if (!ops || !ternary) return QUANTRY_BAD_TARGET;
  const Grid* g = grid_of(type);
  if (!g) return QUANTRY_BAD_TYPE;
  if (columns < 0 || columns % 256) return QUANTRY_BAD_SHAPE;
  if (!bad || !tables || (rows > 0 && columns > 0 && !out)) return QUANTRY_BAD_BUFFER;
  const QuantryRows all{dtype, threads, rows, columns, stride, x, importance, bad};
  return (g->encode ? ops->*g->encode : ternary->*g->encode_ternary)(all, tables, out);
}
}
