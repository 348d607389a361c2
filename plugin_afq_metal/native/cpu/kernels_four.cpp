// Codes of 4 bits.
#include <quantry/grouped/kernels.h>

QUANTRY_GROUPED_KERNELS(quantry_afq, four, InMode<AffineCodes<4>, kWhole>)
