/* All the kernels for the dtype of dtypes/ that was included before, which kernels/float32.h and
 * kernels/float64.h make kernel sets of. CBN_ISA is the tier. */
#ifndef CBN_KERNEL_SET_H
#define CBN_KERNEL_SET_H

#include "numbers.h"

#include "kernels.h"

#include "elements.h"
#include "extreme.h"
#include "moments.h"

#define CBN_OF_TIER(name) CBN_JOIN(name, CBN_ISA)

#define CBN_KERNELS(load_, store_, itemsize_)                                                      \
    {                                                                                              \
        .itemsize = itemsize_,                                                                     \
        .element = sizeof(element),                                                                \
        .load = load_,                                                                             \
        .store = store_,                                                                           \
        .moments = moments,                                                                        \
        .normalize = normalize,                                                                    \
        .relu_backward = relu_backward,                                                            \
        .backward_sums = backward_sums,                                                            \
        .backward_dx = backward_dx,                                                                \
        .scale = scale,                                                                            \
        .arithmetic = &CBN_OF_TIER(cbn_arithmetic),                                                \
    }

#endif
