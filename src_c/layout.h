/* Where elements lie. Shapes and strides only, no arithmetic on elements. */
#ifndef CBN_LAYOUT_H
#define CBN_LAYOUT_H

#include "cbn.h"

/* Rows of adjacent channels of `itemsize` bytes: S == 1, one row stride, native elements. */
int cbn_has_adjacent_channels(const cbn_array *array, size_t itemsize);

/* Aligned elements in the machine's byte order. */
int cbn_is_native(const cbn_array *array, size_t itemsize);

/* Equal sizes and dtype. */
int cbn_same_form(const cbn_array *a, const cbn_array *b);

ptrdiff_t cbn_positions(const cbn_array *array);

/* Byte offset of a position in channel 0; `run` positions from there on step by `step` bytes. */
ptrdiff_t cbn_offset(const cbn_array *array, ptrdiff_t position, ptrdiff_t *run, ptrdiff_t *step);

#endif
