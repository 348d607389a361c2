// What the encoders of 256-column super-blocks share.
#pragma once
#include "encode.h"
#include "encode_search.h"

QUANTRY_BEGIN

constexpr int kSuper = 256;

// Calls search(lanes) and write(x, lane, block) for the super-blocks of a job, sixteen by sixteen.
template <int kBytes, class Search, class Write>
QUANTRY_INLINE void each_super(const EncodeJob& job, const Search& search, const Write& write) {
  for (int64_t b = job.first, end = b + job.count; b < end; b += kTile) {
    const Lanes lanes(job.x + b * kSuper, job.importance, b * kSuper % job.columns, job.columns, end - b, kSuper);
    search(lanes);
    for (int s = 0; s < lanes.count; s++) write(lanes.x[s], s, job.out + (b + s) * kBytes);
  }
}

// x and weights of a search: by importance where there is some, else as plain(tile) makes them of x.
template <int kCount, class Plain>
QUANTRY_INLINE void fill(Tile<kCount>& t, const Lanes& lanes, int offset, const float (&sigma2)[kTile], const Plain& plain) {
  gather(lanes.x, offset, t.x);
  if (!lanes.importance[0]) return plain(t);
  gather(lanes.importance, offset, t.weight);
  weigh(t, sigma2);
}

template <int kCount>
QUANTRY_INLINE void square(Tile<kCount>& t) {
  for (int i = 0; i < kCount; i++)
    for (int at = 0; at < kTile; at += kWide) {
      Floats x = read(&t.x[i][at]);
      write(&t.weight[i][at], x * x);
    }
}

// factor · Σ x² / 256, in the reference's order.
QUANTRY_INLINE void mean_squares(const Lanes& lanes, float factor, float (&to)[kTile]) {
  square_sums(lanes.x, kSuper, to);
  for (float& sum : to) sum = factor * sum / kSuper;
}

template <int kSubs>
QUANTRY_INLINE void collect(const Fit (&fits)[kSubs], const float (Fit::*from)[kTile], float (&to)[kSubs][kTile]) {
  for (int j = 0; j < kSubs; j++) memcpy(to[j], fits[j].*from, sizeof to[j]);
}

// Codes of 2 bits: byte l of a half has those of columns l, 32+l, 64+l, 96+l.
template <class Code, class Put>
QUANTRY_INLINE void each_four(const Code& code, const Put& put) {
  for (int l = 0; l < 32; l += kWide)
    for (int h = 0; h < 2; h++) {
      Ints c[4];
      repeat<4>([&](auto g) QUANTRY_LAMBDA {
        const int column = 128 * h + 32 * g + l;
        c[g] = code(column / 16, column);
      });
      put(h, l, c);
    }
}

QUANTRY_INLINE void put_pairs(uint8_t* to, const Ints (&c)[4]) { write_bytes(to, c[0] | c[1] << 2 | c[2] << 4 | c[3] << 6); }

QUANTRY_END
