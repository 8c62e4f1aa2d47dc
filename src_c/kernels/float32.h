/* The kernel sets of float32, and of the half types, whose rows are converted to float32. */
#include "../dtypes/f32.h"

#include "half_elements.h"
#include "kernel_set.h"

const cbn_kernels CBN_OF_TIER(cbn_float32) = CBN_KERNELS(load_element, store_element, 4);
const cbn_kernels CBN_OF_TIER(cbn_float16) = CBN_KERNELS(load_f16, store_f16, 2);
const cbn_kernels CBN_OF_TIER(cbn_bfloat16) = CBN_KERNELS(load_bf16, store_bf16, 2);
