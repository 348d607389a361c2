// The C functions of the grouped kernels (quantry/grouped/entry.h).
#define QUANTRY_GROUPED_PREFIX quantry_mx
#define QUANTRY_GROUPED_TABLES(X) X(e2m1) X(e4m3)

#include <quantry/grouped/entry.h>
#include <quantry/grouped/repack_entry.h>
