// e4m3 codes.
#include <quantry/grouped/kernels.h>

QUANTRY_GROUPED_KERNELS(quantry_mx, e4m3, InMode<FloatCodes<QUANTRY_E4M3>, kWhole>)
