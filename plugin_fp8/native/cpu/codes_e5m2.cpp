// 8-bit floats of the wider range, a scale for 32 columns or more.
#include <quantry/grouped/kernels.h>

QUANTRY_GROUPED_KERNELS(quantry_fp8, e5m2, InMode<FloatCodes<QUANTRY_E5M2>, kWhole>)
