// Integer codes of two planes.
#include <quantry/grouped/kernels.h>

QUANTRY_GROUPED_KERNELS(quantry_test, affine_high, AffineCodes<5>, AffineCodes<6>)
