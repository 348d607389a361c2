// Codes of 8 bits, groups of 32 and more along rows, and groups across rows.
#include <quantry/grouped/kernels.h>

QUANTRY_GROUPED_KERNELS(quantry_hqq, eight, InMode<AffineCodes<8>, kWhole>, InMode<AffineCodes<8>, kOut>)
