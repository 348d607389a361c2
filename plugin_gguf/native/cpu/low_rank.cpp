// What adapters add, with the instructions of one target.
#include <quantry/dispatch.h>
#include <quantry/low_rank.h>

QUANTRY_TABLE(QuantryLowRankOps, quantry_gguf_low_rank_ops) { quantry::QUANTRY_TARGET::add_low_rank };
