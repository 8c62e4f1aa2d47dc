/* Advanced SIMD on aarch64. */
#define CBN_ISA neon
#include "../kernels/float64.h"
