// Integer codes of few bits.
#include <quantry/grouped/kernels.h>

QUANTRY_GROUPED_KERNELS(quantry_test, affine_low, AffineCodes<1>, AffineCodes<2>, AffineCodes<3>)
