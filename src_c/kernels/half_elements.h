/* Elements of half types from memory to float32, and back. isa/convert.h has the functions for
 * elements that touch; others go through a block of them that do. */
#ifndef CBN_HALF_ELEMENTS_H
#define CBN_HALF_ELEMENTS_H

#include "../isa/convert.h"
#include "elements.h"

typedef uint16_t half_type;
enum { HALF_SIZE = sizeof(half_type), HALF_BLOCK = 256 };

/* same(0 -> 1): both ways serve; the sanitizers see unaligned reads */
CBN_INLINE int is_block(const void *data, ptrdiff_t stride, int swapped)
{
    return stride == HALF_SIZE && !swapped && (uintptr_t)data % HALF_SIZE == 0;
}

typedef void widen_function(float *to, const half_type *from, ptrdiff_t n);
typedef void narrow_function(half_type *to, const float *from, ptrdiff_t n);

/* Elements that do not touch; load and store take those that do in one call. */
CBN_NOINLINE static void load_strided(float *to, const char *from, ptrdiff_t stride, int swapped,
                                      ptrdiff_t n, widen_function *widen)
{
    half_type block[HALF_BLOCK];
    /* same(< -> <=): sanitizers see the read past the end */
    for (ptrdiff_t i = 0, m; i < n; i += m) {
        m = cbn_least(n - i, HALF_BLOCK);
        move_elements((char *)block, HALF_SIZE, from + i * stride, stride, HALF_SIZE, swapped, m);
        widen(to + i, block, m);
    }
}

CBN_NOINLINE static void store_strided(char *to, const float *from, ptrdiff_t stride, int swapped,
                                       ptrdiff_t n, narrow_function *narrow)
{
    half_type block[HALF_BLOCK];
    /* same(< -> <=): sanitizers see the read past the end */
    for (ptrdiff_t i = 0, m; i < n; i += m) {
        m = cbn_least(n - i, HALF_BLOCK);
        narrow(block, from + i, m);
        move_elements(to + i * stride, stride, (const char *)block, HALF_SIZE, HALF_SIZE, swapped,
                      m);
    }
}

CBN_INLINE void load_half(float *to, const char *from, ptrdiff_t stride, int swapped, ptrdiff_t n,
                          widen_function *widen)
{
    if (is_block(from, stride, swapped)) {
        widen(to, (const half_type *)(const void *)from, n);
    } else {
        load_strided(to, from, stride, swapped, n, widen);
    }
}

CBN_INLINE void store_half(char *to, const float *from, ptrdiff_t stride, int swapped, ptrdiff_t n,
                           narrow_function *narrow)
{
    if (is_block(to, stride, swapped)) {
        narrow((half_type *)(void *)to, from, n);
    } else {
        store_strided(to, from, stride, swapped, n, narrow);
    }
}

static void widen_bf16(float *to, const half_type *from, ptrdiff_t n)
{
    CBN_SIMD
    /* same(< -> <=): sanitizers see the read past the end */
    for (ptrdiff_t i = 0; i < n; ++i) {
        to[i] = cbn_from_bf16(from[i]);
    }
}

static void load_f16(void *to, const char *from, ptrdiff_t stride, int swapped, ptrdiff_t n)
{
    load_half(to, from, stride, swapped, n, cbn_widen_f16);
}

static void store_f16(char *to, const void *from, ptrdiff_t stride, int swapped, ptrdiff_t n)
{
    store_half(to, from, stride, swapped, n, cbn_narrow_f16);
}

static void load_bf16(void *to, const char *from, ptrdiff_t stride, int swapped, ptrdiff_t n)
{
    load_half(to, from, stride, swapped, n, widen_bf16);
}

static void store_bf16(char *to, const void *from, ptrdiff_t stride, int swapped, ptrdiff_t n)
{
    store_half(to, from, stride, swapped, n, cbn_narrow_bf16);
}

#endif
