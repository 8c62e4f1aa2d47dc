/* The chosen tier's kernels. */
#ifndef CBN_DISPATCH_H
#define CBN_DISPATCH_H

#include "cbn.h"
#include "kernels/kernels.h"

/* NULL when no tier has been chosen. */
const cbn_kernels *cbn_dispatch(cbn_dtype dtype);

#endif
