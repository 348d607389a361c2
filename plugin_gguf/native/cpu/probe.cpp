// The roof probes with the instructions of one target.
#include <quantry/dispatch.h>
#include <quantry/probe.h>

QUANTRY_TABLE(QuantryProbeOps, quantry_gguf_probe_ops) {
  quantry::QUANTRY_TARGET::probe_read, quantry::QUANTRY_TARGET::probe_peak
};
