// Widths beside those of affine_low, affine and affine_high, and the other 8-bit float.
#include <quantry/grouped/kernels.h>

QUANTRY_GROUPED_KERNELS(quantry_test, rest_low, AffineCodes<1>, AffineCodes<2>, FloatCodes<QUANTRY_E5M2>)
