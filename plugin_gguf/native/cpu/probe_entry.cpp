// The C functions of the roof probes; they time themselves, so that a caller's overhead is no part of the roof.
#include <omp.h>
#include <quantry/dispatch.h>
#include <quantry/huge_pages.h>
#include <quantry/probe_ops.h>
#include <string.h>

QUANTRY_DECLARE_TABLES(QuantryProbeOps, quantry_gguf_probe_ops)

extern "C" {

// Asks for huge pages and fills a buffer to read from: pages never written are all one page of zeros.
QUANTRY_EXPORT int quantry_gguf_probe_fill(void* buffer, int64_t bytes, int threads) {
  if (bytes < 0) return QUANTRY_BAD_SHAPE;
  if (bytes && !buffer) return QUANTRY_BAD_BUFFER;
  if (threads < 1) threads = 1;
  quantry_advise_huge(buffer, bytes);
#pragma omp parallel for schedule(static) num_threads(threads) if (threads > 1)
  for (int part = 0; part < threads; ++part) {
    const int64_t from = bytes / threads * part, to = part + 1 == threads ? bytes : bytes / threads * (part + 1);
    memset(static_cast<char*>(buffer) + from, 0x55, static_cast<size_t>(to - from));
  }
  return QUANTRY_OK;
}

// *seconds = how long `threads` threads take to read the bytes once.
QUANTRY_EXPORT int quantry_gguf_probe_read(int target, const void* buffer, int64_t bytes, int threads,
                                           double* seconds) {
  const QuantryProbeOps* ops = QUANTRY_TABLE_FOR(quantry_gguf_probe_ops, target);
  if (!ops) return QUANTRY_BAD_TARGET;
  if (bytes < 0) return QUANTRY_BAD_SHAPE;
  if ((bytes && !buffer) || !seconds) return QUANTRY_BAD_BUFFER;
  const double start = omp_get_wtime();
  ops->read(static_cast<const uint8_t*>(buffer), bytes, threads < 1 ? 1 : threads);
  *seconds = omp_get_wtime() - start;
  return QUANTRY_OK;
}

// *gops = 10⁹ operations a second (a product and a sum are two) of `threads` threads in `rounds` turns of a
// register-only loop of QuantryPeak `kind`; 0 where this target has no such instruction.
QUANTRY_EXPORT int quantry_gguf_probe_peak(int target, int kind, int64_t rounds, int threads, double* gops) {
  const QuantryProbeOps* ops = QUANTRY_TABLE_FOR(quantry_gguf_probe_ops, target);
  if (!ops) return QUANTRY_BAD_TARGET;
  if (kind < 0 || kind >= QUANTRY_PEAKS) return QUANTRY_BAD_TYPE;
  if (rounds < 1) return QUANTRY_BAD_SHAPE;
  if (!gops) return QUANTRY_BAD_BUFFER;
  const double start = omp_get_wtime();
  const int64_t done = ops->peak(kind, rounds, threads < 1 ? 1 : threads);
  *gops = static_cast<double>(done) * 1e-9 / (omp_get_wtime() - start);
  return QUANTRY_OK;
}
}
