// The scale searches of ggml-quants.c, one sub-block per lane.
#pragma once
#include <quantry/encode/lanes.h>

QUANTRY_BEGIN

constexpr int kTile = 16;   // sub-blocks searched together: a multiple of every kWide

// Element i of the sub-blocks stands in row i. Codes are whole numbers kept as floats.
template <int kCount>
struct Tile {
  alignas(64) float x[kCount][kTile];
  alignas(64) float weight[kCount][kTile];
  alignas(64) float code[kCount][kTile];
  alignas(64) float scale[kTile];
  alignas(64) float min[kTile];   // what is subtracted: -min of the sub-block, >= 0
};

// Transposes `count` sub-blocks that lie one after the other; the other lanes are zero.
template <int kCount>
QUANTRY_INLINE void gather(const float* from, int count, float (&to)[kCount][kTile]) {
  if (count < kTile) memset(to, 0, sizeof to);
  for (int s = 0; s < count; s++)
    for (int i = 0; i < kCount; i++) to[i][s] = from[s * kCount + i];
}

struct Steps {
  float first, each;
  int last;
};

template <int kTop>
QUANTRY_INLINE Floats level(Floats inverse, Floats distance) {
  return to_floats(clamp(nearest(inverse * distance), 0, kTop));
}

// make_qkx2_quants, make_qkx3_quants: x ≈ scale·code - min, code 0…kTop, min >= 0, least Σ weight·error².
template <int kCount, int kTop>
QUANTRY_NOINLINE void fit_affine(Tile<kCount>& t, int at, Steps steps) {
  const Floats first_x = read(&t.x[0][at]), first_w = read(&t.weight[0][at]);
  Floats min = first_x, max = first_x, sum_w = first_w, sum_x = first_w * first_x;
  for (int i = 1; i < kCount; i++) {
    Floats x = read(&t.x[i][at]), w = read(&t.weight[i][at]);
    min = pick(x < min, x, min);
    max = pick(x > max, x, max);
    sum_w += w;
    sum_x += w * x;
  }
  min = pick(min > 0.0f, Floats{}, min);
  const Ints constant = max == min;
  const float top = kTop;
  Floats inverse = top / (max - min);
  Floats scale = 1.0f / inverse, best = {};
  Floats best_inverse = inverse, best_from = min;   // the codes of the best step are made again from these
  const Floats first_min = min;
  for (int i = 0; i < kCount; i++) {
    Floats x = read(&t.x[i][at]);
    Floats error = scale * level<kTop>(inverse, x - min) + min - x;
    best += read(&t.weight[i][at]) * (error * error);
  }
  for (int s = 0; s <= steps.last; s++) {
    inverse = (steps.first + steps.each * static_cast<float>(s) + top) / (max - min);
    alignas(64) float code[kCount][kWide];
    Floats sum_l = {}, sum_l2 = {}, sum_xl = {};
    for (int i = 0; i < kCount; i++) {
      Floats x = read(&t.x[i][at]);
      Floats l = level<kTop>(inverse, x - min);
      write(code[i], l);
      Floats wl = read(&t.weight[i][at]) * l;
      sum_l += wl;
      sum_l2 += wl * l;
      sum_xl += wl * x;
    }
    const Floats det = sum_w * sum_l2 - sum_l * sum_l;
    Floats new_scale = (sum_w * sum_xl - sum_x * sum_l) / det;
    Floats new_min = (sum_l2 * sum_x - sum_l * sum_xl) / det;
    const Ints above = new_min > 0.0f;
    new_min = pick(above, Floats{}, new_min);
    new_scale = pick(above, sum_xl / sum_l2, new_scale);
    Floats sum = {};
    for (int i = 0; i < kCount; i++) {
      Floats error = new_scale * read(code[i]) + new_min - read(&t.x[i][at]);
      sum += read(&t.weight[i][at]) * (error * error);
    }
    const Ints better = (det > 0.0f) & (sum < best);
    best = pick(better, sum, best);
    scale = pick(better, new_scale, scale);
    best_inverse = pick(better, inverse, best_inverse);
    best_from = pick(better, min, best_from);
    min = pick(better, new_min, min);   // the following steps start from it, as in ggml
  }
  for (int i = 0; i < kCount; i++) {
    Floats l = level<kTop>(best_inverse, read(&t.x[i][at]) - best_from);
    write(&t.code[i][at], pick(constant, Floats{}, l));
  }
  write(&t.scale[at], pick(constant, Floats{}, scale));
  write(&t.min[at], -pick(constant, first_min, min));
}

// make_qx_quants, rmse_type 1: x ≈ scale·(code - kHalf), code 0…2·kHalf-1. The weights are in `weight`.
template <int kCount, int kHalf>
QUANTRY_NOINLINE void fit_symmetric(Tile<kCount>& t, int at) {
  Floats largest = {}, extreme = {};
  for (int i = 0; i < kCount; i++) {
    Floats x = read(&t.x[i][at]);
    Ints more = magnitude(x) > largest;
    largest = pick(more, magnitude(x), largest);
    extreme = pick(more, x, extreme);
  }
  const Ints zero = largest < 1e-15f;
  Floats scale = {}, best = {}, best_inverse = {};
  for (int s = -10; s <= 9; s++) {
    if (s == 0) continue;
    const bool start = s == -10;   // the plain -kHalf / extreme, taken whatever its error
    const float levels = start ? kHalf : kHalf + 0.1f * static_cast<float>(s);
    const Floats inverse = -levels / extreme;
    Floats sum_xl = {}, sum_l2 = {};
    for (int i = 0; i < kCount; i++) {
      Floats x = read(&t.x[i][at]), w = read(&t.weight[i][at]);
      Floats l = to_floats(clamp(nearest(inverse * x), -kHalf, kHalf - 1));
      sum_xl += w * x * l;
      sum_l2 += w * l * l;
    }
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
  for (int i = 0; i < kCount; i++) {
    Ints l = clamp(nearest(best_inverse * read(&t.x[i][at])), -kHalf, kHalf - 1) + kHalf;
    write(&t.code[i][at], to_floats(zero ? Ints{} : l));
  }
  write(&t.scale[at], pick(zero, Floats{}, scale));
}

// make_qp_quants on eight values: x ≈ result·code, code 0…kTop. Codes are bytes that wrap, as in ggml.
template <int kTop>
QUANTRY_NOINLINE float fit_positive(const float (&x)[8], const float (&weight)[8], uint8_t (&code)[8]) {
  float max = 0;
  for (float v : x) max = max > v ? max : v;
  memset(code, 0, sizeof code);
  if (max < 1e-15f) return 0;
  float inverse = kTop / max, scale = 1 / inverse, best = 0;
  for (int i = 0; i < 8; i++) {
    float error = x[i] - scale * static_cast<uint8_t>(nearest(inverse * x[i]));
    best += weight[i] * error * error;
  }
  for (int s = -4; s <= 4; s++) {
    if (s == 0) continue;
    float trial = (0.1f * static_cast<float>(s) + kTop) / max, trial_scale = 1 / trial, sum = 0;
    for (int i = 0; i < 8; i++) {
      int l = nearest(trial * x[i]);
      float error = x[i] - trial_scale * static_cast<float>(l < kTop ? l : kTop);
      sum += weight[i] * error * error;
    }
    if (sum < best) {
      best = sum;
      inverse = trial;
    }
  }
  float xl = 0, l2 = 0;
  for (int i = 0; i < 8; i++) {
    int l = nearest(inverse * x[i]);
    l = l < kTop ? l : kTop;
    code[i] = static_cast<uint8_t>(l);
    xl += weight[i] * x[i] * static_cast<float>(l);
    l2 += weight[i] * static_cast<float>(l) * static_cast<float>(l);
  }
  for (int sweep = 0; sweep < 5; sweep++) {
    bool changed = false;
    for (int i = 0; i < 8; i++) {
      float w = weight[i], old = code[i];
      float other_xl = xl - w * x[i] * old, other_l2 = l2 - w * old * old;
      if (!(other_xl > 0 && other_l2 > 0)) continue;
      int l = nearest(x[i] * other_l2 / other_xl);
      l = l < kTop ? l : kTop;
      if (l == code[i]) continue;
      other_xl += w * x[i] * static_cast<float>(l);
      other_l2 += w * static_cast<float>(l) * static_cast<float>(l);
      if (other_xl * other_xl * l2 > xl * xl * other_l2) {
        code[i] = static_cast<uint8_t>(l);
        xl = other_xl;
        l2 = other_l2;
        changed = true;
      }
    }
    if (!changed) break;
  }
  return l2 > 0 ? xl / l2 : 0;
}

QUANTRY_END
