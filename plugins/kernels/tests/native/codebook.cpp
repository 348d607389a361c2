// 4-bit indices into tables.
#include <quantry/grouped/kernels.h>

QUANTRY_GROUPED_KERNELS(quantry_test, codebook, TableCodes<false>, TableCodes<true>)
