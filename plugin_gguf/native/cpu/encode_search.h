// The scale searches of ggml-quants.c, one sub-block per lane.
#pragma once
#include "encode_lanes.h"

QUANTRY_BEGIN

constexpr int kTile = 16;   // blocks searched together: a multiple of every kWide

// The blocks of a job by sixteens: lane s is block s of them; lanes after the last block repeat it.
struct Lanes {
  const float* x[kTile];
  const float* importance[kTile];   // or null
  int count;

  QUANTRY_INLINE Lanes(const float* first, const float* weights, int64_t column, int64_t columns, int64_t left, int block) {
    count = static_cast<int>(left < kTile ? left : kTile);
    for (int s = 0; s < kTile; s++) {
      const int64_t at = static_cast<int64_t>(s < count ? s : count - 1) * block;
      x[s] = first + at;
      importance[s] = weights ? weights + (column + at) % columns : nullptr;
    }
  }
};

// Element i of the sub-blocks stands in row i.
template <int kCount>
struct Tile {
  alignas(64) float x[kCount][kTile];
  alignas(64) float weight[kCount][kTile];
};

// What a search finds for sixteen sub-blocks; codes are made again from `inverse` and `from` where they are needed.
struct alignas(64) Fit {
  float scale[kTile];
  float min[kTile];       // what is subtracted: -min of the sub-block, >= 0
  float weight[kTile];    // Σ weight
  float inverse[kTile], from[kTile];
};

// Columns offset … offset+kCount-1 of sixteen rows.
template <int kCount>
QUANTRY_NOINLINE void gather(const float* const (&rows)[kTile], int offset, float (&to)[kCount][kTile]) {
  for (int at = 0; at < kTile; at += kWide)
    for (int i = 0; i < kCount; i += kWide) {
      Floats v[kWide];
      repeat<kWide>([&](auto s) QUANTRY_LAMBDA { v[s] = read(rows[at + s] + offset + i); });
      transpose(v);
      repeat<kWide>([&](auto s) QUANTRY_LAMBDA { write(&to[i + s][at], v[s]); });
    }
}

// Σ x² of `count` columns of sixteen rows, in index order as the reference adds them.
inline QUANTRY_NOINLINE void square_sums(const float* const (&rows)[kTile], int64_t count, float (&to)[kTile]) {
  for (int at = 0; at < kTile; at += kWide) {
    Floats sum = {};
    for (int64_t i = 0; i < count; i += kWide) {
      Floats v[kWide];
      repeat<kWide>([&](auto s) QUANTRY_LAMBDA { v[s] = read(rows[at + s] + i); });
      transpose(v);
      repeat<kWide>([&](auto s) QUANTRY_LAMBDA { sum += v[s] * v[s]; });
    }
    write(&to[at], sum);
  }
}

// importance · sqrt(sigma2 + x²): how importance, gathered into `weight`, enters every search but Q6_K's.
template <int kCount>
QUANTRY_INLINE void weigh(Tile<kCount>& t, const float (&sigma2)[kTile]) {
  for (int i = 0; i < kCount; i++)
    for (int at = 0; at < kTile; at += kWide) {
      Floats x = read(&t.x[i][at]);
      write(&t.weight[i][at], read(&t.weight[i][at]) * root(read(&sigma2[at]) + x * x));
    }
}

struct Steps {
  float first, each;
  int last;
};

// Code kLow … kTop as a float. Rounding after the clamp is the same below 2^22; above, ggml's integer wraps first.
template <int kLow, int kTop, bool kSmall>
QUANTRY_INLINE Floats level(Floats v) {
  if constexpr (kSmall) return (least(most(v, all(kLow)), all(kTop)) + 12582912.0f) - 12582912.0f;
  return to_floats(clamp(nearest(v), kLow, kTop));
}

// make_qkx2_quants, make_qkx3_quants: x ≈ scale·code - min, code 0…kTop, min >= 0, least Σ weight·error², or ·|error|.
template <int kTop, bool kAbsolute, int kCount>
QUANTRY_NOINLINE void fit_affine(const Tile<kCount>& t, int at, Steps steps, Fit& fit) {
  const auto x = [&](int i) QUANTRY_LAMBDA { return read(&t.x[i][at]); };
  const auto w = [&](int i) QUANTRY_LAMBDA { return read(&t.weight[i][at]); };
  Floats low = x(0), max = low, sum_w = w(0), sum_x = sum_w * low;
  for (int i = 1; i < kCount; i++) {
    low = least(low, x(i));
    max = most(max, x(i));
    sum_w += w(i);
    sum_x += w(i) * x(i);
  }
  Floats min = pick(low > 0.0f, Floats{}, low);
  const Ints constant = max == min;
  const float top = kTop;
  Floats inverse = top / (max - min);
  Floats scale = 1.0f / inverse, best = {};
  Floats best_inverse = inverse, best_from = min;   // the codes of the best step are made again from these
  const Floats first_min = min;
  alignas(64) float code[kCount][kWide];
  const auto measure = [&](Floats by, Floats from) QUANTRY_LAMBDA {
    Floats sum = {};
    for (int i = 0; i < kCount; i++) {
      Floats error = by * read(code[i]) + from - x(i);
      sum += w(i) * (kAbsolute ? magnitude(error) : error * error);
    }
    return sum;
  };
  const auto step = [&](auto small, Floats& sum_l, Floats& sum_l2, Floats& sum_xl) QUANTRY_LAMBDA {
    for (int i = 0; i < kCount; i++) {
      Floats v = x(i), l = level<0, kTop, small>(inverse * (v - min)), wl = w(i) * l;
      write(code[i], l);
      sum_l += wl;
      sum_l2 += wl * l;
      sum_xl += wl * v;
    }
  };
  for (int s = -1; s <= steps.last; s++) {
    if (s >= 0) inverse = (steps.first + steps.each * static_cast<float>(s) + top) / (max - min);
    Floats sum_l = {}, sum_l2 = {}, sum_xl = {};
    const Ints small = (magnitude(inverse * (max - min)) < 4194304.0f) & (magnitude(inverse * (low - min)) < 4194304.0f);
    if (everywhere(small | constant)) step(Const<1>{}, sum_l, sum_l2, sum_xl);
    else step(Const<0>{}, sum_l, sum_l2, sum_xl);
    if (s < 0) {
      best = measure(scale, min);
      continue;
    }
    const Floats det = sum_w * sum_l2 - sum_l * sum_l;
    Floats new_scale = (sum_w * sum_xl - sum_x * sum_l) / det;
    Floats new_min = (sum_l2 * sum_x - sum_l * sum_xl) / det;
    const Ints above = new_min > 0.0f;
    new_min = pick(above, Floats{}, new_min);
    new_scale = pick(above, sum_xl / sum_l2, new_scale);
    const Floats sum = measure(new_scale, new_min);
    const Ints better = (det > 0.0f) & (sum < best);
    best = pick(better, sum, best);
    scale = pick(better, new_scale, scale);
    best_inverse = pick(better, inverse, best_inverse);
    best_from = pick(better, min, best_from);
    min = pick(better, new_min, min);   // the following steps start from it, as in ggml
  }
  write(&fit.scale[at], pick(constant, Floats{}, scale));
  write(&fit.min[at], -pick(constant, first_min, min));
  write(&fit.weight[at], sum_w);
  write(&fit.inverse[at], pick(constant, Floats{}, best_inverse));   // 0: every code is 0
  write(&fit.from[at], best_from);
}

template <int kTop>
QUANTRY_INLINE Ints affine_code(const Fit& fit, int lane, Floats x) {
  return clamp(nearest(fit.inverse[lane] * (x - fit.from[lane])), 0, kTop);
}

// make_qx_quants, rmse_type 1: x ≈ scale·(code - kHalf), code 0…2·kHalf-1. `from` is 1 where all x are zero: code 0.
template <int kHalf, int kCount>
QUANTRY_NOINLINE void fit_symmetric(const Tile<kCount>& t, int at, Fit& fit) {
  const auto x = [&](int i) QUANTRY_LAMBDA { return read(&t.x[i][at]); };
  const auto w = [&](int i) QUANTRY_LAMBDA { return read(&t.weight[i][at]); };
  Floats top = {}, extreme = {}, sum_w = {};
  Ints finite = Ints{} - 1;
  alignas(64) float weighted[kCount][kWide];
  for (int i = 0; i < kCount; i++) {
    Floats v = x(i), size = magnitude(v);
    Ints more = size > top;
    top = pick(more, size, top);
    extreme = pick(more, v, extreme);
    finite &= size < kInfinity;
    sum_w += w(i);
    write(weighted[i], w(i) * v);
  }
  const Ints zero = top < 1e-15f;
  Floats scale = {}, best = {}, best_inverse = {};
  const auto step = [&](auto small, Floats inverse, Floats& sum_xl, Floats& sum_l2) QUANTRY_LAMBDA {
    for (int i = 0; i < kCount; i++) {
      Floats l = level<-kHalf, kHalf - 1, small>(inverse * x(i));
      sum_xl += read(weighted[i]) * l;
      sum_l2 += w(i) * l * l;
    }
  };
  const bool small = everywhere(finite);   // then |inverse · x| is at most kHalf + 1; zero lanes do not count
  for (int s = -10; s <= 9; s++) {
    if (s == 0) continue;
    const bool start = s == -10;   // the plain -kHalf / extreme, taken whatever its error
    const float levels = start ? kHalf : kHalf + 0.1f * static_cast<float>(s);
    const Floats inverse = -levels / extreme;
    Floats sum_xl = {}, sum_l2 = {};
    if (small) step(Const<1>{}, inverse, sum_xl, sum_l2);
    else step(Const<0>{}, inverse, sum_xl, sum_l2);
    Ints better = (sum_l2 > 0.0f) & (sum_xl * sum_xl > best * sum_l2);
    Floats refit = sum_xl / sum_l2;
    if (start) {
      better = Ints{} - 1;
      refit = pick(sum_l2 != 0.0f, refit, Floats{});
    }
    scale = pick(better, refit, scale);
    best = pick(better, refit * sum_xl, best);
    best_inverse = pick(better, inverse, best_inverse);
  }
  write(&fit.scale[at], pick(zero, Floats{}, scale));
  write(&fit.weight[at], sum_w);
  write(&fit.inverse[at], best_inverse);
  write(&fit.from[at], pick(zero, all(1), Floats{}));
}

template <int kHalf>
QUANTRY_INLINE Ints symmetric_code(const Fit& fit, int lane, Floats x) {
  const Ints l = clamp(nearest(fit.inverse[lane] * x), -kHalf, kHalf - 1) + kHalf;
  return fit.from[lane] != 0 ? Ints{} : l;
}

// make_qp_quants: x ≈ scale·code, code 0…kTop. Codes are bytes that wrap, as in ggml.
template <int kTop, int kCount>
QUANTRY_NOINLINE void fit_positive(const Tile<kCount>& t, int at, int32_t (&codes)[kCount][kTile], float (&scales)[kTile]) {
  const auto x = [&](int i) QUANTRY_LAMBDA { return read(&t.x[i][at]); };
  const auto w = [&](int i) QUANTRY_LAMBDA { return read(&t.weight[i][at]); };
  const auto code = [&](Floats v) QUANTRY_LAMBDA {
    Ints l = nearest(v);
    return l < kTop ? l : Ints{} + kTop;
  };
  Floats max = {};
  for (int i = 0; i < kCount; i++) max = pick(max > x(i), max, x(i));
  const Ints zero = max < 1e-15f;
  const float top = kTop;
  Floats inverse = top / max, best = {};
  const Floats start = 1.0f / inverse;
  for (int i = 0; i < kCount; i++) {
    Floats error = x(i) - start * to_floats(nearest(inverse * x(i)) & 255);
    best += w(i) * error * error;
  }
  for (int s = -4; s <= 4; s++) {
    if (s == 0) continue;
    const Floats trial = (0.1f * static_cast<float>(s) + top) / max, by = 1.0f / trial;
    Floats sum = {};
    for (int i = 0; i < kCount; i++) {
      Floats error = x(i) - by * to_floats(code(trial * x(i)));
      sum += w(i) * error * error;
    }
    const Ints better = sum < best;
    best = pick(better, sum, best);
    inverse = pick(better, trial, inverse);
  }
  Floats xl = {}, l2 = {};
  Ints found[kCount];
  for (int i = 0; i < kCount; i++) {
    const Ints l = code(inverse * x(i));
    const Floats value = to_floats(l);
    found[i] = l & 255;
    xl += w(i) * x(i) * value;
    l2 += w(i) * value * value;
  }
  for (int sweep = 0; sweep < 5; sweep++) {
    Ints changed = {};
    for (int i = 0; i < kCount; i++) {
      const Floats weight = w(i), weighted = weight * x(i), old = to_floats(found[i]);
      const Floats rest_xl = xl - weighted * old, rest_l2 = l2 - weight * old * old;
      const Ints l = code(x(i) * rest_l2 / rest_xl);
      const Floats value = to_floats(l);
      const Floats new_xl = rest_xl + weighted * value, new_l2 = rest_l2 + weight * value * value;
      const Ints better = (rest_xl > 0.0f) & (rest_l2 > 0.0f) & (l != found[i]) & (new_xl * new_xl * l2 > xl * xl * new_l2);
      found[i] = better ? l & 255 : found[i];
      xl = pick(better, new_xl, xl);
      l2 = pick(better, new_l2, l2);
      changed |= better & ~zero;
    }
    if (!anywhere(changed)) break;
  }
  for (int i = 0; i < kCount; i++) write(&codes[i][at], zero ? Ints{} : found[i]);
  write(&scales[at], pick(zero | ~(l2 > 0.0f), Floats{}, xl / l2));
}

QUANTRY_END
