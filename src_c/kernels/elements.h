/* Elements from memory to where kernels read them, and back. */
#ifndef CBN_ELEMENTS_H
#define CBN_ELEMENTS_H

#include "numbers.h"

CBN_INLINE uint16_t swap_16(uint16_t bits) { return (uint16_t)(bits << 8 | bits >> 8); }

CBN_INLINE uint32_t swap_32(uint32_t bits)
{
    return (uint32_t)swap_16((uint16_t)bits) << 16 | swap_16((uint16_t)(bits >> 16));
}

CBN_INLINE uint64_t swap_64(uint64_t bits)
{
    return (uint64_t)swap_32((uint32_t)bits) << 32 | swap_32((uint32_t)(bits >> 32));
}

/* Moves an element of `size` bytes, a constant, and turns its bytes around if they are swapped. */
CBN_INLINE void move_element(char *to, const char *from, ptrdiff_t size, int swapped)
{
    uint16_t bits16;
    uint32_t bits32;
    uint64_t bits64;
    if (size == 2) {
        memcpy(&bits16, from, sizeof bits16);
        bits16 = swapped ? swap_16(bits16) : bits16;
        memcpy(to, &bits16, sizeof bits16);
    } else if (size == 4) {
        memcpy(&bits32, from, sizeof bits32);
        bits32 = swapped ? swap_32(bits32) : bits32;
        memcpy(to, &bits32, sizeof bits32);
    } else {
        memcpy(&bits64, from, sizeof bits64);
        bits64 = swapped ? swap_64(bits64) : bits64;
        memcpy(to, &bits64, sizeof bits64);
    }
}

/* Elements of `size` bytes that are moved as they are, from one stride to another. */
CBN_INLINE void move_elements(char *to, ptrdiff_t to_stride, const char *from,
                              ptrdiff_t from_stride, ptrdiff_t size, int swapped, ptrdiff_t n)
{
    if (to_stride == size && from_stride == size && !swapped) {
        memcpy(to, from, (size_t)(n * size));
    } else if (swapped) {
        /* same(< -> <=): sanitizers see the read past the end */
        for (ptrdiff_t i = 0; i < n; ++i) {
            move_element(to + i * to_stride, from + i * from_stride, size, 1);
        }
    } else {
        /* same(< -> <=): sanitizers see the read past the end */
        for (ptrdiff_t i = 0; i < n; ++i) {
            move_element(to + i * to_stride, from + i * from_stride, size, 0);
        }
    }
}

static void load_element(void *to, const char *from, ptrdiff_t stride, int swapped, ptrdiff_t n)
{
    const ptrdiff_t size = sizeof(element);
    move_elements(to, size, from, stride, size, swapped, n);
}

static void store_element(char *to, const void *from, ptrdiff_t stride, int swapped, ptrdiff_t n)
{
    const ptrdiff_t size = sizeof(element);
    move_elements(to, stride, from, size, size, swapped, n);
}

#endif
