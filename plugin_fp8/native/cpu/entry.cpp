// The C functions of the kernels and of packing.
#define QUANTRY_GROUPED_PREFIX quantry_fp8
#define QUANTRY_GROUPED_TABLES(X) X(e4m3) X(e5m2) X(int8)

#include <quantry/grouped/entry.h>
#include <quantry/grouped/repack_entry.h>
