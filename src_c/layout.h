/* Which arrays the drivers take. Shapes and strides only, no arithmetic on elements. */
#ifndef CBN_LAYOUT_H
#define CBN_LAYOUT_H

#include "cbn.h"

/* CBN_OK when the array is rows of adjacent channels of `itemsize` bytes: S == 1, any row stride.
 */
cbn_status cbn_check_rows(const cbn_array *array, size_t itemsize);

/* Equal sizes and dtype. */
int cbn_same_form(const cbn_array *a, const cbn_array *b);

#endif
