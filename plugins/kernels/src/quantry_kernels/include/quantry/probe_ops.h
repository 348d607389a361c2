// The roof probes of one target as a table of pointers: what probe.cpp defines and probe_entry.cpp calls.
#pragma once
#include <stdint.h>

enum QuantryPeak { QUANTRY_PEAK_INT8 = 0, QUANTRY_PEAK_F32 = 1, QUANTRY_PEAK_BF16 = 2, QUANTRY_PEAKS = 3 };

struct QuantryProbeOps {
  // Reads [p, p + bytes) once, `threads` contiguous shares; returns a checksum that is of no use but to be needed.
  int32_t (*read)(const uint8_t* p, int64_t bytes, int threads);
  // `rounds` turns of dot products between registers on each thread; returns the multiplications and additions done,
  // 0 where this processor has no such instruction.
  int64_t (*peak)(int kind, int64_t rounds, int threads);
};
