#include "access.h"

#include <stdint.h>
#include <string.h>

#include "compiler.h"
#include "layout.h"

/* A part of a row whose elements are evenly apart. */
typedef struct stretch {
    char *data;
    ptrdiff_t step, length;
} stretch;

static ptrdiff_t least(ptrdiff_t a, ptrdiff_t b) { return a < b ? a : b; }

static stretch stretch_at(const cbn_array_access *a, ptrdiff_t position, ptrdiff_t column,
                          ptrdiff_t cols)
{
    const cbn_array *const array = a->array;
    const ptrdiff_t channel = a->run > 1 ? column / a->run : column % array->channels;
    position += a->run > 1 ? column % a->run : column / array->channels;
    ptrdiff_t run, step;
    const ptrdiff_t at = a->positions == NULL ? position : a->positions[position];
    const ptrdiff_t offset = cbn_offset(array, at, &run, &step) + channel * array->channel_stride;
    stretch part = {(char *)array->data + offset, step, least(run, cols)};
    if (a->dense) {
        part.step = (ptrdiff_t)a->kernels->itemsize;
        part.length = cols;
    } else if (a->run == 1) {
        part.step = array->channel_stride;
        part.length = least(array->channels - channel, cols);
    } else {
        part.length = least(part.length, a->run - column % a->run);
    }
    return part;
}

static char *locate(const cbn_access *access, ptrdiff_t position, ptrdiff_t column, ptrdiff_t cols)
{
    const cbn_array_access *const a = (const cbn_array_access *)(const void *)access;
    if (!a->native || a->kernels->element != a->kernels->itemsize) {
        return NULL;
    }
    const stretch part = stretch_at(a, position, column, cols);
    const int touches = part.step == (ptrdiff_t)a->kernels->itemsize || cols == 1;
    return touches && part.length == cols ? part.data : NULL;
}

static void read_row(const cbn_access *access, void *to_, ptrdiff_t position, ptrdiff_t column,
                     ptrdiff_t cols)
{
    const cbn_array_access *const a = (const cbn_array_access *)(const void *)access;
    char *to = to_;
    for (stretch part; cols > 0; cols -= part.length, column += part.length) {
        part = stretch_at(a, position, column, cols);
        a->kernels->load(to, part.data, part.step, a->array->swapped, part.length);
        to += part.length * (ptrdiff_t)a->kernels->element;
    }
}

static void write_row(const cbn_access *access, const void *from_, ptrdiff_t position,
                      ptrdiff_t column, ptrdiff_t cols)
{
    const cbn_array_access *const a = (const cbn_array_access *)(const void *)access;
    const char *from = from_;
    for (stretch part; cols > 0; cols -= part.length, column += part.length) {
        part = stretch_at(a, position, column, cols);
        a->kernels->store(part.data, from, part.step, a->array->swapped, part.length);
        from += part.length * (ptrdiff_t)a->kernels->element;
    }
}

/* Elements of `size` bytes of some rows: in an array they are `step` bytes apart, in copies of the
 * rows they touch. */
typedef struct moved_rows {
    char *array[CBN_GROUP_ROWS], *copy[CBN_GROUP_ROWS];
    ptrdiff_t step, rows, length;
} moved_rows;

/* The pointers are copied, since no element can then be one of them. */
CBN_INLINE void move_elements(const moved_rows *given, ptrdiff_t rows, ptrdiff_t size, int scatter)
{
    const moved_rows at = *given;
    for (ptrdiff_t k = 0; k < at.length; ++k) {
        for (ptrdiff_t r = 0; r < rows; ++r) {
            char *const array = at.array[r] + k * at.step, *const copy = at.copy[r] + k * size;
            memcpy(scatter ? array : copy, scatter ? copy : array, (size_t)size);
        }
    }
}

/* Where the size and the number of rows are constants, the loop has no branch. */
CBN_INLINE void move_by_size(const moved_rows *given, ptrdiff_t size, int scatter)
{
    if (size == sizeof(float) && given->rows == CBN_GROUP_ROWS) {
        move_elements(given, CBN_GROUP_ROWS, sizeof(float), scatter);
    } else if (size == sizeof(float)) {
        move_elements(given, given->rows, sizeof(float), scatter);
    } else {
        move_elements(given, given->rows, sizeof(double), scatter);
    }
}

/* The rows are moved side by side, so that a line that several of them share is loaded once
 * [scattered-rows]. */
static void move_rows(const cbn_access *access, void *const *copies, ptrdiff_t rows,
                      ptrdiff_t position, ptrdiff_t step, ptrdiff_t column, ptrdiff_t cols,
                      int scatter)
{
    const cbn_array_access *const a = (const cbn_array_access *)(const void *)access;
    const ptrdiff_t size = (ptrdiff_t)a->kernels->itemsize;
    moved_rows moved;
    moved.rows = rows;
    moved.step = 0;
    for (ptrdiff_t done = 0; done < cols; done += moved.length) {
        moved.length = cols - done;
        for (ptrdiff_t r = 0; r < rows; ++r) {
            const stretch part = stretch_at(a, position + r * step, column + done, cols - done);
            moved.array[r] = part.data;
            moved.copy[r] = (char *)copies[r] + done * size;
            moved.step = part.step;
            moved.length = least(moved.length, part.length);
        }
        if (scatter) {
            move_by_size(&moved, size, 1);
        } else {
            move_by_size(&moved, size, 0);
        }
    }
}

static int is_scattered(const cbn_array *array, const cbn_kernels *kernels, ptrdiff_t run)
{
    const ptrdiff_t step = run > 1 ? array->strides[array->dims - 1] : array->channel_stride;
    return cbn_is_native(array, kernels->itemsize) && kernels->element == kernels->itemsize &&
           step != (ptrdiff_t)kernels->itemsize;
}

/* In whole rows of the array, or where `run` is all of its inner axis. */
static int is_dense(const cbn_array *array, ptrdiff_t itemsize, ptrdiff_t run)
{
    const int last = array->dims - 1;
    if (run == 1) {
        return array->dims == 1 && array->channel_stride == itemsize &&
               array->strides[0] == array->channels * itemsize;
    }
    return run == array->inner && array->shape[last] == run && array->strides[last] == itemsize &&
           array->channel_stride == run * itemsize;
}

cbn_array_access cbn_access_to(const cbn_array *array, const cbn_kernels *kernels,
                               const ptrdiff_t *positions, ptrdiff_t run)
{
    const ptrdiff_t itemsize = (ptrdiff_t)kernels->itemsize;
    return (cbn_array_access){
        .access = {locate, read_row, write_row, is_scattered(array, kernels, run), move_rows},
        .array = array,
        .kernels = kernels,
        .positions = positions,
        .run = run,
        .native = cbn_is_native(array, kernels->itemsize),
        .dense = positions == NULL && is_dense(array, itemsize, run)};
}
