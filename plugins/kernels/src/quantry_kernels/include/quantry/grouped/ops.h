// What the kernels of one group of code families offer for one target, as a table of pointers. Arguments were checked.
#pragma once
#include "abi.h"

struct GroupedCall {   // y[m, N] = x[m, K] · Wᵀ + bias; x: stride in elements
  int dtype;
  int64_t m;
  const void* x;
  int64_t stride;
  const float* bias;
  void* y;
};

struct GroupedExperts {   // y[t, slot, N] = x · W[ids[t, slot]]ᵀ + bias[id]
  int64_t experts, tokens, slots;
  int shared;             // one row of x for all slots of a token
  const int64_t* ids;
};

struct GroupedOps {
  int (*serves)(const QuantryGrouped*);
  int64_t (*linear_scratch)(const QuantryGrouped*, int64_t m, int threads);
  // The share of thread `id` of a team of `count`; with several all of them call it, it may pass barriers.
  void (*linear)(const QuantryGrouped*, const GroupedCall*, int id, int count, void* scratch);
  int64_t (*experts_scratch)(const QuantryGrouped*, int64_t experts, int64_t pairs, int threads);
  void (*experts)(const QuantryGrouped*, const GroupedExperts*, const GroupedCall*, int threads, void* scratch);
  int64_t (*dx_scratch)(const QuantryGrouped*, int64_t m, int threads);
  // call->x is dy [m, N], call->y is dx [m, K]
  void (*dx)(const QuantryGrouped*, const GroupedCall*, int threads, void* scratch);
  // y[i] = W[ids[i]]; ids are in range
  void (*embedding)(const QuantryGrouped*, int dtype, const int64_t* ids, int64_t count, void* y, int threads);
};
