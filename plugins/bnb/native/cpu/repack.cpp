// Codes to panels and back.
#include <quantry/grouped/repack.h>

QUANTRY_GROUPED_REPACK(quantry_bnb)
