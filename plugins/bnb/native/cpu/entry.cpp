// The C functions of the grouped kernels (quantry/grouped/entry.h).
#define QUANTRY_GROUPED_PREFIX quantry_bnb
#define QUANTRY_GROUPED_TABLES(X) X(codebook)

#include <quantry/grouped/entry.h>
#include <quantry/grouped/repack_entry.h>
