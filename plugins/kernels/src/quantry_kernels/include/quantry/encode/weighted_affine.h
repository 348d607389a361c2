// Scale and offset of affine groups by weighted least squares, a group a lane.
//
//   q = clamp(round(place(x)), 0, most)        error = Σ weight · (x − value(q))²
//
// A start is a scale and an offset: the given ones, and those of the group's range with either end moved inward by 0, 1 or 2
// steps. From each, codes and the least-squares line through them take turns; the line of the least error is kept. llama.cpp's
// make_qkx3_quants searches so, from ranges whose upper end moves, with one turn each; here the error is that of the numbers
// as they are stored.
#pragma once
#include "across.h"

QUANTRY_BEGIN

constexpr int kCuts = 3;    // places of either end
constexpr int kTurns = 2;   // lines from each start

// The step of an end, as a share of the range: the wider a code, the more of it importance may cut away.
QUANTRY_INLINE float cut_step(float most) { return 0.2f / __builtin_sqrtf(most); }

struct Line {
  Floats scale, offset, inverse;   // inverse: 1 / scale
};

// A Form says what a line's offset is and how its numbers are stored:
//   static Line stored(Floats scale, Floats bias)      value(q) = q · scale + bias, rounded as it will be read
//   static Floats bias(const Line&)
//   static Floats place(Floats x, const Line&)         the code of x, before it is rounded
//   static Floats value(Floats q, const Line&)
template <class Form, int Group>
QUANTRY_INLINE Floats line_error(const float* x, const float* weight, int stride, float most, Floats total, const Line& line,
                                 Line& next) {
  Floats error = {}, off = {}, tilt = {}, codes = {}, squares = {};
  for (int r = 0; r < Group; r++) {
    const Floats v = read(x + r * stride), w = read(weight + r * stride);
    const Floats t = smaller(larger(Form::place(v, line), Floats{}), all(most));
    const Floats q = (t + 12582912.0f) - 12582912.0f;   // half to even
    const Floats e = v - Form::value(q, line), we = w * e, wq = w * q;
    error += we * e;
    off += we;
    tilt += we * q;
    codes += wq;
    squares += wq * q;
  }
  // Least squares of what is left, e ≈ a · q + b: its rounding errors shrink with the step.
  const Floats det = total * squares - codes * codes;
  const Floats a = (total * tilt - off * codes) / det, b = (squares * off - codes * tilt) / det;
  const Line moved = Form::stored(line.scale + a, Form::bias(line) + b);
  const Ints fits = det > 0.0f;   // else: one code, or no weight
  next = {pick(fits, moved.scale, line.scale), pick(fits, moved.offset, line.offset), pick(fits, moved.inverse, line.inverse)};
  return error;
}

// `line`: the start in, the best line out. Lanes whose weights are all 0, or whose errors overflow, keep theirs; the others
// get theirs as it is stored. Element r of a lane lies at x[r · stride] and weight[r · stride].
template <class Form, int Group>
QUANTRY_NOINLINE void search_line(const float* x, const float* weight, int stride, float most, Line& line) {
  Floats low = read(x), high = low, total = read(weight);
  for (int r = 1; r < Group; r++) {
    const Floats v = read(x + r * stride);
    low = smaller(low, v);
    high = larger(high, v);
    total += read(weight + r * stride);
  }
  Floats least = all(__builtin_inff());
  Line best = line;
  const float step = cut_step(most);
  for (int start = -1; start < kCuts * kCuts; start++) {
    const float below = step * static_cast<float>(start / kCuts), above = step * static_cast<float>(start % kCuts);
    Line now = start < 0 ? Form::stored(line.scale, Form::bias(line))
                         : Form::stored((high - low) * ((1 - below - above) / most), low + (high - low) * below);
    for (int turn = 0; turn <= kTurns; turn++) {
      Line next;
      const Floats error = line_error<Form, Group>(x, weight, stride, most, total, now, next);
      const Ints better = error < least;
      least = pick(better, error, least);
      best = {pick(better, now.scale, best.scale), pick(better, now.offset, best.offset), pick(better, now.inverse, best.inverse)};
      now = next;
    }
  }
  const Ints counts = total > 0.0f;
  line = {pick(counts, best.scale, line.scale), pick(counts, best.offset, line.offset), pick(counts, best.inverse, line.inverse)};
}

QUANTRY_END
