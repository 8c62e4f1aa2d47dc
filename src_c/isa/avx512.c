/* AVX-512 F, CD, BW, DQ and VL. */
#define CBN_ISA avx512
#include "stream.h"

#include "../kernels/instantiate.h"
