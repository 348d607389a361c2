// The IQ2 types, in file order.
#include "format_ops.h"
#include "row_source.h"

using namespace quantry::QUANTRY_TARGET;
QUANTRY_FORMATS(quantry_gguf_iq2, RowSource<IQ2_XXS>, RowSource<IQ2_XS>, RowSource<IQ2_S>);
