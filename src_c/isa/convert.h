/* Runs of float16 by the instructions of the tier, where it has them. */
#ifndef CBN_CONVERT_H
#define CBN_CONVERT_H

#include <stddef.h>

#include "../dtypes/half.h"

#if defined(__F16C__)
#include <immintrin.h>

CBN_UNUSED static void cbn_widen_f16(float *to, const uint16_t *from, ptrdiff_t n)
{
    ptrdiff_t i = 0;
    for (; i + 8 <= n; i += 8) {
        const __m128i half = _mm_loadu_si128((const __m128i *)(const void *)(from + i));
        _mm256_storeu_ps(to + i, _mm256_cvtph_ps(half));
    }
    for (; i < n; ++i) {
        to[i] = cbn_from_f16(from[i]);
    }
}

CBN_UNUSED static void cbn_narrow_f16(uint16_t *to, const float *from, ptrdiff_t n)
{
    ptrdiff_t i = 0;
    for (; i + 8 <= n; i += 8) {
        const __m128i half = _mm256_cvtps_ph(_mm256_loadu_ps(from + i), _MM_FROUND_TO_NEAREST_INT);
        _mm_storeu_si128((__m128i *)(void *)(to + i), half);
    }
    for (; i < n; ++i) {
        to[i] = cbn_to_f16(from[i]);
    }
}
#else
CBN_UNUSED static void cbn_widen_f16(float *to, const uint16_t *from, ptrdiff_t n)
{
    CBN_SIMD
    for (ptrdiff_t i = 0; i < n; ++i) {
        to[i] = cbn_from_f16(from[i]);
    }
}

CBN_UNUSED static void cbn_narrow_f16(uint16_t *to, const float *from, ptrdiff_t n)
{
    CBN_SIMD
    for (ptrdiff_t i = 0; i < n; ++i) {
        to[i] = cbn_to_f16(from[i]);
    }
}
#endif

#endif
