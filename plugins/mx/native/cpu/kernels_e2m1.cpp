// e2m1 codes, as a table whose numbers are exact in bf16.
#include <quantry/grouped/kernels.h>

QUANTRY_GROUPED_KERNELS(quantry_mx, e2m1, InMode<TableCodes<true>, kWhole>)
