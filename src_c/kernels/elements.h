/* Elements from memory to the form the kernels take, and back. What has no fast way goes through a
 * block of bits. The tier brings cbn_widen_f16, cbn_narrow_f16 and cbn_narrow_bf16. */
#ifndef CBN_ELEMENTS_H
#define CBN_ELEMENTS_H

#include "../dtypes/half.h"
#include "common.h"

CBN_INLINE uint16_t cbn_swap_16(uint16_t bits) { return (uint16_t)(bits << 8 | bits >> 8); }

CBN_INLINE uint32_t cbn_swap_32(uint32_t bits)
{
    return (uint32_t)cbn_swap_16((uint16_t)bits) << 16 | cbn_swap_16((uint16_t)(bits >> 16));
}

CBN_INLINE uint64_t cbn_swap_64(uint64_t bits)
{
    return (uint64_t)cbn_swap_32((uint32_t)bits) << 32 | cbn_swap_32((uint32_t)(bits >> 32));
}

/* load and store for elements of `bits` bits that are moved as they are. */
#define CBN_MOVE(dtype, bits)                                                                      \
    CBN_UNUSED static void CBN_JOIN(load, dtype, CBN_ISA)(                                         \
        void *to_, const char *from, ptrdiff_t stride, int swapped, ptrdiff_t n)                   \
    {                                                                                              \
        uint##bits##_t *const to = to_;                                                            \
        /* same(8 -> 9): speed alone */                                                            \
        if (stride == bits / 8) {                                                                  \
            memcpy(to, from, (size_t)n * sizeof *to);                                              \
        } else {                                                                                   \
            /* same(< -> <=): sanitizers see the read past the end */                              \
            for (ptrdiff_t i = 0; i < n; ++i) {                                                    \
                memcpy(&to[i], from + i * stride, sizeof *to);                                     \
            }                                                                                      \
        }                                                                                          \
        /* same(< -> <=): sanitizers see the read past the end */                                  \
        for (ptrdiff_t i = 0; swapped && i < n; ++i) {                                             \
            to[i] = cbn_swap_##bits(to[i]);                                                        \
        }                                                                                          \
    }                                                                                              \
    CBN_UNUSED static void CBN_JOIN(store, dtype, CBN_ISA)(                                        \
        char *to, const void *from_, ptrdiff_t stride, int swapped, ptrdiff_t n)                   \
    {                                                                                              \
        const uint##bits##_t *const from = from_;                                                  \
        if (stride == bits / 8 && !swapped) {                                                      \
            memcpy(to, from, (size_t)n * sizeof *from);                                            \
            return;                                                                                \
        }                                                                                          \
        /* same(< -> <=): sanitizers see the read past the end */                                  \
        for (ptrdiff_t i = 0; i < n; ++i) {                                                        \
            const uint##bits##_t element = swapped ? cbn_swap_##bits(from[i]) : from[i];           \
            memcpy(to + i * stride, &element, sizeof element);                                     \
        }                                                                                          \
    }

CBN_MOVE(bits16, 16)
CBN_MOVE(f32, 32)
CBN_MOVE(f64, 64)

CBN_UNUSED static void CBN_JOIN(widen, bf16, CBN_ISA)(float *to, const uint16_t *from, ptrdiff_t n)
{
    CBN_SIMD
    /* same(< -> <=): sanitizers see the read past the end */
    for (ptrdiff_t i = 0; i < n; ++i) {
        to[i] = cbn_from_bf16(from[i]);
    }
}

#define CBN_HALF_BLOCK 256

/* load and store for half types. */
#define CBN_HALF(dtype, widen, narrow)                                                             \
    CBN_UNUSED static void CBN_JOIN(load, dtype, CBN_ISA)(                                         \
        void *to_, const char *from, ptrdiff_t stride, int swapped, ptrdiff_t n)                   \
    {                                                                                              \
        float *const to = to_;                                                                     \
        uint16_t block[CBN_HALF_BLOCK];                                                            \
        /* same(0 -> 1): both ways serve; the sanitizers see unaligned reads */                    \
        if (stride == sizeof *block && !swapped && (uintptr_t)from % sizeof *block == 0) {         \
            widen(to, (const uint16_t *)(const void *)from, n);                                    \
            return;                                                                                \
        }                                                                                          \
        /* same(< -> <=): sanitizers see the read past the end */                                  \
        for (ptrdiff_t i = 0, m; i < n; i += m) {                                                  \
            m = cbn_least(n - i, CBN_HALF_BLOCK);                                                  \
            CBN_JOIN(load, bits16, CBN_ISA)(block, from + i * stride, stride, swapped, m);         \
            widen(to + i, block, m);                                                               \
        }                                                                                          \
    }                                                                                              \
    CBN_UNUSED static void CBN_JOIN(store, dtype, CBN_ISA)(                                        \
        char *to, const void *from_, ptrdiff_t stride, int swapped, ptrdiff_t n)                   \
    {                                                                                              \
        const float *const from = from_;                                                           \
        uint16_t block[CBN_HALF_BLOCK];                                                            \
        /* same(0 -> 1): both ways serve; the sanitizers see unaligned reads */                    \
        if (stride == sizeof *block && !swapped && (uintptr_t)to % sizeof *block == 0) {           \
            narrow((uint16_t *)(void *)to, from, n);                                               \
            return;                                                                                \
        }                                                                                          \
        /* same(< -> <=): sanitizers see the read past the end */                                  \
        for (ptrdiff_t i = 0, m; i < n; i += m) {                                                  \
            m = cbn_least(n - i, CBN_HALF_BLOCK);                                                  \
            narrow(block, from + i, m);                                                            \
            CBN_JOIN(store, bits16, CBN_ISA)(to + i * stride, block, stride, swapped, m);          \
        }                                                                                          \
    }

CBN_HALF(f16, cbn_widen_f16, cbn_narrow_f16)
CBN_HALF(bf16, CBN_JOIN(widen, bf16, CBN_ISA), cbn_narrow_bf16)

#endif
