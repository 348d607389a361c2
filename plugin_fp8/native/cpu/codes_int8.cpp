// 8-bit integers with a scale for 32 columns, for f8q8.
#include <quantry/grouped/kernels.h>

QUANTRY_GROUPED_KERNELS(quantry_fp8, int8, InMode<AffineCodes<8>, kWhole>)
