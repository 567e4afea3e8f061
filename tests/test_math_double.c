/* test_math.c in double.
   SPDX-License-Identifier: MIT */
#define MAMBA_REAL double
#include "test_math.c"
