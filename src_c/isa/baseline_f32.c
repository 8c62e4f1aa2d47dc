/* What every CPU of the architecture runs (SSE2 on x86-64). */
#define CBN_ISA baseline
#include "../kernels/float32.h"
