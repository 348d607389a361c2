// Encoders of IQ1_S and IQ1_M: levels -1, 0, 1, shifted by ±1/8. Rules: ggml-quants.c, quantize_row_iq1_s_impl and
// quantize_row_iq1_m_impl; layouts: ggml-common.h. See encode_grid.h.
#include <quantry/dispatch.h>

#include "encode_grid_nearest.h"

QUANTRY_BEGIN

constexpr float kShift = 0.125f;

template <class T>
struct TernaryTile : GroupTile<T::kGroup> {
  static constexpr int kRows = T::kGroup / 8;
  alignas(64) int32_t code[kRows][kTile];
  alignas(64) int32_t index[kRows][kTile];
  alignas(64) int32_t minus[kRows][kTile];   // -1: the shift is -1/8
};

// The best division of sorted values into the levels -1 (places below i1), 0 (below i2) and 1.
struct Division {
  Floats scale, best = all(-FLT_MAX);
  Ints i1 = {}, i2 = {}, minus = {};   // bit h: half h is shifted by -1/8
  Ints found = {};

  QUANTRY_INLINE static Ints better(Floats xq, Floats q2, Floats best) { return (q2 > 0.0f) & (xq * xq > best * q2); }
  QUANTRY_INLINE void take(Floats xq, Floats q2, int at1, int at2, int shifts) {
    const Ints yes = better(xq, q2, best);
    const Floats refit = xq / q2;
    scale = pick(yes, refit, scale);
    best = pick(yes, refit * xq, best);
    i1 = yes ? Ints{} + at1 : i1;
    i2 = yes ? Ints{} + at2 : i2;
    minus = yes ? Ints{} + shifts : minus;
    found |= yes;
  }
};

// Each value's place in ascending order; of equal ones the first comes first, as a stable sort has it.
template <int kGroup>
QUANTRY_NOINLINE void rank(const float (&x)[kGroup][kTile], int at, int32_t (&place)[kGroup][kWide]) {
  for (int j = 0; j < kGroup; j++) {
    const Floats mine = read(&x[j][at]);
    Ints p = Ints{} + j;
    for (int i = 0; i < j; i++) {
      const Ints before = mine < read(&x[i][at]);   // true is -1
      p += before;
      write(place[i], read_ints(place[i]) - before);
    }
    write(place[j], p);
  }
}

// weight·x and weight in ascending order of x, summed up; only of elements first … first+count-1.
template <int kGroup>
QUANTRY_NOINLINE void sum_up(const GroupTile<kGroup>& t, int at, const int32_t (&place)[kGroup][kWide], int first, int count,
                             float (&sum_x)[kGroup + 1][kWide], float (&sum_w)[kGroup + 1][kWide]) {
  memset(sum_x, 0, sizeof sum_x);
  memset(sum_w, 0, sizeof sum_w);
  for (int i = first; i < first + count; i++) {
    const Floats w = read(&t.weight[i][at]), wx = w * read(&t.x[i][at]);
    for (int lane = 0; lane < kWide; lane++) {
      sum_x[place[i][lane] + 1][lane] = wx[lane];
      sum_w[place[i][lane] + 1][lane] = w[lane];
    }
  }
  for (int i = 0; i < kGroup; i++) {   // adding the zeros of other elements changes nothing
    write(sum_x[i + 1], read(sum_x[i]) + read(sum_x[i + 1]));
    write(sum_w[i + 1], read(sum_w[i]) + read(sum_w[i + 1]));
  }
}

struct IQ1_S {
  static constexpr int kGroup = 32, kBytes = 50;
  static constexpr float kSigma = 2, kEps = 1e-12f;
  typedef TernaryTile<IQ1_S> Tile;

  QUANTRY_NOINLINE static Division divide(const Tile& t, int at, const int32_t (&place)[kGroup][kWide]) {
    constexpr float kLow[2] = {-1 + kShift, -1 - kShift}, kHigh[2] = {1 + kShift, 1 - kShift};
    alignas(64) float x[kGroup + 1][kWide], w[kGroup + 1][kWide];
    sum_up(t, at, place, 0, kGroup, x, w);
    alignas(64) float above_x[2][kGroup + 1][kWide], above_w[2][kGroup + 1][kWide];   // the part of level 1, by i2
    for (int i = 0; i <= kGroup; i++)
      for (int m = 0; m < 2; m++) {
        write(above_x[m][i], (read(x[kGroup]) - read(x[i])) * kHigh[m]);
        write(above_w[m][i], (read(w[kGroup]) - read(w[i])) * kHigh[m] * kHigh[m]);
      }
    Division d;
    d.scale = Floats{};
    for (int i1 = 0; i1 <= kGroup; i1++) {
      const Floats x1 = read(x[i1]), w1 = read(w[i1]);
      const Floats below_x[2] = {x1 * kLow[0], x1 * kLow[1]};
      const Floats below_w[2] = {w1 * kLow[0] * kLow[0], w1 * kLow[1] * kLow[1]};
      for (int i2 = i1; i2 <= kGroup; i2++) {
        const Floats middle_x = (read(x[i2]) - x1) * kShift, middle_w = (read(w[i2]) - w1) * kShift * kShift;
        const Floats xq0 = below_x[0] + middle_x + read(above_x[0][i2]), q20 = below_w[0] + middle_w + read(above_w[0][i2]);
        const Floats xq1 = below_x[1] - middle_x + read(above_x[1][i2]), q21 = below_w[1] + middle_w + read(above_w[1][i2]);
        if (!anywhere(Division::better(xq0, q20, d.best) | Division::better(xq1, q21, d.best))) continue;
        d.take(xq0, q20, i1, i2, 0);
        d.take(xq1, q21, i1, i2, 3);
      }
    }
    return d;
  }

  // 32 low bytes of indices, then for each group 4 × 3 high bits, the scale and the shift.
  static void finish(const Tile& t, int first, uint8_t* out) {
    float max = 0;
    for (int g = 0; g < 8; g++) max = max > t.scale[first + g] ? max : t.scale[first + g];
    const float d = max / 15, inverse = 1 / d;
    put_half(out, d * 1.125f);
    for (int g = 0; g < 8; g++) {
      uint32_t high = 0;
      for (int k = 0; k < 4; k++) {
        const uint32_t index = static_cast<uint32_t>(t.index[k][first + g]);
        out[2 + 4 * g + k] = static_cast<uint8_t>(index);
        high |= index >> 8 << 3 * k;
      }
      if (max != 0) {
        const int scale = scale_level(inverse, t.scale[first + g], 7) | (t.minus[0][first + g] & 8);
        high |= static_cast<uint32_t>(scale) << 12;
      }
      const uint16_t word = static_cast<uint16_t>(high);
      memcpy(out + 34 + 2 * g, &word, 2);
    }
  }

  static void search(Tile& t, int at, bool weighted, const uint8_t* tables);
};

struct IQ1_M {
  static constexpr int kGroup = 16, kBytes = 56;
  static constexpr float kSigma = 2, kEps = 1e-7f;
  typedef TernaryTile<IQ1_M> Tile;

  QUANTRY_NOINLINE static Division divide(const Tile& t, int at, const int32_t (&place)[kGroup][kWide]) {
    constexpr float kHigh[2] = {1 + kShift, 1 - kShift};
    constexpr float kStep1[2] = {0.75f, 1.25f}, kStep2[2] = {-1.25f, -0.75f};   // of squares from level to level
    alignas(64) float x[2][kGroup + 1][kWide], w[2][kGroup + 1][kWide];   // by half
    alignas(64) float step1[2][2][kGroup + 1][kWide], step2[2][2][kGroup + 1][kWide];   // half, sign of the shift
    Floats all_x[2][2];
    for (int h = 0; h < 2; h++) {
      sum_up(t, at, place, 8 * h, 8, x[h], w[h]);
      for (int m = 0; m < 2; m++) {
        all_x[h][m] = read(x[h][kGroup]) * kHigh[m];
        const Floats all_w = read(w[h][kGroup]) * kHigh[m] * kHigh[m];
        for (int i = 0; i <= kGroup; i++) {
          write(step1[h][m][i], all_w + read(w[h][i]) * kStep1[m]);
          write(step2[h][m][i], read(w[h][i]) * kStep2[m]);
        }
      }
    }
    Division d;
    d.scale = Floats{};
    for (int i1 = 0; i1 <= kGroup; i1++)
      for (int i2 = i1; i2 <= kGroup; i2++) {
        Floats half_x[2][2], half_w[2][2], xq[4], q2[4];
        for (int h = 0; h < 2; h++) {
          const Floats both = read(x[h][i1]) + read(x[h][i2]);
          for (int m = 0; m < 2; m++) {
            half_x[h][m] = all_x[h][m] - both;
            half_w[h][m] = read(step1[h][m][i1]) + read(step2[h][m][i2]);
          }
        }
        Ints better = {};
        for (int k = 0; k < 4; k++) {
          xq[k] = half_x[0][k / 2] + half_x[1][k % 2];
          q2[k] = half_w[0][k / 2] + half_w[1][k % 2];
          better |= Division::better(xq[k], q2[k], d.best);
        }
        if (!anywhere(better)) continue;
        for (int k = 0; k < 4; k++) d.take(xq[k], q2[k], i1, i2, k / 2 | k % 2 << 1);
      }
    return d;
  }

  // 32 low bytes of indices, 32 nibbles of 3 high bits and the shift, four words of four scales and a nibble of d.
  static void finish(const Tile& t, int first, uint8_t* out) {
    memset(out, 0, kBytes);
    float max = 0;
    for (int g = 0; g < 16; g++) max = max > t.scale[first + g] ? max : t.scale[first + g];
    float d = max / 15;
    const float inverse = 1 / d;
    float xq = 0, q2 = 0;
    uint16_t words[4] = {0, 0, 0, 0};
    for (int g = 0; g < 16; g++) {
      const int lane = first + g, scale = scale_level(inverse, t.scale[lane], 7);
      words[g / 4] |= static_cast<uint16_t>(scale << 3 * (g % 4));
      for (int k = 0; k < 2; k++) {
        const int index = t.index[k][lane], minus = t.minus[k][lane];
        out[2 * g + k] = static_cast<uint8_t>(index);
        out[32 + g] |= static_cast<uint8_t>((index >> 8 | (max != 0 ? minus & 8 : 0)) << 4 * k);
        for (int i = 0; i < 8; i++) {
          const int level = t.code[k][lane] >> 2 * i & 3;
          const float w = t.weight[8 * k + i][lane], x = t.x[8 * k + i][lane];
          const float q = (static_cast<float>(level - 1) + (minus ? -kShift : kShift)) * static_cast<float>(2 * scale + 1);
          xq += w * q * x;
          q2 += w * q * q;
        }
      }
    }
    if (max == 0) return;
    if (q2 > 0) d = xq / q2;
    uint8_t half[2];
    put_half(half, d * 1.1125f);
    for (int i = 0; i < 4; i++) words[i] |= static_cast<uint16_t>((half[i / 2] >> 4 * (i % 2) & 15) << 12);
    memcpy(out + 48, words, 8);
  }

  static void search(Tile& t, int at, bool weighted, const uint8_t* tables);
};

// Importance to weights; returns the largest magnitudes.
template <int kGroup>
QUANTRY_INLINE Floats weigh(GroupTile<kGroup>& t, int at, bool weighted) {
  const Floats sigma2 = read(&t.sigma2[at]);
  Floats largest = {};
  for (int i = 0; i < kGroup; i++) {
    const Floats x = read(&t.x[i][at]);
    Floats w = x * x;
    if (weighted) w = read(&t.weight[i][at]) * square_root(sigma2 + w);
    write(&t.weight[i][at], w);
    largest = pick(magnitude(x) > largest, magnitude(x), largest);
  }
  return largest;
}

// Codes of row k: `entry` where its pattern is on the grid, else the neighbour at `scale`. Zero where a lane is not used.
template <class T>
QUANTRY_INLINE void snap(TernaryTile<T>& t, int at, int k, const uint16_t* lists, Ints entry, Ints used, Floats scale) {
  constexpr Levels kPlus = {-1 + kShift, 1}, kMinus = {-1 - kShift, 1};
  write(&t.code[k][at], entry & 0xffff & used);
  for (int lane = at; lane < at + kWide; lane++) {
    const uint32_t e = static_cast<uint32_t>(entry[lane - at]);
    if (!used[lane - at] || e & kOnGrid) continue;
    const RowValues<8> row(&t.x[8 * k], &t.weight[8 * k], lane);
    t.code[k][lane] = nearest_row(lists, e, row, scale[lane - at], t.minus[k][lane] ? kMinus : kPlus);
  }
}

// scale, index, code and shift of the groups in lanes at … at+kWide-1.
template <class T>
QUANTRY_NOINLINE void search_tile(TernaryTile<T>& t, int at, bool weighted, const uint8_t* tables) {
  constexpr int kRows = TernaryTile<T>::kRows;
  const uint32_t* entries = reinterpret_cast<const uint32_t*>(tables);
  const uint16_t* lists = reinterpret_cast<const uint16_t*>(tables + grid_lists_at(6561));
  const Floats largest = weigh(t, at, weighted);
  alignas(64) int32_t place[T::kGroup][kWide];
  rank(t.x, at, place);
  const Division d = T::divide(t, at, place);
  const Ints used = (largest >= T::kEps) & d.found, flip = used & (d.scale < 0.0f);
  Floats scale = pick(flip, -d.scale, d.scale);
  Ints any_off = {};
  Floats xq = {}, q2 = {};
  for (int k = 0; k < kRows; k++) {
    const int half = k * 2 / kRows;   // IQ1_S has one shift for all: both bits are equal
    const Ints minus = (((d.minus >> half & 1) != 0) ^ flip) & used;
    write(&t.minus[k][at], minus);
    Ints pattern = {};
    for (int i = 7; i >= 0; i--) {
      const Ints p = read_ints(place[8 * k + i]);
      const Ints level = -((p >= d.i1) + (p >= d.i2));   // true is -1
      pattern = pattern * 3 + (flip ? 2 - level : level);
    }
    const Ints entry = gather_words(entries, pattern & used);
    any_off |= entry >= 0;
    snap(t, at, k, lists, entry, used, scale);
    const Ints code = read_ints(&t.code[k][at]);
    const Floats shift = pick(minus, all(-kShift), all(kShift));
    pattern = Ints{};
    for (int i = 7; i >= 0; i--) pattern = pattern * 3 + level_at<8>(code, i);
    write(&t.index[k][at], gather_words(entries, pattern) >> 16 & 0x7ff & used);
    for (int i = 0; i < 8; i++) {
      const Floats w = read(&t.weight[8 * k + i][at]);
      const Floats q = to_floats(level_at<8>(code, i) - 1) + shift;
      xq += w * q * read(&t.x[8 * k + i][at]);
      q2 += w * q * q;
    }
  }
  const Ints refit = any_off & (xq > 0.0f) & (q2 > 0.0f);
  scale = pick(refit, xq / q2, scale);
  write(&t.scale[at], pick(used, scale, Floats{}));
}

void IQ1_S::search(Tile& t, int at, bool weighted, const uint8_t* tables) { search_tile(t, at, weighted, tables); }
void IQ1_M::search(Tile& t, int at, bool weighted, const uint8_t* tables) { search_tile(t, at, weighted, tables); }

constexpr TernaryGridOps kTernaryGridOps = {encode_grid<IQ1_S>, encode_grid<IQ1_M>};

QUANTRY_END

QUANTRY_TABLE(TernaryGridOps, quantry_ternary_grid_ops) quantry::QUANTRY_TARGET::kTernaryGridOps;
