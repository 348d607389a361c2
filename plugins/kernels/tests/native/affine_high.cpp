// Integer codes of 7 bits, in three planes.
#include <quantry/grouped/kernels.h>

QUANTRY_GROUPED_KERNELS(quantry_test, affine_high, AffineCodes<7>)
