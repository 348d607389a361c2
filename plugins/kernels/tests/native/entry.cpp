// The C functions of the test library.
#define QUANTRY_GROUPED_PREFIX quantry_test
#define QUANTRY_GROUPED_TABLES(X) X(affine_low) X(affine) X(affine_high) X(affine_8) X(codebook) X(float)

#include <quantry/grouped/entry.h>
#include <quantry/grouped/repack_entry.h>
