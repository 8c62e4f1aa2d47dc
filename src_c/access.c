#include "access.h"

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
    return (cbn_array_access){.access = {locate, read_row, write_row},
                              .array = array,
                              .kernels = kernels,
                              .positions = positions,
                              .run = run,
                              .native = cbn_is_native(array, kernels->itemsize),
                              .dense = positions == NULL && is_dense(array, itemsize, run)};
}
