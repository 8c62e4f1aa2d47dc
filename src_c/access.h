/* Rows of arrays that kernels cannot take as they lie: any strides, half types, swapped bytes,
 * chosen positions. */
#ifndef CBN_ACCESS_H
#define CBN_ACCESS_H

#include "cbn.h"
#include "kernels/kernels.h"

/* A row is columns of channels side by side, or where `run` > 1 that many positions of a channel:
 * column k is position k % run of channel k / run. */
typedef struct cbn_array_access {
    cbn_access access;
    const cbn_array *array;
    const cbn_kernels *kernels;
    const ptrdiff_t *positions; /* NULL for all */
    ptrdiff_t run;
    int native; /* cbn_is_native() */
    int dense;  /* the elements of a row touch */
} cbn_array_access;

/* `array` and `kernels` must live as long. */
cbn_array_access cbn_access_to(const cbn_array *array, const cbn_kernels *kernels,
                               const ptrdiff_t *positions, ptrdiff_t run);

#endif
