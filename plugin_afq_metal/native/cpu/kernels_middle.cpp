// Codes of 5 and 6 bits.
#include <quantry/grouped/kernels.h>

QUANTRY_GROUPED_KERNELS(quantry_afq, middle, InMode<AffineCodes<5>, kWhole>, InMode<AffineCodes<6>, kWhole>)
