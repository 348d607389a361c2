// HQQ codes of a whole matrix. Two passes: every step of every group, then the codes of the step at which the error of the
// whole matrix stopped falling. With importance, scales and zeros are searched on from that step.
#include "encode.h"

#include <quantry/dispatch.h>
#include <quantry/encode/pack_bits.h>
#include <quantry/encode/rows.h>
#include <quantry/encode/weighted_affine.h>

#include "solver.h"

QUANTRY_BEGIN

constexpr int kChunk = 64;   // groups a thread takes: what is summed in one order, whatever the vectors' width

// A chunk's weights: w[64][kChunk], a group a column, zeros beyond the last. Returns the place of the first NaN or Inf,
// or −1.
template <HqqRule R>
int64_t load_chunk(const HqqJob& job, int64_t first, int count, float* w) {
  const int64_t item = job.dtype == QUANTRY_F32 ? 4 : 2;
  const char* x = static_cast<const char*>(job.x);
  if constexpr (R == HQQ_MISTRALRS) {
    for (int r = 0; r < kGroup; r++) {
      const int64_t at = r * job.groups + first;
      float* row = w + r * kChunk;
      const int64_t wrong = widen_row(job.dtype, x + at * item, count, row);
      if (wrong >= 0) return at + wrong;
      for (int g = count; g < kChunk; g++) row[g] = 0;
    }
  } else {
    alignas(64) float rows[kChunk * kGroup] = {};
    const int64_t wrong = widen_row(job.dtype, x + first * kGroup * item, int64_t(count) * kGroup, rows);
    if (wrong >= 0) return first * kGroup + wrong;
    for (int r = 0; r < kGroup; r++)
      for (int g = 0; g < kChunk; g++) w[r * kChunk + g] = rows[g * kGroup + r];
  }
  return -1;
}

struct History {
  int64_t groups, chunks;
  float* scales;    // [groups]
  float* zeros;     // [step][groups]
  double* errors;   // [step][chunks]
};

template <HqqRule R>
void solve_chunk(const float* w, int bits, int64_t chunk, int count, const History& h) {
  constexpr int steps = Rule<R>::kSteps;
  double errors[steps] = {};
  for (int g = 0; g < count; g += kWide) {
    Floats scale, zero[steps], error[steps];
    solve<R>(w + g, kChunk, bits, &scale, zero, error);
    const int here = count - g < kWide ? count - g : kWide;
    const int64_t at = chunk * kChunk + g;
    for (int lane = 0; lane < here; lane++) h.scales[at + lane] = scale[lane];
    for (int step = 0; step < steps; step++) {
      for (int lane = 0; lane < here; lane++) {
        h.zeros[step * h.groups + at + lane] = zero[step][lane];
        errors[step] += static_cast<double>(error[step][lane]);
      }
    }
  }
  for (int step = 0; step < steps; step++) h.errors[step * h.chunks + chunk] = errors[step];
}

// The step at which the reference stops: the first whose mean error is not below the best one so far.
template <HqqRule R>
int last_step(const History& h) {
  float best = Rule<R>::first_best();
  for (int step = 0; step < Rule<R>::kSteps; step++) {
    double sum = 0;
    for (int64_t c = 0; c < h.chunks; c++) sum += h.errors[step * h.chunks + c];
    const float error = static_cast<float>(sum / static_cast<double>(h.groups * kGroup));
    if (!(error < best)) return step;
    best = error;
  }
  return Rule<R>::kSteps - 1;
}

// The importance of a chunk's weights, in their order; 0 beyond the last group.
template <HqqRule R>
QUANTRY_INLINE void load_importance(const HqqJob& job, int64_t first, int count, float* weight) {
  memset(weight, 0, sizeof(float) * kGroup * kChunk);
  if constexpr (R == HQQ_MISTRALRS) {
    for (int r = 0; r < kGroup; r++) {
      int64_t column = (r * job.groups + first) % job.columns;
      for (int g = 0; g < count; g++) {
        weight[r * kChunk + g] = job.importance[column];
        if (++column == job.columns) column = 0;
      }
    }
  } else {
    for (int g = 0; g < count; g++) {
      const float* from = job.importance + (first + g) * kGroup % job.columns;
      for (int r = 0; r < kGroup; r++) weight[r * kChunk + g] = from[r];
    }
  }
}

// What HqqJob holds of a group: the scale is read as the inverse of its inverse.
struct ScaleAndZero {
  QUANTRY_INLINE static Line stored(Floats scale, Floats bias) {
    const Floats inverse = 1.0f / scale;
    return {1.0f / inverse, -bias * inverse, inverse};
  }
  QUANTRY_INLINE static Floats bias(const Line& line) { return -line.offset * line.scale; }
  QUANTRY_INLINE static Floats place(Floats x, const Line& line) { return x * line.inverse + line.offset; }
  QUANTRY_INLINE static Floats value(Floats q, const Line& line) { return (q - line.offset) * line.scale; }
};

template <HqqRule R>
QUANTRY_NOINLINE void fit_weighted(const HqqJob& job, const float* w, int bits, int64_t first, int count, float* inverses,
                                   float* zeros) {
  alignas(64) float weight[kGroup * kChunk], s[kChunk] = {}, z[kChunk] = {};
  load_importance<R>(job, first, count, weight);
  memcpy(s, inverses + first, static_cast<size_t>(count) * 4);
  memcpy(z, zeros + first, static_cast<size_t>(count) * 4);
  for (int g = 0; g < count; g += kWide) {
    Line line{1.0f / read(s + g), read(z + g), read(s + g)};
    search_line<ScaleAndZero, kGroup>(w + g, weight + g, kChunk, static_cast<float>((1 << bits) - 1), line);
    write(s + g, line.inverse);
    write(z + g, line.offset);
  }
  memcpy(inverses + first, s, static_cast<size_t>(count) * 4);
  memcpy(zeros + first, z, static_cast<size_t>(count) * 4);
}

inline bool finite(float x) { return (bits_of(x) & 0x7f800000u) != 0x7f800000u; }

// Codes, scales and zeros of a chunk. Returns the first group whose numbers are not finite, or −1.
template <HqqRule R, int Bits>
QUANTRY_NOINLINE int code_chunk(const float* w, int64_t first, int count, const float* scales, const float* zeros,
                                const HqqJob& job) {
  constexpr float most = (1 << Bits) - 1;
  alignas(64) uint8_t by_row[kGroup * kChunk], by_group[kChunk * kGroup];
  alignas(64) float s[kChunk] = {}, z[kChunk] = {};
  memcpy(s, scales + first, static_cast<size_t>(count) * 4);
  memcpy(z, zeros + first, static_cast<size_t>(count) * 4);
  for (int r = 0; r < kGroup; r++) {
    for (int g = 0; g < kChunk; g += kWide) {
      Floats u = read(w + r * kChunk + g) * read(s + g) + read(z + g);
      u = pick(u > 0.0f, u, Floats{});
      u = Rule<R>::round(pick(u < most, u, all(most)));
      const Bytes q = __builtin_convertvector(__builtin_convertvector(u, Ints), Bytes);
      memcpy(by_row + r * kChunk + g, &q, sizeof q);
    }
  }
  int wrong = -1;
  for (int g = count - 1; g >= 0; g--) {
    for (int r = 0; r < kGroup; r++) by_group[g * kGroup + r] = by_row[r * kChunk + g];
    const float scale = 1.0f / s[g];
    job.scales[first + g] = scale;
    job.zeros[first + g] = z[g];
    if (!finite(scale) || !finite(z[g]) || !finite((0 - z[g]) * scale) || !finite((most - z[g]) * scale)) wrong = g;
  }
  pack_bits<Bits>(by_group, int64_t(count) * kGroup, job.codes + first * (kGroup / 8) * Bits);
  return wrong;
}

template <HqqRule R>
int64_t largest_of(const HqqJob& job, const float* w, int64_t first, int g) {
  int at = 0;
  for (int r = 1; r < kGroup; r++)
    if (magnitude(w[r * kChunk + g]) > magnitude(w[at * kChunk + g])) at = r;
  return R == HQQ_MISTRALRS ? at * job.groups + first + g : (first + g) * kGroup + at;
}

template <HqqRule R, int Bits>
int encode_groups(const HqqJob& job) {
  constexpr int steps = Rule<R>::kSteps;
  const int64_t groups = job.groups, chunks = (groups + kChunk - 1) / kChunk;
  const size_t numbers = static_cast<size_t>(groups) * (1 + steps), sums = static_cast<size_t>(chunks) * steps;
  void* space = malloc(sums * sizeof(double) + numbers * sizeof(float));
  if (!space) return QUANTRY_BAD_SCRATCH;
  double* errors = static_cast<double*>(space);
  float* scales = reinterpret_cast<float*>(errors + sums);
  const History h{groups, chunks, scales, scales + groups, errors};
  const int threads = job.threads < 1 ? 1 : job.threads;
  auto size_of = [=](int64_t chunk) {
    return static_cast<int>(groups - chunk * kChunk < kChunk ? groups - chunk * kChunk : kChunk);
  };
  int64_t bad = INT64_MAX, beyond = INT64_MAX;
#pragma omp parallel for schedule(dynamic, 4) num_threads(threads) if (threads > 1 && chunks > 4)
  for (int64_t chunk = 0; chunk < chunks; chunk++) {
    alignas(64) float w[kGroup * kChunk];
    const int64_t wrong = load_chunk<R>(job, chunk * kChunk, size_of(chunk), w);
    if (wrong < 0) {
      solve_chunk<R>(w, Bits, chunk, size_of(chunk), h);
      continue;
    }
#pragma omp critical(quantry_hqq_bad)
    bad = wrong < bad ? wrong : bad;
  }
  if (bad == INT64_MAX) {
    float* zeros = h.zeros + last_step<R>(h) * groups;
#pragma omp parallel for schedule(dynamic, 4) num_threads(threads) if (threads > 1 && chunks > 4)
    for (int64_t chunk = 0; chunk < chunks; chunk++) {
      alignas(64) float w[kGroup * kChunk];
      load_chunk<R>(job, chunk * kChunk, size_of(chunk), w);
      if (job.importance) fit_weighted<R>(job, w, Bits, chunk * kChunk, size_of(chunk), h.scales, zeros);
      const int wrong = code_chunk<R, Bits>(w, chunk * kChunk, size_of(chunk), h.scales, zeros, job);
      if (wrong < 0) continue;
      const int64_t at = largest_of<R>(job, w, chunk * kChunk, wrong);
#pragma omp critical(quantry_hqq_bad)
      beyond = at < beyond ? at : beyond;
    }
  }
  if (bad != INT64_MAX) *job.bad = bad;
  if (beyond != INT64_MAX) *job.beyond = beyond;
  free(space);
  return QUANTRY_OK;
}

int encode(HqqRule rule, int bits, const HqqJob& job) {
  if (rule == HQQ_MISTRALRS) {
    if (bits == 4) return encode_groups<HQQ_MISTRALRS, 4>(job);
    if (bits == 8) return encode_groups<HQQ_MISTRALRS, 8>(job);
    return QUANTRY_BAD_TYPE;
  }
  switch (bits) {
    case 1: return encode_groups<HQQ_PACKAGE, 1>(job);
    case 2: return encode_groups<HQQ_PACKAGE, 2>(job);
    case 3: return encode_groups<HQQ_PACKAGE, 3>(job);
    case 4: return encode_groups<HQQ_PACKAGE, 4>(job);
    case 8: return encode_groups<HQQ_PACKAGE, 8>(job);
    default: return QUANTRY_BAD_TYPE;
  }
}

QUANTRY_END

QUANTRY_TABLE(HqqOps, quantry_hqq_encode_ops) { quantry::QUANTRY_TARGET::encode };
