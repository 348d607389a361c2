// Panels of the types with one or two bits a code and no scales within a block.
#include <quantry/ggml/source.h>

#include "format_ops.h"

using namespace quantry::QUANTRY_TARGET;
QUANTRY_FORMATS(quantry_gguf_bits, GgmlSource<TQ2_0>, GgmlSource<Q1_0>, GgmlSource<Q2_0>);
