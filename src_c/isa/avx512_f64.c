/* AVX-512 F, CD, BW, DQ and VL. */
#define CBN_ISA avx512
#include "../kernels/float64.h"
