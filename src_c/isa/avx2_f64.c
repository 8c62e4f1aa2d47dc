/* AVX2 and FMA. FMA is not contracted into: it would change the last bit. */
#define CBN_ISA avx2
#include "../kernels/float64.h"
