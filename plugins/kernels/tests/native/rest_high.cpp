// Widths beside those of affine_low, affine and affine_high.
#include <quantry/grouped/kernels.h>

QUANTRY_GROUPED_KERNELS(quantry_test, rest_high, AffineCodes<5>, AffineCodes<6>, AffineCodes<8>)
