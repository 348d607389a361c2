// The scale search of IQ2_* and IQ3_* (quantize_row_iq2_xxs_impl … in ggml-quants.c), one group of 16 or 32 per lane.
#pragma once
#include "encode_grid_nearest.h"

QUANTRY_BEGIN

enum class Redo { kAllRows, kRowsOffGrid, kAllIfOneIsOff };   // what is done again at the best scale

// What a type T says of its search.
struct GridType {
  static constexpr bool kParity = false;          // the signs of eight are even in number; one may be wrong
  static constexpr bool kFirstFit = false;        // trials around make_qp_quants' scale instead of the largest value
  static constexpr float kPlainSigma = 0;         // without importance: weight kPlainSigma·sigma2 + x²
  static constexpr Redo kRedo = Redo::kRowsOffGrid;
};

template <class T>
struct GridTile : GroupTile<T::kGroup> {   // x: magnitudes; negative where a sign is stored wrong
  static constexpr int kRows = T::kGroup / T::kRow;
  alignas(64) float root[T::kGroup][kTile];     // of the weights: what neighbours are compared by
  alignas(64) int32_t code[kRows][kTile];       // of grid rows
  alignas(64) int32_t index[kRows][kTile];
  alignas(64) int32_t signs[T::kGroup / 8][kTile];
  alignas(64) int32_t empty[kTile];             // -1: a group of zeros
};

// Weights, signs and magnitudes from the values.
template <class T>
QUANTRY_NOINLINE void prepare_tile(GridTile<T>& t, int at, bool weighted) {
  const Floats sigma2 = read(&t.sigma2[at]);
  for (int i = 0; i < T::kGroup; i++) {
    const Floats x = read(&t.x[i][at]);
    Floats w = x * x;
    if (weighted) w = read(&t.weight[i][at]) * square_root(sigma2 + w);
    else if (T::kPlainSigma != 0) w = T::kPlainSigma * sigma2 + w;
    write(&t.weight[i][at], w);
    write(&t.root[i][at], square_root(w));
  }
  Floats largest = all(-1.0f);
  for (int k = 0; k < T::kGroup / 8; k++) {
    Ints signs = {}, odd = {}, least_at = {};
    Floats least = {};
    for (int i = 0; i < 8; i++) {
      const Floats x = read(&t.x[8 * k + i][at]);
      const Ints negative = x < 0.0f;
      signs |= negative & 1 << i;
      odd ^= negative;
      write(&t.x[8 * k + i][at], pick(negative, -x, x));
      if (!T::kParity) continue;
      const Floats loss = read(&t.weight[8 * k + i][at]) * x * x;
      const Ints less = i ? loss < least : Ints{} - 1;
      least = pick(less, loss, least);
      least_at = less ? Ints{} + i : least_at;
    }
    for (int i = 0; i < 8; i++) {
      Floats x = read(&t.x[8 * k + i][at]);
      if (T::kParity) {
        const Ints flip = odd & (least_at == i);
        signs ^= flip & 1 << i;
        x = pick(flip, -x, x);
        write(&t.x[8 * k + i][at], x);
      }
      largest = pick(x > largest, x, largest);
    }
    write(&t.signs[k][at], T::kParity ? signs & 127 : signs);
  }
  write(&t.scale[at], largest);
}

// make_qp_quants on 32 values and levels 0 … 4: its scale. Codes are bytes that wrap, as in ggml: -1 becomes 255.
template <class T>
QUANTRY_NOINLINE Floats first_fit(const GridTile<T>& t, int at) {
  constexpr int kTop = T::kTop + 1;
  constexpr float kTopValue = kTop;
  Floats max = {};
  for (int i = 0; i < T::kGroup; i++) {
    const Floats x = read(&t.x[i][at]);
    max = pick(max > x, max, x);
  }
  Floats inverse = kTopValue / max, best = {};
  for (int s = -5; s <= 4; s++) {
    if (s == 0) continue;
    const bool start = s == -5;   // the plain kTop / max, taken whatever its error
    const Floats trial = start ? inverse : (0.1f * static_cast<float>(s) + kTopValue) / max;
    const Floats scale = 1.0f / trial;
    Floats sum = {};
    for (int i = 0; i < T::kGroup; i++) {
      const Floats x = read(&t.x[i][at]);
      const Ints l = nearest(trial * x);
      const Floats rest = x - scale * to_floats(start ? l & 255 : clamp(l, INT32_MIN, kTop));
      sum += read(&t.weight[i][at]) * rest * rest;
    }
    const Ints less = start ? Ints{} - 1 : sum < best;
    best = pick(less, sum, best);
    inverse = pick(less, trial, inverse);
  }
  alignas(64) float code[T::kGroup][kWide];
  Floats xl = {}, l2 = {};
  for (int i = 0; i < T::kGroup; i++) {
    const Floats x = read(&t.x[i][at]), w = read(&t.weight[i][at]);
    const Ints l = clamp(nearest(inverse * x), INT32_MIN, kTop);
    xl += w * x * to_floats(l);
    l2 += w * to_floats(l) * to_floats(l);
    write(code[i], to_floats(l & 255));
  }
  for (int sweep = 0; sweep < 5; sweep++) {
    Ints changed = {};
    for (int i = 0; i < T::kGroup; i++) {
      const Floats x = read(&t.x[i][at]), w = read(&t.weight[i][at]), old = read(code[i]);
      Floats other_xl = xl - w * x * old, other_l2 = l2 - w * old * old;
      const Ints l = clamp(nearest(x * other_l2 / other_xl), INT32_MIN, kTop);
      Ints better = (other_xl > 0.0f) & (other_l2 > 0.0f) & (to_floats(l) != old);
      other_xl += w * x * to_floats(l);
      other_l2 += w * to_floats(l) * to_floats(l);
      better &= other_xl * other_xl * l2 > xl * xl * other_l2;
      xl = pick(better, other_xl, xl);
      l2 = pick(better, other_l2, l2);
      write(code[i], pick(better, to_floats(l & 255), old));
      changed |= better;
    }
    if (!anywhere(changed)) break;
  }
  return pick(l2 > 0.0f, xl / l2, Floats{});
}

// The number of the pattern that a row has at 1 / scale.
template <class T>
QUANTRY_INLINE Ints pattern_at(const GridTile<T>& t, int at, int row, Floats inverse) {
  Ints pattern = {};
  for (int i = T::kRow - 1; i >= 0; i--) {
    const Floats x = read(&t.x[T::kRow * row + i][at]);
    pattern = pattern * T::kTop + clamp(nearest(0.5f * (inverse * x - 1.0f)), 0, T::kTop - 1);
  }
  return pattern;
}

// S1 = Σ weight·x·q, S2 = Σ weight·q·q of rows of codes.
template <class T>
QUANTRY_INLINE void sums_of(const GridTile<T>& t, int at, const int32_t (*code)[kTile], Floats& xq, Floats& q2) {
  xq = q2 = Floats{};
  for (int k = 0; k < GridTile<T>::kRows; k++) {
    const Ints c = read_ints(&code[k][at]);
    for (int i = 0; i < T::kRow; i++) {
      const Floats x = read(&t.x[T::kRow * k + i][at]), w = read(&t.weight[T::kRow * k + i][at]);
      const Floats q = to_floats(2 * level_at<T::kRow>(c, i) + 1);
      xq += w * x * q;
      q2 += w * q * q;
    }
  }
}

constexpr int32_t kOffGrid = 1 << 16;   // above a code: it is a neighbour's

// The search of the groups in lanes at … at+kWide-1.
template <class T>
struct Search {
  static constexpr int kRows = GridTile<T>::kRows, kRow = T::kRow, kTrials = 2 * T::kSteps + 1;
  static constexpr Levels kOdd = {1, 2};

  GridTile<T>& t;
  const int at;
  const uint32_t* entries;
  const uint16_t* lists;
  Ints empty;
  Floats scale;
  Floats inverse[kTrials];
  Ints best_code[kRows];
  alignas(64) int32_t code[kTrials][kRows][kTile];

  Search(GridTile<T>& tile, int first, const uint8_t* tables)
      : t(tile),
        at(first),
        entries(reinterpret_cast<const uint32_t*>(tables)),
        lists(reinterpret_cast<const uint16_t*>(tables + grid_lists_at(kRow == 8 ? 6561 : 4096))) {}

  // The scales to try, from the largest value or the first fit.
  void start() {
    constexpr float kTop = 2 * T::kTop - 1;
    const Floats max = read(&t.scale[at]);
    empty = T::kEps > 0 ? max < T::kEps : max == 0.0f;
    Floats span = max;
    scale = max / kTop;
    if (T::kFirstFit) {
      scale = first_fit(t, at);
      span = scale * static_cast<float>(T::kTop);
      empty |= span <= 0.0f;
    }
    for (int s = 0; s < kTrials; s++) inverse[s] = (kTop + static_cast<float>(s - T::kSteps) * T::kStep) / span;
  }

  // The codes of every trial.
  QUANTRY_NOINLINE void try_scales() {
    alignas(64) float trial[kTrials][kWide];
    for (int s = 0; s < kTrials; s++) {
      for (int k = 0; k < kRows; k++) write(&code[s][k][at], gather_words(entries, pattern_at(t, at, k, inverse[s])));
      write(trial[s], 1.0f / inverse[s]);
    }
    for (int lane = at; lane < at + kWide; lane++) {
      if (empty[lane - at]) continue;
      for (int k = 0; k < kRows; k++) {
        const RowValues<kRow> row(&t.x[kRow * k], &t.root[kRow * k], lane);
        for (int s = 0; s < kTrials; s++) {
          const uint32_t entry = static_cast<uint32_t>(code[s][k][lane]);
          if (entry & kOnGrid) code[s][k][lane] = static_cast<int32_t>(entry & 0xffff);
          else code[s][k][lane] = kOffGrid | nearest_row(lists, entry, row, trial[s][lane - at], kOdd);
        }
      }
    }
  }

  void take_best() {
    Floats best = {};
    for (int k = 0; k < kRows; k++) best_code[k] = Ints{} + (T::kRedo == Redo::kRowsOffGrid ? 0 : kOffGrid);
    for (int s = 0; s < kTrials; s++) {
      Floats xq, q2;
      sums_of(t, at, code[s], xq, q2);
      const Ints better = (q2 > 0.0f) & (xq * xq > best * q2);
      const Floats refit = xq / q2;
      scale = pick(better, refit, scale);
      best = pick(better, refit * xq, best);
      for (int k = 0; k < kRows; k++) best_code[k] = better ? read_ints(&code[s][k][at]) : best_code[k];
    }
    for (int k = 0; k < kRows; k++) best_code[k] &= ~empty;   // there they are entries still
  }

  // Once more at the best scale, then the scale that fits best.
  void refine() {
    Ints any_off = {};
    for (int k = 0; k < kRows; k++) any_off |= best_code[k] & kOffGrid;
    const Ints redo = ~empty & (scale > 0.0f) & (T::kRedo == Redo::kAllRows ? Ints{} - 1 : any_off != 0);
    for (int k = 0; k < kRows; k++) {
      const Ints mine = T::kRedo == Redo::kRowsOffGrid ? redo & ((best_code[k] & kOffGrid) != 0) : redo;
      const Ints entry = gather_words(entries, pattern_at(t, at, k, 1.0f / scale));
      write(&t.code[k][at], mine ? entry : best_code[k] & 0xffff);
      for (int lane = at; lane < at + kWide; lane++) {
        if (!mine[lane - at]) continue;
        const uint32_t e = static_cast<uint32_t>(entry[lane - at]);
        const RowValues<kRow> row(&t.x[kRow * k], &t.root[kRow * k], lane);
        if (e & kOnGrid) t.code[k][lane] = static_cast<int32_t>(e & 0xffff);
        else t.code[k][lane] = nearest_row(lists, e, row, scale[lane - at], kOdd);
      }
    }
    Floats xq, q2;
    sums_of(t, at, t.code, xq, q2);
    scale = pick(redo & (q2 > 0.0f), xq / q2, scale);
  }

  void store() const {
    const Ints flip = ~empty & (scale < 0.0f);
    for (int k = 0; k < T::kGroup / 8; k++)
      write(&t.signs[k][at], (read_ints(&t.signs[k][at]) ^ (flip & (T::kParity ? 127 : 255))) & ~empty);
    write(&t.scale[at], pick(empty, Floats{}, pick(flip, -scale, scale)));
    write(&t.empty[at], empty);
    for (int k = 0; k < kRows; k++) {
      Ints pattern = {};
      for (int i = kRow - 1; i >= 0; i--) pattern = pattern * T::kTop + level_at<kRow>(read_ints(&t.code[k][at]), i);
      write(&t.index[k][at], gather_words(entries, pattern) >> 16 & 0x7ff & ~empty);
    }
  }
};

// scale, index and signs of the groups in lanes at … at+kWide-1.
template <class T>
QUANTRY_NOINLINE void search_tile(GridTile<T>& t, int at, const uint8_t* tables) {
  Search<T> search(t, at, tables);
  search.start();
  search.try_scales();
  search.take_best();
  search.refine();
  search.store();
}

QUANTRY_END
