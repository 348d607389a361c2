// Codes of 3 bits, groups of 32 and more along rows.
#include <quantry/grouped/kernels.h>

QUANTRY_GROUPED_KERNELS(quantry_hqq, three, InMode<AffineCodes<3>, kWhole>)
