// The C functions of the grouped kernels (quantry/grouped/entry.h).
#define QUANTRY_GROUPED_PREFIX quantry_afq
#define QUANTRY_GROUPED_TABLES(X) X(low) X(four) X(middle) X(eight)

#include <quantry/grouped/entry.h>
#include <quantry/grouped/repack_entry.h>
