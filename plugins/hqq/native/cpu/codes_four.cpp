// Codes of 4 bits, groups of 32 and more along rows, and groups across rows.
#include <quantry/grouped/kernels.h>

QUANTRY_GROUPED_KERNELS(quantry_hqq, four, InMode<AffineCodes<4>, kWhole>, InMode<AffineCodes<4>, kOut>)
