// Codes of 1 and 2 bits, groups of 32 and more along rows: across rows HQQ has 4 and 8 bits only.
#include <quantry/grouped/kernels.h>

QUANTRY_GROUPED_KERNELS(quantry_hqq, low, InMode<AffineCodes<1>, kWhole>, InMode<AffineCodes<2>, kWhole>)
