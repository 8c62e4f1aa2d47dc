/* Advanced SIMD on aarch64. */
#define CBN_ISA neon
#include "../kernels/float32.h"
