// Codes of 2 and 3 bits.
#include <quantry/grouped/kernels.h>

QUANTRY_GROUPED_KERNELS(quantry_afq, low, InMode<AffineCodes<2>, kWhole>, InMode<AffineCodes<3>, kWhole>)
