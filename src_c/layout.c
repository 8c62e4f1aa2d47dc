#include "layout.h"

#include <stdint.h>

/* Axis by axis: one of size 1 steps over nothing, and one that steps exactly over the axis before
 * it in memory is one with it. */
static void append(cbn_array *array, ptrdiff_t size, ptrdiff_t stride)
{
    const int last = array->dims - 1;
    if (size == 1) {
        return;
    }
    if (array->dims > 0 && array->strides[last] == size * stride) {
        array->shape[last] *= size;
        array->strides[last] = stride;
        return;
    }
    array->shape[array->dims] = size;
    array->strides[array->dims] = stride;
    ++array->dims;
}

cbn_status cbn_set_view(cbn_array *array, int ndim, const ptrdiff_t *shape,
                        const ptrdiff_t *strides, int axis)
{
    if (ndim > CBN_MAX_DIMS || axis < 0 || axis >= ndim) {
        return CBN_ERROR_SHAPE;
    }
    array->outer = array->inner = 1;
    array->channels = shape[axis];
    array->channel_stride = strides[axis];
    array->dims = 0;
    for (int i = 0; i < ndim; ++i) {
        if (shape[i] < 0) {
            return CBN_ERROR_SHAPE;
        }
        if (i != axis) {
            *(i < axis ? &array->outer : &array->inner) *= shape[i];
            append(array, shape[i], strides[i]);
        }
    }
    if (array->dims == 0) {
        array->shape[0] = 1;
        array->strides[0] = 0;
        array->dims = 1;
    }
    return CBN_OK;
}

cbn_status cbn_set_tensor_view(cbn_array *array, int ndim, const ptrdiff_t *shape,
                               const ptrdiff_t *strides, int axis)
{
    if (ndim < 0 || ndim > CBN_MAX_DIMS) {
        return CBN_ERROR_SHAPE;
    }
    const ptrdiff_t itemsize = array->dtype == CBN_FLOAT64   ? 8
                               : array->dtype == CBN_FLOAT32 ? 4
                                                             : 2;
    ptrdiff_t bytes[CBN_MAX_DIMS];
    for (int i = 0; i < ndim; ++i) {
        bytes[i] = strides[i] * itemsize;
    }
    return cbn_set_view(array, ndim, shape, bytes, axis);
}

int cbn_is_native(const cbn_array *array, size_t itemsize)
{
    uintptr_t any = (uintptr_t)array->data | (uintptr_t)array->channel_stride;
    for (int i = 0; i < array->dims; ++i) {
        any |= (uintptr_t)array->strides[i];
    }
    return !array->swapped && any % itemsize == 0;
}

int cbn_has_adjacent_channels(const cbn_array *array, size_t itemsize)
{
    const int adjacent = array->channels == 1 || array->channel_stride == (ptrdiff_t)itemsize;
    return array->inner == 1 && array->dims == 1 && adjacent && cbn_is_native(array, itemsize);
}

int cbn_same_form(const cbn_array *a, const cbn_array *b)
{
    return a->outer == b->outer && a->channels == b->channels && a->inner == b->inner &&
           a->dtype == b->dtype;
}

ptrdiff_t cbn_positions(const cbn_array *array) { return array->outer * array->inner; }

ptrdiff_t cbn_offset(const cbn_array *array, ptrdiff_t position, ptrdiff_t *run, ptrdiff_t *step)
{
    const int last = array->dims - 1;
    ptrdiff_t offset = 0;
    for (int i = last; i > 0; --i) {
        const ptrdiff_t index = position % array->shape[i];
        position /= array->shape[i];
        offset += index * array->strides[i];
        if (i == last) {
            *run = array->shape[i] - index;
        }
    }
    if (last == 0) {
        *run = array->shape[0] - position;
    }
    *step = array->strides[last];
    return offset + position * array->strides[0];
}
