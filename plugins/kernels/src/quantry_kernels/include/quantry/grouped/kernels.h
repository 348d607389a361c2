// The kernels of the grouped families for one target. A KERNELS source of a plugin:
//
//   #include <quantry/grouped/kernels.h>
//   QUANTRY_GROUPED_KERNELS(quantry_gptq, affine, AffineCodes<2>, AffineCodes<3>, AffineCodes<4>, AffineCodes<8>)
//
// names a table of the plugin and the code families (codes.h) in it; several sources, each with its own table, compile in
// parallel. entry.h exports the C functions.
#pragma once
#include "../backward.h"
#include "../dispatch.h"
#include "../experts.h"
#include "in_mode.h"
#include "ops.h"
#include "rows.h"

QUANTRY_BEGIN

template <class... Families>
struct GroupedKernels {
  // Calls body(source) for the weight's family.
  template <class Body>
  QUANTRY_INLINE static void with_source(const QuantryGrouped& w, Body&& body) {
    (void)(... || with_codes<Families>(w, body));
  }
  template <class C, class Body>
  QUANTRY_INLINE static bool with_codes(const QuantryGrouped& g, Body& body) {
    if (!C::serves(g)) return false;
    const GroupedWeight w(g);
    if constexpr (kOnlyMode<C> >= 0) {
      body(GroupedSource<C, kOnlyMode<C>>(w));
    } else if (C::kAffine && g.axis_out) {
      if constexpr (C::kAffine) body(GroupedSource<C, kOut>(w));
    } else if (w.unit() < kChunk) {
      body(GroupedSource<C, kHalf>(w));
    } else {
      body(GroupedSource<C, kWhole>(w));
    }
    return true;
  }
  // Calls body(source, Const<mode>), mode: Activations (linear.h).
  template <class Body>
  QUANTRY_INLINE static void with_numerics(const QuantryGrouped& w, int dtype, Body&& body) {
    with_source(w, [&](const auto& source) {
      with_mode<Plain<decltype(source)>>(w.exact, dtype, [&](auto mode) { body(source, mode); });
    });
  }

  static int serves(const QuantryGrouped* w) { return (... || Families::serves(*w)); }

  static int64_t linear_scratch(const QuantryGrouped* w, int64_t m, int threads) {
    int64_t bytes = 0;
    with_numerics(*w, QUANTRY_F32, [&](const auto& source, auto mode) {   // no dtype needs more
      bytes = quantry::QUANTRY_TARGET::linear_scratch<Plain<decltype(source)>, mode>(source, m, threads);
    });
    return bytes;
  }

  static LinearArgs args_of(const QuantryGrouped& w, const GroupedCall& c, void* scratch) {
    return {{c.x, c.m, w.columns, c.stride, c.dtype},
            {c.y, w.rows, c.bias, c.dtype, nullptr, GroupedWeight(w).row_order()},
            static_cast<char*>(scratch)};
  }

  static void linear(const QuantryGrouped* w, const GroupedCall* c, int id, int count, void* scratch) {
    const LinearArgs a = args_of(*w, *c, scratch);
    with_numerics(*w, c->dtype, [&](const auto& source, auto mode) {
      linear_team<Plain<decltype(source)>, mode>(source, a, Team{id, count});
    });
  }

  static int64_t experts_scratch(const QuantryGrouped* w, int64_t experts, int64_t pairs, int threads) {
    int64_t bytes = 0;
    with_numerics(*w, QUANTRY_F32, [&](const auto& source, auto mode) {   // no dtype needs more
      bytes = quantry::QUANTRY_TARGET::experts_scratch<Plain<decltype(source)>, mode>(source, pairs, experts, threads);
    });
    return bytes;
  }

  static void experts(const QuantryGrouped* w, const GroupedExperts* e, const GroupedCall* c, int threads, void* scratch) {
    const LinearArgs a = args_of(*w, *c, scratch);
    const ExpertsArgs args{a.x, e->ids, e->tokens * e->slots, e->slots, e->shared != 0, e->experts, a.out, a.scratch};
    with_numerics(*w, c->dtype, [&](const auto& source, auto mode) {
      using S = Plain<decltype(source)>;
      auto expert = [&](int64_t index) { return S(source.w.expert(index)); };
      quantry::QUANTRY_TARGET::experts<S, mode>(expert, args, threads);
    });
  }

  static int64_t dx_scratch(const QuantryGrouped* w, int64_t m, int threads) {
    return backward_scratch(m, w->rows, threads);
  }

  static void dx(const QuantryGrouped* w, const GroupedCall* c, int threads, void* scratch) {
    const GroupedWeight weight(*w);
    const BackwardArgs a{{c->x, c->m, w->rows, c->stride, c->dtype},
                         {c->y, w->columns, nullptr, c->dtype, nullptr, weight.column_order()},
                         static_cast<char*>(scratch), weight.row_order()};
    with_source(*w, [&](const auto& source) { linear_dx(source, a, threads); });
  }

  static void embedding(const QuantryGrouped* w, int dtype, const int64_t* ids, int64_t count, void* y, int threads) {
    with_source(*w, [&](const auto& source) { embedding_rows(source, dtype, ids, count, y, threads); });
  }
};

QUANTRY_END

#define QUANTRY_GROUPED_KERNELS(prefix, name, ...)                                                                  \
  using namespace quantry::QUANTRY_TARGET;                                                                          \
  QUANTRY_TABLE(GroupedOps, prefix##_##name##_ops) {                                                                \
    GroupedKernels<__VA_ARGS__>::serves, GroupedKernels<__VA_ARGS__>::linear_scratch,                               \
        GroupedKernels<__VA_ARGS__>::linear, GroupedKernels<__VA_ARGS__>::experts_scratch,                          \
        GroupedKernels<__VA_ARGS__>::experts, GroupedKernels<__VA_ARGS__>::dx_scratch,                              \
        GroupedKernels<__VA_ARGS__>::dx, GroupedKernels<__VA_ARGS__>::embedding,                                    \
  };
