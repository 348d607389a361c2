// TQ1_0 and Q8_K, in file order.
#include "format_ops.h"
#include "row_source.h"

using namespace quantry::QUANTRY_TARGET;
QUANTRY_FORMATS(quantry_gguf_small, RowSource<TQ1_0>, RowSource<Q8_K>);
