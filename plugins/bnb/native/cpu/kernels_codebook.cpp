// 4-bit indices into nf4 and fp4, blocks of 32 columns and more.
#include <quantry/grouped/kernels.h>

QUANTRY_GROUPED_KERNELS(quantry_bnb, codebook, InMode<TableCodes<false>, kWhole>)
