// The IQ1 and IQ3 types, in file order.
#include "format_ops.h"
#include "row_source.h"

using namespace quantry::QUANTRY_TARGET;
QUANTRY_FORMATS(quantry_gguf_iq3, RowSource<IQ3_XXS>, RowSource<IQ3_S>, RowSource<IQ1_S>, RowSource<IQ1_M>);
