#include "access.h"

#include <stdint.h>
#include <string.h>

#include "layout.h"

/* A piece of a row that steps evenly: where it is, and how long. */
typedef struct piece {
    char *data;
    ptrdiff_t step, length;
} piece;

static ptrdiff_t least(ptrdiff_t a, ptrdiff_t b) { return a < b ? a : b; }

static piece piece_at(const cbn_array_access *a, ptrdiff_t position, ptrdiff_t column,
                      ptrdiff_t cols)
{
    const cbn_array *const array = a->array;
    const ptrdiff_t channel = a->run > 1 ? column / a->run : column % array->channels;
    position += a->run > 1 ? column % a->run : column / array->channels;
    ptrdiff_t run, step;
    const ptrdiff_t at = a->positions == NULL ? position : a->positions[position];
    const ptrdiff_t offset = cbn_offset(array, at, &run, &step) + channel * array->channel_stride;
    piece p = {(char *)array->data + offset, step, least(run, cols)};
    if (a->dense) {
        p.step = (ptrdiff_t)a->kernels->itemsize;
        p.length = cols;
    } else if (a->run == 1) {
        p.step = array->channel_stride;
        p.length = least(array->channels - channel, cols);
    } else {
        p.length = least(p.length, a->run - column % a->run);
    }
    return p;
}

static char *locate(const cbn_access *access, ptrdiff_t position, ptrdiff_t column, ptrdiff_t cols)
{
    const cbn_array_access *const a = (const cbn_array_access *)(const void *)access;
    if (!a->native || a->kernels->element != a->kernels->itemsize) {
        return NULL;
    }
    const piece p = piece_at(a, position, column, cols);
    const int touches = p.step == (ptrdiff_t)a->kernels->itemsize || cols == 1;
    return touches && p.length == cols ? p.data : NULL;
}

static void read_row(const cbn_access *access, void *to_, ptrdiff_t position, ptrdiff_t column,
                     ptrdiff_t cols)
{
    const cbn_array_access *const a = (const cbn_array_access *)(const void *)access;
    char *to = to_;
    for (piece p; cols > 0; cols -= p.length, column += p.length) {
        p = piece_at(a, position, column, cols);
        a->kernels->load(to, p.data, p.step, a->array->swapped, p.length);
        to += p.length * (ptrdiff_t)a->kernels->element;
    }
}

static void write_row(const cbn_access *access, const void *from_, ptrdiff_t position,
                      ptrdiff_t column, ptrdiff_t cols)
{
    const cbn_array_access *const a = (const cbn_array_access *)(const void *)access;
    const char *from = from_;
    for (piece p; cols > 0; cols -= p.length, column += p.length) {
        p = piece_at(a, position, column, cols);
        a->kernels->store(p.data, from, p.step, a->array->swapped, p.length);
        from += p.length * (ptrdiff_t)a->kernels->element;
    }
}

/* Elements k < length of n rows r; a constant number of rows is a loop without a branch. */
#define CBN_COPY_ROWS(type, n, to_element, from_element)                                           \
    for (ptrdiff_t k = 0; k < length; ++k) {                                                       \
        for (ptrdiff_t r = 0; r < (n); ++r) {                                                      \
            memcpy(to_element, from_element, sizeof(type));                                        \
        }                                                                                          \
    }
#define CBN_COPY_ELEMENTS(to_element, from_element, size)                                          \
    if (size == 4 && rows == CBN_GROUP_ROWS) {                                                     \
        CBN_COPY_ROWS(uint32_t, CBN_GROUP_ROWS, to_element, from_element)                          \
    } else if (size == 4) {                                                                        \
        CBN_COPY_ROWS(uint32_t, rows, to_element, from_element)                                    \
    } else {                                                                                       \
        CBN_COPY_ROWS(uint64_t, rows, to_element, from_element)                                    \
    }

/* Pieces of all rows side by side, so that a line that several rows share is loaded once: forward
 * of Fortran-ordered 4096 x 512 took 10 times as long by one row after the other. */
static void move_rows(const cbn_access *access, void *const *copies, ptrdiff_t rows,
                      ptrdiff_t position, ptrdiff_t step, ptrdiff_t column, ptrdiff_t cols,
                      int scatter)
{
    const cbn_array_access *const a = (const cbn_array_access *)(const void *)access;
    const ptrdiff_t size = (ptrdiff_t)a->kernels->itemsize;
    char *there[CBN_GROUP_ROWS], *here[CBN_GROUP_ROWS];
    ptrdiff_t length;
    for (ptrdiff_t done = 0; done < cols; done += length) {
        ptrdiff_t stride = 0;
        length = cols - done;
        for (ptrdiff_t r = 0; r < rows; ++r) {
            const piece p = piece_at(a, position + r * step, column + done, cols - done);
            there[r] = p.data;
            here[r] = (char *)copies[r] + done * size;
            length = least(length, p.length);
            stride = p.step;
        }
        if (scatter) {
            CBN_COPY_ELEMENTS(there[r] + k * stride, here[r] + k * size, size)
        } else {
            CBN_COPY_ELEMENTS(here[r] + k * size, there[r] + k * stride, size)
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
