/* The kernel set of float64, and the arithmetic on numbers of each channel. */
#include "../dtypes/f64.h"

#include "kernel_set.h"

#include "arithmetic.h"

const cbn_kernels CBN_OF_TIER(cbn_float64) = CBN_KERNELS(load_element, store_element, 8);
