// Return codes of every exported function; 0 is success. Python turns them into sentences.
#pragma once

enum QuantryStatus {
  QUANTRY_OK = 0,
  QUANTRY_BAD_TARGET = 1,    // the instruction set is unknown or this machine lacks it
  QUANTRY_BAD_TYPE = 2,      // no kernel for this block type or dtype
  QUANTRY_BAD_SHAPE = 3,     // negative size, or columns that are no multiple of the block
  QUANTRY_BAD_BUFFER = 4,    // a buffer is missing or its size does not fit the shape
  QUANTRY_BAD_SCRATCH = 5,   // scratch is smaller than the *_scratch function says
  QUANTRY_BAD_INDEX = 6,     // a row index is out of range
};

// Element types of activations and results.
enum QuantryDtype {
  QUANTRY_F32 = 0,
  QUANTRY_F16 = 1,
  QUANTRY_BF16 = 2,
};
