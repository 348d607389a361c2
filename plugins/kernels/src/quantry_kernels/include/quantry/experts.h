// y[T, k, N] = x[T, 1|k, K] · W[id[t, j]]ᵀ (+ bias[id]) for a stack of E packed matrices of one shape.
//
// (token, slot) pairs are put in the order of their expert by a counting sort, stable, so that each expert sees its rows
// once; rows are gathered while x is prepared and scattered when results are stored. All threads work on each expert: at one
// token a few experts hold all the work.
#pragma once
#include "linear.h"

QUANTRY_BEGIN

struct ExpertsArgs {
  Matrix x;              // [T or T·k rows, K]
  const int64_t* ids;    // [T·k], checked
  int64_t pairs, slots;  // T·k, k
  bool shared;           // one row of x for all slots of a token
  int64_t experts;       // E
  Output out;            // [T·k, N]; bias [E, N] or null
  char* scratch;         // experts_index_bytes(), then linear scratch for `pairs` rows
};

// order[pairs], source row of each, first pair of each expert and one past the last.
QUANTRY_INLINE int64_t experts_index_bytes(int64_t pairs, int64_t experts) { return round_up((2 * pairs + experts + 1) * 8, 64); }

// pairs of expert e: order[first[e] … first[e+1]), x rows beside them.
inline void sort_by_expert(const ExpertsArgs& a, int64_t* order, int64_t* rows, int64_t* first) {
  memset(first, 0, static_cast<size_t>(a.experts + 1) * 8);
  for (int64_t i = 0; i < a.pairs; ++i) ++first[a.ids[i] + 1];
  for (int64_t e = 0; e < a.experts; ++e) first[e + 1] += first[e];
  for (int64_t i = 0; i < a.pairs; ++i) {
    int64_t at = first[a.ids[i]]++;
    order[at] = i;
    rows[at] = a.shared ? i / a.slots : i;
  }
  for (int64_t e = a.experts; e > 0; --e) first[e] = first[e - 1];   // the sort moved each start to the next one
  first[0] = 0;
}

// source(e): the weight of expert e.
template <class S, int M, class SourceOf>
void experts(const SourceOf& source, const ExpertsArgs& a, int threads) {
  if (a.pairs == 0 || a.experts == 0) return;
  int64_t* order = reinterpret_cast<int64_t*>(a.scratch);
  int64_t* rows = order + a.pairs;
  int64_t* first = rows + a.pairs;
  sort_by_expert(a, order, rows, first);
  char* scratch = a.scratch + experts_index_bytes(a.pairs, a.experts);
  parallel(useful_threads(source(0).bytes() * a.pairs, threads), [&](Team team) {
    for (int64_t e = 0; e < a.experts; ++e) {
      const int64_t begin = first[e], count = first[e + 1] - begin;
      if (count == 0) continue;
      LinearArgs args{a.x, a.out, scratch};
      args.x.rows = count, args.x.index = rows + begin;
      args.out.index = order + begin;
      if (args.out.bias) args.out.bias += e * a.out.columns;
      const S w = source(e);
      linear_team<S, M>(w, args, team);
      if (!on_stack<S, M>(w, count)) team.barrier();   // the next expert uses the same scratch
    }
  });
}

template <class S, int M>
QUANTRY_INLINE int64_t experts_scratch(const S& w, int64_t pairs, int64_t count, int threads) {
  return experts_index_bytes(pairs, count) + linear_scratch<S, M>(w, pairs, threads);   // no expert has more rows
}

QUANTRY_END
