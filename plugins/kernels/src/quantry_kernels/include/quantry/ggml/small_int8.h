// y[M, N] = int8(x)[M, K] · W[N, K]ᵀ for few rows (M ≤ 8): one pass over a panel feeds R rows of x, no decoded copy.
// Products and sums of a block are exact integers; blocks are added in f32 in the order of K.
#pragma once
#include "../activations.h"
#include "scales.h"

QUANTRY_BEGIN

template <class F, int R>
QUANTRY_INLINE void start_dots(vi (&a)[R], const int32_t* start) {
  repeat<R>([&](auto m) QUANTRY_LAMBDA { a[m] = kZeroOf<F> ? set1_int(start[m]) : zero_int(); });
}

// a[m] += Σ over cells J0 … J0+Cells of the chunk; x: the chunk's activations [8][R][4].
template <class F, int R, int J0, int Cells>
QUANTRY_INLINE void dot_cells(vi (&a)[R], const Chunk<F>& chunk, const int8_t* x) {
  constexpr bool two = R <= 2;   // a second chain of sums hides the latency when there are few rows
  vi b[two ? R : 1];
  if constexpr (two) repeat<R>([&](auto m) QUANTRY_LAMBDA { b[m] = zero_int(); });
  repeat<Cells>([&](auto j) QUANTRY_LAMBDA {
    constexpr int cell = J0 + j;
    vc w = chunk.template code<cell>();
    repeat<R>([&](auto m) QUANTRY_LAMBDA {
      int32_t four;
      memcpy(&four, x + (cell * R + m) * 4, 4);
      vi& sum = two && cell % 2 ? b[two ? int(m) : 0] : a[m];
      if constexpr (kFullCodes<F>) sum = dot4_full(sum, w, four);
      else sum = dot4(sum, w, four);
    });
  });
  if constexpr (two) repeat<R>([&](auto m) QUANTRY_LAMBDA { a[m] = add_int(a[m], b[m]); });
}

// Up to 256 columns with f32 scales: sums[m] += (s · scale_x) · Σ q x, and m · Σ x.
template <class F, int R>
QUANTRY_INLINE void slab_plain(const Planes& w, int chunks, int strip, const TileInt8<F>& x, float* sums) {
  constexpr int groups = kChunk / F::kGroup, cells = 8 / groups;
  vf acc[R];
  repeat<R>([&](auto m) QUANTRY_LAMBDA { acc[m] = load(sums + m * kRows); });
  each_chunk<F>(w, chunks, strip, [&](int i, const Chunk<F>& chunk, vf s0, vf s1, vf min, vf) QUANTRY_LAMBDA {
    prefetch_codes<F>(w, i, strip);
    repeat<groups>([&](auto g) QUANTRY_LAMBDA {
      constexpr int group = g;
      vi a[R];
      start_dots<F, R>(a, x.start + (groups * i + group) * R);
      dot_cells<F, R, group * cells, cells>(a, chunk, x.codes + i * kChunk * R);
      repeat<R>([&](auto m) QUANTRY_LAMBDA {
        acc[m] = fma(to_float(a[m]), mul(group == 0 ? s0 : s1, set1(x.scale[i * R + m])), acc[m]);
        if constexpr (F::kMins) acc[m] = fma(min, set1(static_cast<const float*>(x.sums)[i * R + m]), acc[m]);
      });
    });
  });
  repeat<R>([&](auto m) QUANTRY_LAMBDA { store(sums + m * kRows, acc[m]); });
}

// Ends a super-block: sums[m] += (d · scale_x) · total − (dmin · scale_x) · Σ mins · Σ x.
template <class F, int R>
QUANTRY_INLINE void add_super(const vi (&total)[R], vf d, const uint8_t* meta, int strip, const TileInt8<F>& x,
                              float* sums) {
  constexpr int pairs = F::kMins ? kMinPairs<F> : 0;
  const int32_t* x_sums = static_cast<const int32_t*>(x.sums);
  vi mins[pairs + 1];
  repeat<pairs>([&](auto p) QUANTRY_LAMBDA {
    constexpr int pair = p;
    mins[pair] = min_pair<F, pair>(meta, strip);
  });
  const vf dmin = F::kMins ? block_half<F, 1>(meta, strip) : zero();
  repeat<R>([&](auto m) QUANTRY_LAMBDA {
    vf scale_x = set1(x.scale[m]);
    vf acc = fma(to_float(total[m]), mul(d, scale_x), load(sums + m * kRows));
    if constexpr (F::kMins) {
      vi below = zero_int();
      repeat<pairs>([&](auto p) QUANTRY_LAMBDA { below = dot2(below, mins[p], x_sums[p * R + m]); });
      acc = fnma(to_float(below), mul(dmin, scale_x), acc);
    }
    store(sums + m * kRows, acc);
  });
}

// One super-block of Q4_K, Q5_K: sub-block sums times integer scales, one f32 product for 256 columns.
template <class F, int R>
QUANTRY_INLINE void slab_six_bit(const Planes& w, int strip, const TileInt8<F>& x, float* sums) {
  vi total[R];
  repeat<R>([&](auto m) QUANTRY_LAMBDA { total[m] = zero_int(); });
  vc scales = SixBit(w.meta, strip).scales<0>();
  for (int half = 0; half < 2; ++half) {
    for (int b = 0; b < 4; ++b) {
      int i = 4 * half + b;
      prefetch_codes<F>(w, i, strip);
      vi a[R];
      start_dots<F, R>(a, x.start + i * R);
      dot_cells<F, R, 0, 8>(a, Chunk<F>(w, i, strip), x.codes + i * kChunk * R);
      vi scale = take_byte(scales);
      repeat<R>([&](auto m) QUANTRY_LAMBDA { total[m] = add_int(total[m], mul_int(a[m], scale)); });
    }
    QUANTRY_RELOAD();
    scales = SixBit(w.meta, strip).scales<1>();
  }
  QUANTRY_RELOAD();
  add_super<F, R>(total, block_half<F>(w.meta, strip), w.meta, strip, x, sums);
}

// One super-block of TQ2_0: one scale.
template <class F, int R>
QUANTRY_INLINE void slab_whole(const Planes& w, int strip, const TileInt8<F>& x, float* sums) {
  vi total[R];
  repeat<R>([&](auto m) QUANTRY_LAMBDA { total[m] = zero_int(); });
  for (int i = 0; i < kSlabChunks; ++i) {
    prefetch_codes<F>(w, i, strip);
    vi a[R];
    start_dots<F, R>(a, x.start + i * R);
    dot_cells<F, R, 0, 8>(a, Chunk<F>(w, i, strip), x.codes + i * kChunk * R);
    repeat<R>([&](auto m) QUANTRY_LAMBDA { total[m] = add_int(total[m], a[m]); });
  }
  add_super<F, R>(total, block_half<F>(w.meta, strip), w.meta, strip, x, sums);
}

// One super-block of IQ4_XS: eight signed scales.
template <class F, int R>
QUANTRY_INLINE void slab_eight(const Planes& w, int strip, const TileInt8<F>& x, float* sums) {
  vi total[R];
  repeat<R>([&](auto m) QUANTRY_LAMBDA { total[m] = zero_int(); });
  EightScales scales(w.meta, strip);
  for (int i = 0; i < kSlabChunks; ++i) {
    prefetch_codes<F>(w, i, strip);
    vi a[R];
    start_dots<F, R>(a, x.start + i * R);
    dot_cells<F, R, 0, 8>(a, Chunk<F>(w, i, strip), x.codes + i * kChunk * R);
    vi scale = scales.take();
    repeat<R>([&](auto m) QUANTRY_LAMBDA { total[m] = add_int(total[m], mul_int(a[m], scale)); });
  }
  QUANTRY_RELOAD();
  add_super<F, R>(total, block_half<F, 1>(w.meta, strip), w.meta, strip, x, sums);
}

// One super-block of Q2_K, Q3_K, Q6_K: a scale per 16 columns.
template <class F, int R>
QUANTRY_INLINE void slab_sixteen(const Planes& w, int strip, const TileInt8<F>& x, float* sums) {
  vi total[R];
  repeat<R>([&](auto m) QUANTRY_LAMBDA { total[m] = zero_int(); });
  for (int quarter = 0; quarter < 4; ++quarter) {
    vc scales = quarter_scales<F>(w.meta, strip, quarter);
    for (int b = 0; b < 2; ++b) {
      int i = 2 * quarter + b;
      prefetch_codes<F>(w, i, strip);
      Chunk<F> chunk(w, i, strip);
      vi a[R];
      start_dots<F, R>(a, x.start + 2 * i * R);
      dot_cells<F, R, 0, 4>(a, chunk, x.codes + i * kChunk * R);
      vi first = signed_byte<0>(scales), second = signed_byte<1>(scales);
      repeat<R>([&](auto m) QUANTRY_LAMBDA { total[m] = add_int(total[m], mul_int(a[m], first)); });
      start_dots<F, R>(a, x.start + (2 * i + 1) * R);
      dot_cells<F, R, 4, 4>(a, chunk, x.codes + i * kChunk * R);
      repeat<R>([&](auto m) QUANTRY_LAMBDA { total[m] = add_int(total[m], mul_int(a[m], second)); });
      scales = shift_right<16>(scales);
    }
  }
  QUANTRY_RELOAD();
  add_super<F, R>(total, mul(block_half<F>(w.meta, strip), set1(kScaleUnit<F>)), w.meta, strip, x, sums);
}

// sums[R][16] = the 16 outputs of panel `p` for the R rows of a tile, without bias.
template <class F, int R>
QUANTRY_NOINLINE void micro_small_int8(const Planes& weights, int64_t panel, int64_t columns, TileInt8<F> x, float* sums) {
  for (int i = 0; i < R * kRows; ++i) sums[i] = 0.0f;
  for (int64_t k = 0; k < columns; k += kSlab) {
    Planes w = planes_at<F>(weights, panel, columns, k);
    int chunks = static_cast<int>(min_of(kSlab, columns - k) / kChunk);
    for (int strip = 0; strip < kStrips; ++strip) {
      float* out = sums + strip * kLanes;
      if constexpr (!F::kSuper) slab_plain<F, R>(w, chunks, strip, x, out);
      else if constexpr (F::kScales == Scales::kSixBit) slab_six_bit<F, R>(w, strip, x, out);
      else if constexpr (F::kScales == Scales::kHalf) slab_whole<F, R>(w, strip, x, out);
      else if constexpr (F::kScales == Scales::kEight) slab_eight<F, R>(w, strip, x, out);
      else slab_sixteen<F, R>(w, strip, x, out);
    }
    x.codes += kSlab * R;
    x.scale += kSlab / kActBlock<F> * R;
    x.start += kSlab / F::kGroup * R;
    x.sums = static_cast<float*>(x.sums) + (F::kSuper ? kMinPairs<F> : kSlabChunks) * R;
  }
}

QUANTRY_END
