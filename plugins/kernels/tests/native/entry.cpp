// The C functions of the test library.
#define QUANTRY_GROUPED_PREFIX quantry_test
#ifdef QUANTRY_TEST_ALL
#define QUANTRY_GROUPED_TABLES(X) X(affine_low) X(affine) X(affine_high) X(codebook) X(float) X(rest_low) X(rest_high)
#else
#define QUANTRY_GROUPED_TABLES(X) X(affine_low) X(affine) X(affine_high) X(codebook) X(float)
#endif

#include <quantry/grouped/entry.h>
#include <quantry/grouped/repack_entry.h>
