// 8-bit floats.
#include <quantry/grouped/kernels.h>

QUANTRY_GROUPED_KERNELS(quantry_test, float, FloatCodes<QUANTRY_E4M3>)
