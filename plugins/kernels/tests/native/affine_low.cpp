// Integer codes of 3 bits, in two planes.
#include <quantry/grouped/kernels.h>

QUANTRY_GROUPED_KERNELS(quantry_test, affine_low, AffineCodes<3>)
