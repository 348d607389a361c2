// Codes of 8 bits.
#include <quantry/grouped/kernels.h>

QUANTRY_GROUPED_KERNELS(quantry_afq, eight, InMode<AffineCodes<8>, kWhole>)
