// 8-bit floats of the form for weights, a scale for 32 columns or more.
#include <quantry/grouped/kernels.h>

QUANTRY_GROUPED_KERNELS(quantry_fp8, e4m3, InMode<FloatCodes<QUANTRY_E4M3>, kWhole>)
