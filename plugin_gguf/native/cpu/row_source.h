// Weights in file order as sources of the driver (quantry/linear.h).
//
// Few rows of x: row by row of W with lanes along K, a span of codes feeds all rows of x. Many: 256 columns of 16 rows are
// decoded into the slab that panels fill too. x is rounded to int8 per 256 columns.
#pragma once
#include <quantry/activations.h>
#include <quantry/linear.h>

#include <new>

#include "row_types.h"

QUANTRY_BEGIN

// What activations.h and micro_int8.h ask of a format: signed bytes with a scale per 16 columns.
struct RowCodes {
  using Table = NoTable;
  static constexpr int kLow = 8, kHigh = 0, kZero = 128, kGroup = 16;
  static constexpr bool kMins = false, kSuper = true;
};

// One row of x, columns together; rows lie `row_bytes` apart.
struct RowsInt8 {
  const char* first;
  int64_t row_bytes, columns;

  QUANTRY_INLINE const int8_t* codes(int m) const { return reinterpret_cast<const int8_t*>(first + m * row_bytes); }
  QUANTRY_INLINE const float* scale(int m) const { return reinterpret_cast<const float*>(first + m * row_bytes + columns); }
};

// Views of a few blocks, made before the first is used: a view stores vectors and loads numbers from them, which waits until
// the store has reached the cache.
template <class T>
struct Views {
  static constexpr int kCount = 4;
  static constexpr int64_t kBytes = (sizeof(T) + 63) / 64 * 64;
  alignas(64) char space[kCount * kBytes];

  QUANTRY_INLINE Views(const uint8_t* row, int64_t count) {
    for (int64_t n = 0; n < count; ++n) new (space + n * kBytes) T(row + n * T::kBlockBytes);
  }
  QUANTRY_INLINE const T& operator[](int64_t n) const { return *reinterpret_cast<const T*>(space + n * kBytes); }
};

// out[m] = row of W · row m of x.
template <class T, int R>
QUANTRY_NOINLINE void dot_row_int8(const uint8_t* row, RowsInt8 x, float* out) {
  constexpr int spans = kRowBlock / kSpan;
  const int64_t count = x.columns / kRowBlock;
  vf acc[R];
  repeat<R>([&](auto m) QUANTRY_LAMBDA { acc[m] = zero(); });
  for (int64_t first = 0; first < count; first += Views<T>::kCount) {
    const int64_t some = min_of(Views<T>::kCount, count - first);
    const Views<T> views(row + first * T::kBlockBytes, some);
    for (int64_t n = 0; n < some; ++n) {
      const T& block = views[n];
      const int64_t k = (first + n) * kRowBlock;
      vi total[R];
      repeat<R>([&](auto m) QUANTRY_LAMBDA { total[m] = zero_int(); });
      for (int i = 0; i < spans; ++i) {
        const SignedSpan codes = block.span(i);
        const auto scales = scale_span(block.scales + i * (kSpan / 16));
        repeat<R>([&](auto m) QUANTRY_LAMBDA {
          total[m] = dot_span(total[m], codes, load_span(x.codes(m) + k + i * kSpan), scales);
        });
      }
      repeat<R>([&](auto m) QUANTRY_LAMBDA {
        acc[m] = fma(to_float(total[m]), set1(block.d * x.scale(m)[first + n]), acc[m]);
      });
    }
  }
  repeat<R>([&](auto m) QUANTRY_LAMBDA { out[m] = sum_lanes(acc[m]); });
}

// The codes of one block as bytes.
template <class T>
QUANTRY_INLINE void store_codes_of(const T& block, int8_t* codes) {
  for (int i = 0; i < kRowBlock / kSpan; ++i) store_span(codes + i * kSpan, block.span(i));
}

// Calls body(column, weights of kLanes columns, Const<s>) for one block; s counts the vectors of 32 columns.
template <class T, class Body>
QUANTRY_INLINE void each_weight(const uint8_t* row, Body&& body) {
  const T block(row);
  alignas(64) int8_t codes[kRowBlock];
  store_codes_of(block, codes);
  for (int i = 0; i < kRowBlock; i += 32) {
    repeat<32 / kLanes>([&](auto s) QUANTRY_LAMBDA {
      constexpr int at = s * kLanes;
      const vf scale = set1(block.d * static_cast<float>(block.scales[(i + at) / 16]));
      body(i + at, mul(scale, to_float(load_i8(codes + i + at))), s);
    });
  }
}

template <class T, int R>
QUANTRY_NOINLINE void dot_row_float(const uint8_t* row, const float* x, int64_t stride, int64_t columns, float* out) {
  constexpr int vectors = 32 / kLanes, chains = R > 3 ? 1 : vectors < 4 ? vectors : 4;   // for the latency of an FMA
  vf acc[R];
  repeat<R>([&](auto m) QUANTRY_LAMBDA { acc[m] = zero(); });
  for (int64_t k = 0; k < columns; k += kRowBlock, row += T::kBlockBytes) {
    vf part[R * chains];   // of one block: a large term rounds its own block only
    repeat<R * chains>([&](auto n) QUANTRY_LAMBDA { part[n] = zero(); });
    each_weight<T>(row, [&](int column, vf w, auto s) QUANTRY_LAMBDA {
      repeat<R>([&](auto m) QUANTRY_LAMBDA {
        vf& sum = part[m * chains + s % chains];
        sum = fma(w, load(x + m * stride + k + column), sum);
      });
    });
    repeat<R>([&](auto m) QUANTRY_LAMBDA {
      repeat<chains>([&](auto c) QUANTRY_LAMBDA { acc[m] = add(acc[m], part[m * chains + c]); });
    });
  }
  repeat<R>([&](auto m) QUANTRY_LAMBDA { out[m] = sum_lanes(acc[m]); });
}

template <class T>
struct RowSource {
  const uint8_t* blocks;
  int64_t rows, columns;

  static constexpr int kType = T::kType;
  static constexpr bool kPanels = false, kInt8 = true, kPairs = false;
  static constexpr int kMostInt8 = kSmallRowsFloat, kMostFloat = kSmallRowsFloat, kMostPairs = 0;

  QUANTRY_INLINE static RowSource of(const Planes& w, int64_t rows, int64_t columns) { return {w.codes, rows, columns}; }
  QUANTRY_INLINE RowSource matrix(int64_t e) const { return {blocks + e * rows * row_bytes(), rows, columns}; }

  QUANTRY_INLINE int64_t row_bytes() const { return columns / kRowBlock * T::kBlockBytes; }
  QUANTRY_INLINE const uint8_t* row(int64_t n, int64_t k = 0) const {
    return blocks + n * row_bytes() + k / kRowBlock * T::kBlockBytes;
  }
  QUANTRY_INLINE int64_t bytes() const { return rows * row_bytes(); }
  QUANTRY_INLINE int64_t int8_row_bytes() const { return TileInt8<RowCodes>::row_bytes(columns); }
  QUANTRY_INLINE int64_t float_row_bytes() const { return TileFloat::row_bytes(columns); }

  // Few rows are tiles of height one, so that their columns lie together.
  QUANTRY_INLINE static RowTiles rows_of(const RowTiles& tiles, Range& which) {
    RowTiles single(tiles.rows, 1);
    which = {tiles.first(which.begin), tiles.first(which.end)};
    return single;
  }
  QUANTRY_INLINE void quantize(const Matrix& x, const RowTiles& tiles, void* base, Range which) const {
    if (x.rows > kSmallRows) return quantize_tiles<RowCodes>(x, tiles, base, which);
    RowTiles single = rows_of(tiles, which);
    quantize_tiles<RowCodes>(x, single, base, which);
  }
  QUANTRY_INLINE void widen(const Matrix& x, const RowTiles& tiles, void* base, Range which) const {
    if (x.rows > kSmallRows) return widen_tiles<0>(x, tiles, base, which);
    RowTiles single = rows_of(tiles, which);
    widen_tiles<0>(x, single, base, which);
  }

  // sums[R][16] for the rows of a panel, by body(row, results of R rows of x).
  template <int R, class Body>
  QUANTRY_INLINE void each_row(int64_t panel, float* sums, const Body& body) const {
    const int64_t first = panel * kRows, count = min_of(kRows, rows - first);
    for (int r = 0; r < count; ++r) {
      float out[R];
      body(row(first + r), out);
      for (int m = 0; m < R; ++m) sums[m * kRows + r] = out[m];
    }
  }
  template <int R>
  QUANTRY_INLINE void small_int8(int64_t panel, const void* base, int64_t first_row, float* sums) const {
    const RowsInt8 x{static_cast<const char*>(base) + first_row * int8_row_bytes(), int8_row_bytes(), columns};
    each_row<R>(panel, sums, [&](const uint8_t* w, float* out) { dot_row_int8<T, R>(w, x, out); });
  }
  template <int R>
  QUANTRY_INLINE void small_float(int64_t panel, const void* base, int64_t first_row, float* sums) const {
    const float* x = static_cast<const float*>(base) + first_row * (float_row_bytes() / 4);
    each_row<R>(panel, sums,
                [&](const uint8_t* w, float* out) { dot_row_float<T, R>(w, x, float_row_bytes() / 4, columns, out); });
  }

  void decode_float(int64_t panel, int64_t k, int chunks, float* out, int64_t stride) const {
    const int width = chunks * kChunk;
    alignas(64) float values[kRows][kSlab];
    for (int r = 0; r < kRows; ++r) {
      const int64_t n = panel * kRows + r;
      if (n >= rows) {
        memset(values[r], 0, sizeof values[r]);
        continue;
      }
      for (int at = 0; at < width; at += kRowBlock)
        each_weight<T>(row(n, k + at), [&](int column, vf w, int) QUANTRY_LAMBDA { store(values[r] + at + column, w); });
    }
    for (int i = 0; i < width; ++i)
      for (int r = 0; r < kRows; ++r) out[i * stride + r] = values[r][i];
  }
  void decode_int8(int64_t panel, int64_t k, int chunks, SlabInt8& slab, int slot) const {
    uint8_t* cells = slab.decoded[slot];
    slab.cells[slot] = cells;
    for (int r = 0; r < kRows; ++r) {
      const int64_t n = panel * kRows + r;
      float* scale = slab.scale + slot * kRows + r;
      for (int at = 0; at < chunks * kChunk; at += kRowBlock) {
        alignas(64) int8_t codes[kRowBlock] = {};
        float scales[kRowBlock / RowCodes::kGroup] = {};
        if (n < rows) {
          const T block(row(n, k + at));
          store_codes_of(block, codes);
          for (int g = 0; g < kRowBlock / RowCodes::kGroup; ++g)
            scales[g] = block.d * static_cast<float>(block.scales[g]);
        }
        for (int c = 0; c < kRowBlock / 4; ++c) {
          uint32_t word = get_word(reinterpret_cast<const uint8_t*>(codes) + 4 * c) ^ 0x80808080u;
          put_word(cells + (at / 4 + c) * kCell + 4 * r, word);
        }
        for (int g = 0; g < kRowBlock / RowCodes::kGroup; ++g) scale[(at / RowCodes::kGroup + g) * kTileColumns] = scales[g];
      }
    }
  }
  QUANTRY_INLINE void prefetch_slab(int64_t, int64_t, int) const {}   // rows are streams that the hardware sees

  template <int R>
  QUANTRY_INLINE void run_int8(const SlabInt8& slab, const void* base, int64_t k, int chunks, int64_t first_row,
                               float* c) const {
    TileInt8<RowCodes> t(const_cast<void*>(base), columns, first_row, R);
    TileSlab x{t.codes + k * R, t.scale + k / kActBlock<RowCodes> * R, t.start + k / RowCodes::kGroup * R, t.sums};
    micro_int8<KindOf<RowCodes>, R>(slab, x, chunks * kChunk / RowCodes::kGroup, c);
  }
  QUANTRY_INLINE const float* float_tile(const void* base, int64_t k, int64_t first_row, int height) const {
    return TileFloat(const_cast<void*>(base), columns, first_row, height).x + k * height;
  }

  static bool embedding(const EmbeddingArgs& a) {
    const RowSource w{a.blocks, a.rows, a.columns};
    return look_up<kRowBlock>(a, [&](int64_t n, int64_t b, float* values) {
      each_weight<T>(w.row(n, b * kRowBlock), [&](int column, vf v, int) QUANTRY_LAMBDA { store(values + column, v); });
    });
  }
};

QUANTRY_END
