// One parallel region a call, on the OpenMP runtime that torch uses. Work is split into contiguous static ranges, each
// output is computed by one thread in a fixed order: results do not depend on the number of threads.
#pragma once
#include "target.h"

QUANTRY_BEGIN

constexpr int64_t kSerialBytes = 100 * 1024;      // below this, fork and join cost more than a second core saves
constexpr int64_t kBytesPerThread = 64 * 1024;

// Threads worth starting for `bytes` of weights read once a row tile, at most `most`.
QUANTRY_INLINE int useful_threads(int64_t bytes, int most) {
  if (bytes < kSerialBytes) return 1;
  return static_cast<int>(max_of(1, min_of(most, bytes / kBytesPerThread)));
}

struct Range {
  int64_t begin, end;
};

struct Team {
  int id, count;

  QUANTRY_INLINE Range share(int64_t n) const { return {n * id / count, n * (id + 1) / count}; }

  // Only inside the region that `parallel` opened: an orphaned barrier would wait for a caller's own team.
  QUANTRY_INLINE void barrier() const {
    if (count > 1) {
#pragma omp barrier
    }
  }
};

}  // namespace
}  // namespace QUANTRY_TARGET
}  // namespace quantry

extern "C" int omp_get_thread_num(void);
extern "C" int omp_get_num_threads(void);

QUANTRY_BEGIN

template <class Body>
QUANTRY_INLINE void parallel(int threads, const Body& body) {
  if (threads <= 1) {
    body(Team{0, 1});
    return;
  }
#pragma omp parallel num_threads(threads)
  body(Team{omp_get_thread_num(), omp_get_num_threads()});
}

QUANTRY_END
