// Integer codes of 7 and 8 bits.
#include <quantry/grouped/kernels.h>

QUANTRY_GROUPED_KERNELS(quantry_test, affine_8, AffineCodes<7>, AffineCodes<8>)
