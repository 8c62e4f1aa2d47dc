/* AVX-512 F, CD, BW, DQ and VL. */
#define CBN_ISA avx512
#include "convert.h"
#include "stream.h"

#include "../kernels/instantiate.h"
