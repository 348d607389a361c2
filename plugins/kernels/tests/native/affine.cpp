// Integer codes of 4 bits.
#include <quantry/grouped/kernels.h>

QUANTRY_GROUPED_KERNELS(quantry_test, affine, AffineCodes<4>)
