// Codes of the grouped families as the layouts store them ↔ planes of panels, as a table of functions. Sizes were checked.
#pragma once
#include <stdint.h>

// batch matrices [rows, columns] of codes of `bits` bits.
//   stream   group 0: a bit stream per row, lowest bit first, rows start on a byte
//            else (axis OUT): one of `group` codes per column of W.view(group, ·)
//   planes   of panels, as in abi.h; null where there is none
//   flip     codes are two's complement, planes count from the smallest
struct GroupedRepack {
  int32_t bits, flip;
  int64_t batch, rows, columns, group;
  uint8_t* stream;
  uint8_t *codes, *high, *top;
  int threads;
};

struct GroupedRepackOps {
  void (*pack)(const GroupedRepack*);
  void (*unpack)(const GroupedRepack*);
};
