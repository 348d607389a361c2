// Panels of the K types.
#include <quantry/ggml/source.h>

#include "format_ops.h"

using namespace quantry::QUANTRY_TARGET;
QUANTRY_FORMATS(quantry_gguf_k, GgmlSource<Q2_K>, GgmlSource<Q3_K>, GgmlSource<Q4_K>, GgmlSource<Q5_K>, GgmlSource<Q6_K>);
