#include "layout.h"

/* The axes first..last-1 as one axis: axes of size 1 step over nothing, and each other axis must
 * step exactly over the ones inside it. A size 0 anywhere makes the strides meaningless. */
static cbn_status collapse(ptrdiff_t *size, ptrdiff_t *stride, const ptrdiff_t *shape,
                           const ptrdiff_t *strides, int first, int last)
{
    *size = 1;
    *stride = 0;
    int empty = 0;
    for (int i = last - 1; i >= first; --i) {
        if (shape[i] < 0) {
            return CBN_ERROR_SHAPE;
        }
        empty |= shape[i] == 0;
        if (shape[i] == 1 || empty) {
            continue;
        }
        if (*size == 1) {
            *stride = strides[i];
        } else if (strides[i] != *size * *stride) {
            return CBN_ERROR_LAYOUT;
        }
        *size *= shape[i];
    }
    if (empty) {
        *size = 0;
    }
    return CBN_OK;
}

cbn_status cbn_set_view(cbn_array *array, int ndim, const ptrdiff_t *shape,
                        const ptrdiff_t *strides, int axis)
{
    if (axis < 0 || axis >= ndim || shape[axis] < 0) {
        return CBN_ERROR_SHAPE;
    }
    const cbn_status status =
        collapse(&array->outer, &array->outer_stride, shape, strides, 0, axis);
    if (status != CBN_OK) {
        return status;
    }
    array->channels = shape[axis];
    array->channel_stride = strides[axis];
    return collapse(&array->inner, &array->inner_stride, shape, strides, axis + 1, ndim);
}

cbn_status cbn_check_rows(const cbn_array *array, size_t itemsize)
{
    const int adjacent = array->channels == 1 || array->channel_stride == (ptrdiff_t)itemsize;
    return array->inner == 1 && adjacent ? CBN_OK : CBN_ERROR_LAYOUT;
}

int cbn_same_form(const cbn_array *a, const cbn_array *b)
{
    return a->outer == b->outer && a->channels == b->channels && a->inner == b->inner &&
           a->dtype == b->dtype;
}
