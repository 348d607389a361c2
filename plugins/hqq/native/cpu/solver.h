// Half-quadratic quantization (mobiusml/hqq, core/optimize.py, and mistral.rs, hqq/optimize.rs): the zero of a group of 64
// weights is moved, step by step, to where the p-norm of the error falls; the scale stays. A lane is a group: the sums of a
// group run in the reference's order on every target.
//
//   q = clamp(round(w·s + z), 0, 2^bits − 1)     r = (q − z) / s     e = w − r
//   v = sign(e) · max(|e| − |e|^(p−1) / β, 0)    z = mean(q − (w − v)·s)
#pragma once
#include <quantry/encode/lanes.h>

#include "encode.h"

QUANTRY_BEGIN

constexpr int kMostSteps = 20;
constexpr float kMostScale = 2e4f;
// |e|^(p−1) / β exceeds |e| below 0.159, for the largest β of either rule: v is exactly 0.
constexpr float kQuiet = 0.15f;

template <HqqRule R>
struct Rule;

template <>
struct Rule<HQQ_MISTRALRS> {
  static constexpr int kSteps = 10;
  static constexpr double kKappa = 1.01;
  static float first_best() { return 1e4f; }
  QUANTRY_INLINE static Floats round(Floats t) {   // t >= 0: half up is half away from zero
    const Floats whole = to_floats(__builtin_convertvector(t, Ints));
    return pick(t - whole >= 0.5f, whole + 1.0f, whole);
  }
  QUANTRY_INLINE static Floats scale(Floats range, float most) {   // of equal weights: Inf, then the bound
    const Floats s = (1.0f / range) * most;
    return pick(s < kMostScale, s, all(kMostScale));
  }
  QUANTRY_INLINE static Floats first_zero(Floats z, int) { return z; }
  template <class Term>
  QUANTRY_INLINE static Floats mean(Term&& term) {
    Floats sum = {};
    for (int r = 0; r < kGroup; r++) sum += term(r);
    return sum * (1.0f / kGroup);
  }
};

template <>
struct Rule<HQQ_PACKAGE> {
  static constexpr int kSteps = kMostSteps;
  static constexpr double kKappa = 1;   // the package's default solver does not apply it
  static float first_best() { return __builtin_inff(); }
  QUANTRY_INLINE static Floats round(Floats t) { return (t + 12582912.0f) - 12582912.0f; }   // half to even
  QUANTRY_INLINE static Floats scale(Floats range, float most) {
    const Floats s = pick(range <= 1e-4f, all(1.0f), (1.0f / range) * most);
    return pick(s < kMostScale, s, all(kMostScale));
  }
  QUANTRY_INLINE static Floats first_zero(Floats z, int bits) {
    const Floats size = magnitude(z), whole = (size + 0x1p23f) - 0x1p23f;   // half to even; above, z is whole already
    return bits == 4 ? pick(size < 0x1p23f, (Floats)((Ints)whole | ((Ints)z & INT32_MIN)), z) : z;
  }
  // torch.mean over 64 neighbours: eight running sums of each second four blocks of eight, then those in order.
  template <class Term>
  QUANTRY_INLINE static Floats mean(Term&& term) {
    Floats sum = {};
    for (int i = 0; i < 8; i++) {
      Floats part = term(i) + term(i + 32);
      for (int r = i + 8; r < 32; r += 8) part += term(r) + term(r + 32);
      sum += part;
    }
    return sum * (1.0f / kGroup);
  }
};

// Natural logarithm and exponential to double accuracy: rounded to f32 they are the nearest one but for one case in 10^7.
inline double log_of(float x) {   // x > 0
  int shift = 0;
  if (x < 0x1p-126f) x *= 0x1p32f, shift = 32;
  const uint32_t bits = bits_of(x);
  int exponent = static_cast<int>(bits >> 23) - 127 - shift;
  double m = float_of((bits & 0x7fffff) | 0x3f800000);
  if (m > 1.4142135623730951) m *= 0.5, exponent++;
  const double z = (m - 1) / (m + 1), square = z * z;
  double sum = 0;
  for (int k = 21; k >= 1; k -= 2) sum = sum * square + 1.0 / k;
  return exponent * 0.6931471805599453 + 2 * z * sum;
}

inline double exp_of(double x) {   // |x| < 40, as |e|^(p-1) needs
  const double n = static_cast<double>(static_cast<int>(x * 1.4426950408889634 + (x < 0 ? -0.5 : 0.5)));
  const double r = x - n * 0.6931471805599453;
  double sum = 1;
  for (int k = 14; k >= 1; k--) sum = 1 + sum * r / k;
  for (int i = static_cast<int>(n); i > 0; i--) sum *= 2;
  for (int i = static_cast<int>(n); i < 0; i++) sum *= 0.5;
  return sum;
}

// v of one error. mistral.rs takes |e|^(p-1) as exp((p-1) ln|e|), each in f32; torch's pow is the nearest float but for a
// unit.
template <HqqRule R>
QUANTRY_NOINLINE float shrunk(float e, float by) {
  const float size = magnitude(e);
  if (!(size > kQuiet) || size > 3.4e38f) return 0;
  constexpr float power = R == HQQ_MISTRALRS ? 0.7f - 1.0f : -0.3f;
  const double log = log_of(size);
  const double x = R == HQQ_MISTRALRS ? static_cast<double>(power * static_cast<float>(log)) : power * log;
  const float rest = size - by * static_cast<float>(exp_of(x));
  return rest > 0 ? (e < 0 ? -rest : rest) : 0;
}

// kWide groups: weights w[64] of `stride` floats. zeros[step]: what a stop at that step leaves; errors[step]: Σ|e| of each.
template <HqqRule R>
QUANTRY_NOINLINE void solve(const float* w, int stride, int bits, Floats* scale, Floats* zeros, Floats* errors) {
  using Here = Rule<R>;
  Floats low = read(w), high = low;
  for (int r = 1; r < kGroup; r++) {
    const Floats x = read(w + r * stride);
    low = pick(x < low, x, low);
    high = pick(x > high, x, high);
  }
  const float most = static_cast<float>((1 << bits) - 1);
  const Floats s = Here::scale(high - low, most);
  Floats z = Here::first_zero(-low * s, bits);
  *scale = s;
  double beta = 10;
  for (int step = 0; step < Here::kSteps; step++, beta *= Here::kKappa) {
    const float by = static_cast<float>(1 / beta);
    Floats sum = {}, worst = {};
    auto term = [&](int r, auto&& wanted) QUANTRY_LAMBDA {
      const Floats x = read(w + r * stride), t = x * s;
      Floats u = t + z;
      u = pick(u > 0.0f, u, Floats{});
      const Floats q = Here::round(pick(u < most, u, all(most)));
      const Floats e = x - (q - z) / s, size = magnitude(e);
      sum += size;
      worst = pick(size > worst, size, worst);
      return wanted(x, t, q, e);
    };
    Floats next = Here::mean([&](int r) QUANTRY_LAMBDA {
      return term(r, [](Floats, Floats t, Floats q, Floats) QUANTRY_LAMBDA { return q - t; });
    });
    bool quiet = true;
    for (int lane = 0; lane < kWide; lane++) quiet &= worst[lane] <= kQuiet;
    if (!quiet) {
      sum = Floats{};
      next = Here::mean([&](int r) QUANTRY_LAMBDA {
        return term(r, [&](Floats x, Floats, Floats q, Floats e) QUANTRY_LAMBDA {
          Floats v = {};
          for (int lane = 0; lane < kWide; lane++) v[lane] = shrunk<R>(e[lane], by);
          return q - (x - v) * s;
        });
      });
    }
    errors[step] = sum;
    zeros[step] = next;
    int same = -1;
    const Ints equal = (Ints)next == (Ints)z;
    for (int lane = 0; lane < kWide; lane++) same &= equal[lane];
    z = next;
    if (quiet && same) {   // all further steps would be this one
      for (int rest = step + 1; rest < Here::kSteps; rest++) errors[rest] = sum, zeros[rest] = next;
      return;
    }
  }
}

QUANTRY_END
