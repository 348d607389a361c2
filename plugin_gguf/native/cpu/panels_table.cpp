// Panels of the types whose 4-bit codes index a table.
#include <quantry/ggml/source.h>

#include "format_ops.h"

using namespace quantry::QUANTRY_TARGET;
QUANTRY_FORMATS(quantry_gguf_table, GgmlSource<IQ4_NL>, GgmlSource<IQ4_XS>, GgmlSource<MXFP4>, GgmlSource<NVFP4>);
