// Panels of ggml's blocks of 32 with linear codes.
#include <quantry/ggml/source.h>

#include "format_ops.h"

using namespace quantry::QUANTRY_TARGET;
QUANTRY_FORMATS(quantry_gguf_legacy, GgmlSource<Q4_0>, GgmlSource<Q4_1>, GgmlSource<Q5_0>, GgmlSource<Q5_1>, GgmlSource<Q8_0>,
                GgmlSource<Q8_1>);
