/* Advanced SIMD on aarch64. */
#define CBN_ISA neon
#include "convert.h"
#include "stream.h"

#include "../kernels/instantiate.h"
