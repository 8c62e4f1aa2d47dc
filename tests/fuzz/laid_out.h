/* Arrays of any shape and dtype in any memory: axes in any order, steps of either sign, gaps,
 * broadcast axes, unaligned elements, swapped bytes. */
#ifndef FUZZ_LAID_OUT_H
#define FUZZ_LAID_OUT_H

#include "bytes.h"
#include "cbn.h"

enum { DIMS = 4 };

typedef struct form {
    cbn_dtype dtype;
    int ndim, axis;
    ptrdiff_t shape[DIMS], size; /* elements */
} form;

typedef struct laid_out {
    cbn_array view;
    char *whole; /* all the memory */
    size_t whole_size;
    ptrdiff_t strides[DIMS];
} laid_out;

static size_t item_of(cbn_dtype dtype)
{
    static const size_t sizes[] = {
        [CBN_FLOAT32] = 4, [CBN_FLOAT64] = 8, [CBN_FLOAT16] = 2, [CBN_BFLOAT16] = 2};
    return sizes[dtype];
}

/* Small, and now and then with axes that are long enough for lanes, runs, chunks and threads. */
static form take_form(bytes *from, int rows_only)
{
    static const ptrdiff_t sizes[] = {1, 2, 3, 4, 5, 7, 8, 9, 16, 17, 31, 33, 49, 64, 100, 257};
    static const ptrdiff_t longer[] = {385, 513, 1024, 1025, 2049, 4097, 8192, 20000};
    form f = {.dtype = (cbn_dtype)take(from, rows_only ? 2 : CBN_DTYPE_COUNT), .size = 1};
    f.ndim = rows_only ? 2 : 2 + (int)take(from, DIMS - 1);
    f.axis = rows_only ? 1 : (int)take(from, (uint32_t)f.ndim);
    const ptrdiff_t most = take(from, 16) == 0 ? 1 << 18 : 1 << 12;
    for (int i = 0; i < f.ndim; ++i) {
        const uint32_t k = take(from, 24);
        const ptrdiff_t wanted = k < 16 ? sizes[k] : longer[k - 16];
        f.shape[i] = wanted * f.size <= most ? wanted : 1;
        f.size *= f.shape[i];
    }
    return f;
}

/* Moves on to the next index in C order; 0 after the last one. */
static int next_index(const form *f, ptrdiff_t *index)
{
    for (int i = f->ndim - 1; i >= 0; --i) {
        if (++index[i] < f->shape[i]) {
            return 1;
        }
        index[i] = 0;
    }
    return 0;
}

static char *element(const laid_out *a, const form *f, const ptrdiff_t *index)
{
    ptrdiff_t offset = 0;
    for (int i = 0; i < f->ndim; ++i) {
        offset += index[i] * a->strides[i];
    }
    return (char *)a->view.data + offset;
}

static laid_out at_strides(const form *f, const ptrdiff_t *strides, ptrdiff_t lead, size_t size)
{
    laid_out a = {.whole_size = size, .whole = new_memory(size), .view = {.dtype = f->dtype}};
    memset(a.whole, 0x5A, size);
    a.view.data = a.whole + lead;
    memcpy(a.strides, strides, sizeof a.strides);
    if (cbn_set_view(&a.view, f->ndim, f->shape, strides, f->axis) != CBN_OK) {
        abort();
    }
    return a;
}

/* Room for an array, its memory as long as its strides need; an output has no two elements at one
 * place. */
static laid_out lay_out(const form *f, bytes *from, int rows_only, int is_output)
{
    const ptrdiff_t item = (ptrdiff_t)item_of(f->dtype);
    ptrdiff_t strides[DIMS] = {0}, reach = item, lead = 0;
    int order[DIMS] = {0, 1, 2, 3};
    for (int i = f->ndim - 1; i > 0 && !rows_only; --i) {
        const int other = (int)take(from, (uint32_t)i + 1), kept = order[i];
        order[i] = order[other];
        order[other] = kept;
    }
    for (int i = f->ndim - 1; i >= 0; --i) {
        const int axis = order[i];
        const uint32_t how = rows_only && axis == 1 ? 0 : take(from, 8);
        const ptrdiff_t length = f->shape[axis] - 1;
        if (how == 7 && !is_output) {
            continue; /* broadcast */
        }
        const ptrdiff_t step = reach + (how & 3) * (rows_only || how == 3 ? item : reach);
        strides[axis] = how & 4 ? -step : step;
        lead += how & 4 ? length * step : 0;
        reach += length * step;
    }
    const ptrdiff_t offset = rows_only ? 0 : (ptrdiff_t)take(from, 3) % item;
    laid_out a = at_strides(f, strides, lead + offset, (size_t)(reach + offset));
    a.view.swapped = rows_only ? 0 : (int)take(from, 4) == 1;
    return a;
}

static void put(const laid_out *a, char *to, const char *from, size_t item)
{
    for (size_t i = 0; i < item; ++i) {
        to[i] = from[a->view.swapped ? item - 1 - i : i];
    }
}

/* The same elements, native and in C order. */
static laid_out plain_copy(const laid_out *a, const form *f)
{
    const size_t item = item_of(f->dtype);
    ptrdiff_t strides[DIMS] = {0}, index[DIMS] = {0}, step = (ptrdiff_t)item;
    for (int i = f->ndim - 1; i >= 0; --i) {
        strides[i] = step;
        step *= f->shape[i];
    }
    laid_out plain = at_strides(f, strides, 0, (size_t)step);
    do {
        put(a, element(&plain, f, index), element(a, f, index), item);
    } while (next_index(f, index));
    return plain;
}

static void fill(laid_out *a, const form *f, bytes *from)
{
    const kind of = (kind)take(from, KINDS);
    const size_t item = item_of(f->dtype);
    ptrdiff_t index[DIMS] = {0};
    do {
        const double value = next_double(from, of);
        const uint64_t any = random_bits(from);
        float single = 0;
        char bits[8] = {0};
        memcpy(bits, &value, sizeof value);
        if (f->dtype == CBN_FLOAT16) { /* any finite number but those below 2^-14, or any bits */
            const uint16_t half = (uint16_t)(of == ANY_BITS ? any : (any & 0xBBFFu) | 0x0400u);
            memcpy(bits, &half, sizeof half);
        } else if (f->dtype != CBN_FLOAT64 && of == ANY_BITS) {
            memcpy(bits, &any, sizeof any);
        } else if (f->dtype != CBN_FLOAT64) {
            single = (float)value;
            memcpy(bits, &single, sizeof single);
        }
        put(a, element(a, f, index), f->dtype == CBN_BFLOAT16 ? bits + 2 : bits, item);
    } while (next_index(f, index));
}

/* Of a NaN only that it is one. */
static uint64_t bits_or_nan(uint64_t bits, cbn_dtype dtype)
{
    static const uint64_t infinity[] = {[CBN_FLOAT32] = 0x7F800000u,
                                        [CBN_FLOAT64] = 0x7FF0000000000000u,
                                        [CBN_FLOAT16] = 0x7C00u,
                                        [CBN_BFLOAT16] = 0x7F80u};
    const uint64_t size = bits & ~((uint64_t)1 << (8 * item_of(dtype) - 1));
    return size > infinity[dtype] ? infinity[dtype] + 1 : bits;
}

static int same_elements(const laid_out *a, const laid_out *b, const form *f)
{
    const size_t item = item_of(f->dtype);
    ptrdiff_t index[DIMS] = {0};
    do {
        uint64_t in_a = 0, in_b = 0;
        put(a, (char *)&in_a, element(a, f, index), item);
        put(b, (char *)&in_b, element(b, f, index), item);
        if (bits_or_nan(in_a, f->dtype) != bits_or_nan(in_b, f->dtype)) {
            return 0;
        }
    } while (next_index(f, index));
    return 1;
}

static int same_doubles(const double *a, const double *b, ptrdiff_t count)
{
    for (ptrdiff_t j = 0; j < count; ++j) {
        uint64_t in_a, in_b;
        memcpy(&in_a, &a[j], sizeof in_a);
        memcpy(&in_b, &b[j], sizeof in_b);
        if (bits_or_nan(in_a, CBN_FLOAT64) != bits_or_nan(in_b, CBN_FLOAT64)) {
            return 0;
        }
    }
    return 1;
}

/* All elements zero, so that what lies between them can be compared. */
static void blank(laid_out *a, const form *f)
{
    ptrdiff_t index[DIMS] = {0};
    do {
        memset(element(a, f, index), 0, item_of(f->dtype));
    } while (next_index(f, index));
}

#endif
