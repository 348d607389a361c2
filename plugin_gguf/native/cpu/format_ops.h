// The functions of one block type for one instruction set, and the table that a source with several types ends in.
//
// A source of types (panels_*.cpp, rows_*.cpp) is QUANTRY_FORMATS(name, sources of quantry/linear.h …); gguf.cpp looks types
// up in all of them. Several sources, so that none takes minutes to compile.
#pragma once
#include <quantry/backward.h>
#include <quantry/dispatch.h>
#include <quantry/experts.h>
#include <quantry/ggml/repack.h>
#include <quantry/ggml/rows.h>

#include "ops.h"

struct FormatOps {
  int type;
  void (*pack)(int64_t batch, int64_t rows, int64_t columns, const void* blocks, void* codes, void* high, void* meta,
               int threads);   // null for types that stay in file order
  void (*unpack)(int64_t batch, int64_t rows, int64_t columns, void* blocks, const void* codes, const void* high,
                 const void* meta, int threads);
  int64_t (*linear_scratch)(const QuantryBoundLinear& w, int64_t m, int threads);
  // The share of thread `id` of a team of `count`, all of which call this inside one parallel region.
  void (*linear_share)(const QuantryBoundLinear& w, int dtype, int64_t m, const void* x, int64_t stride, const float* bias,
                       void* y, int id, int count, void* scratch);
  int64_t (*experts_scratch)(const QuantryBoundLinear& w, int64_t count, int64_t pairs, int threads);
  void (*experts)(const QuantryBoundLinear& w, int64_t count, int dtype, int64_t tokens, int64_t slots, int shared,
                  const void* x, int64_t stride, const int64_t* ids, const float* bias, void* y, int threads,
                  void* scratch);
  void (*linear_dx)(const QuantryBoundLinear& w, int dtype, int64_t m, const void* dy, int64_t stride, void* dx, int threads,
                    void* scratch);
  int (*embedding)(int dtype, const int64_t* ids, int64_t count, int64_t rows, int64_t columns, const void* blocks,
                   const void* codes, const void* high, const void* meta, void* y, int threads);
};

struct FormatList {
  const FormatOps* ops;
  int count;
};

QUANTRY_BEGIN

template <class S>
QUANTRY_INLINE S source_of(const QuantryBoundLinear& w) {
  return S::of({static_cast<const uint8_t*>(w.codes), static_cast<const uint8_t*>(w.high), static_cast<const uint8_t*>(w.meta)},
               w.rows, w.columns);
}

template <class S>
int64_t scratch_of_linear(const QuantryBoundLinear& w, int64_t m, int threads) {
  const S source = source_of<S>(w);
  return w.exact ? linear_scratch<S, kWidened>(source, m, threads) : linear_scratch<S, kRounded>(source, m, threads);
}

template <class S>
void share_of_linear(const QuantryBoundLinear& w, int dtype, int64_t m, const void* x, int64_t stride, const float* bias,
                     void* y, int id, int count, void* scratch) {
  LinearArgs a{{x, m, w.columns, stride, dtype}, {y, w.rows, bias, dtype}, static_cast<char*>(scratch)};
  with_mode<S>(w.exact, dtype, [&](auto mode) { linear_team<S, mode>(source_of<S>(w), a, Team{id, count}); });
}

template <class S>
int64_t scratch_of_experts(const QuantryBoundLinear& w, int64_t count, int64_t pairs, int threads) {
  const S source = source_of<S>(w);
  return w.exact ? experts_scratch<S, kWidened>(source, pairs, count, threads)
                 : experts_scratch<S, kRounded>(source, pairs, count, threads);
}

template <class S>
void run_experts(const QuantryBoundLinear& w, int64_t count, int dtype, int64_t tokens, int64_t slots, int shared,
                 const void* x, int64_t stride, const int64_t* ids, const float* bias, void* y, int threads, void* scratch) {
  const int64_t pairs = tokens * slots;
  ExpertsArgs a{{x, shared ? tokens : pairs, w.columns, stride, dtype}, ids, pairs, slots, shared != 0, count,
                {y, w.rows, bias, dtype}, static_cast<char*>(scratch)};
  const S first = source_of<S>(w);
  with_mode<S>(w.exact, dtype, [&](auto mode) { experts<S, mode>([&](int64_t e) { return first.matrix(e); }, a, threads); });
}

template <class S>
void run_linear_dx(const QuantryBoundLinear& w, int dtype, int64_t m, const void* dy, int64_t stride, void* dx, int threads,
                   void* scratch) {
  linear_dx(source_of<S>(w), {{dy, m, w.rows, stride, dtype}, {dx, w.columns, nullptr, dtype}, static_cast<char*>(scratch)},
            threads);
}

template <class S>
int run_embedding(int dtype, const int64_t* ids, int64_t count, int64_t rows, int64_t columns, const void* blocks,
                  const void* codes, const void* high, const void* meta, void* y, int threads) {
  EmbeddingArgs a{ids, count, rows, columns, static_cast<const uint8_t*>(blocks),
                  {static_cast<const uint8_t*>(codes), static_cast<const uint8_t*>(high), static_cast<const uint8_t*>(meta)},
                  y, dtype, threads};
  return S::embedding(a) ? QUANTRY_OK : QUANTRY_BAD_INDEX;
}

template <class F>
void pack(int64_t batch, int64_t rows, int64_t columns, const void* blocks, void* codes, void* high, void* meta, int threads) {
  pack_panels<F>({batch, rows, columns, static_cast<uint8_t*>(const_cast<void*>(blocks)), static_cast<uint8_t*>(codes),
                  static_cast<uint8_t*>(high), static_cast<uint8_t*>(meta), threads});
}

template <class F>
void unpack(int64_t batch, int64_t rows, int64_t columns, void* blocks, const void* codes, const void* high, const void* meta,
            int threads) {
  unpack_panels<F>({batch, rows, columns, static_cast<uint8_t*>(blocks), static_cast<uint8_t*>(const_cast<void*>(codes)),
                    static_cast<uint8_t*>(const_cast<void*>(high)), static_cast<uint8_t*>(const_cast<void*>(meta)), threads});
}

template <class S>
constexpr FormatOps ops_of() {
  FormatOps ops{S::kType, nullptr, nullptr, scratch_of_linear<S>, share_of_linear<S>, scratch_of_experts<S>, run_experts<S>,
                run_linear_dx<S>, run_embedding<S>};
  if constexpr (S::kPanels) ops.pack = pack<typename S::Format>, ops.unpack = unpack<typename S::Format>;
  return ops;
}

template <class... S>
struct FormatTable {
  static constexpr FormatOps kOps[] = {ops_of<S>()...};
  static constexpr FormatList kList = {kOps, sizeof...(S)};
};

QUANTRY_END

#define QUANTRY_FORMATS(name, ...)                                                     \
  QUANTRY_TABLE(FormatList, name) quantry::QUANTRY_TARGET::FormatTable<__VA_ARGS__>::kList
