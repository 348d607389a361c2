// The C functions of the kernels and of packing.
#define QUANTRY_GROUPED_PREFIX quantry_hqq
#define QUANTRY_GROUPED_TABLES(X) X(low) X(three) X(four) X(eight)

#include <quantry/grouped/entry.h>
#include <quantry/grouped/repack_entry.h>
