// Codes of 1 and 2 bits, groups of 32 and more along rows, and groups across rows.
#include <quantry/grouped/kernels.h>

QUANTRY_GROUPED_KERNELS(quantry_hqq, low, InMode<AffineCodes<1>, kWhole>, InMode<AffineCodes<1>, kOut>,
                        InMode<AffineCodes<2>, kWhole>, InMode<AffineCodes<2>, kOut>)
