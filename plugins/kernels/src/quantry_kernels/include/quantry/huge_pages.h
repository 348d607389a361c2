// Advice to the kernel to back large buffers by huge pages, which saves a tenth of a large matrix' time.
#pragma once
#include <stdint.h>

#if defined(__linux__)
#include <sys/mman.h>
#endif

// Advice only: failure means nothing.
static inline void quantry_advise_huge(void* p, int64_t bytes) {
#if defined(__linux__)
  uintptr_t first = (reinterpret_cast<uintptr_t>(p) + 4095) & ~uintptr_t(4095);
  uintptr_t last = (reinterpret_cast<uintptr_t>(p) + static_cast<uintptr_t>(bytes)) & ~uintptr_t(4095);
  if (bytes >= (int64_t(4) << 20) && last > first) madvise(reinterpret_cast<void*>(first), last - first, MADV_HUGEPAGE);
#else
  (void)p, (void)bytes;
#endif
}
