/* Runs of half types by the instructions of the tier, where it has them. */
#ifndef CBN_CONVERT_H
#define CBN_CONVERT_H

#include <stddef.h>

#include "../dtypes/half.h"

#if defined(__F16C__)
#include <immintrin.h>

/* So many are converted by one instruction [halves-at-once]. */
#if defined(__AVX512F__)
enum { CBN_HALVES = 16 };

CBN_INLINE void cbn_widen_some_f16(float *to, const uint16_t *from)
{
    const __m256i half = _mm256_loadu_si256((const __m256i *)(const void *)from);
    _mm512_storeu_ps(to, _mm512_cvtph_ps(half));
}

CBN_INLINE void cbn_narrow_some_f16(uint16_t *to, const float *from)
{
    const __m256i half = _mm512_cvtps_ph(_mm512_loadu_ps(from), _MM_FROUND_TO_NEAREST_INT);
    _mm256_storeu_si256((__m256i *)(void *)to, half);
}
#else
enum { CBN_HALVES = 8 };

CBN_INLINE void cbn_widen_some_f16(float *to, const uint16_t *from)
{
    const __m128i half = _mm_loadu_si128((const __m128i *)(const void *)from);
    _mm256_storeu_ps(to, _mm256_cvtph_ps(half));
}

CBN_INLINE void cbn_narrow_some_f16(uint16_t *to, const float *from)
{
    const __m128i half = _mm256_cvtps_ph(_mm256_loadu_ps(from), _MM_FROUND_TO_NEAREST_INT);
    _mm_storeu_si128((__m128i *)(void *)to, half);
}
#endif

CBN_UNUSED static void cbn_widen_f16(float *to, const uint16_t *from, ptrdiff_t n)
{
    ptrdiff_t i = 0;
    /* Four instructions a turn take less time than one [four-a-turn]. */
    for (; i + 4 * CBN_HALVES <= n; i += 4 * CBN_HALVES) {
        cbn_widen_some_f16(to + i, from + i);
        cbn_widen_some_f16(to + i + CBN_HALVES, from + i + CBN_HALVES);
        cbn_widen_some_f16(to + i + 2 * CBN_HALVES, from + i + 2 * CBN_HALVES);
        cbn_widen_some_f16(to + i + 3 * CBN_HALVES, from + i + 3 * CBN_HALVES);
    }
    for (; i + CBN_HALVES <= n; i += CBN_HALVES) {
        cbn_widen_some_f16(to + i, from + i);
    }
    for (; i < n; ++i) {
        to[i] = cbn_from_f16(from[i]);
    }
}

CBN_UNUSED static void cbn_narrow_f16(uint16_t *to, const float *from, ptrdiff_t n)
{
    ptrdiff_t i = 0;
    for (; i + CBN_HALVES <= n; i += CBN_HALVES) {
        cbn_narrow_some_f16(to + i, from + i);
    }
    for (; i < n; ++i) {
        to[i] = cbn_to_f16(from[i]);
    }
}

#if defined(__AVX512F__)
CBN_INLINE void cbn_narrow_16_bf16(uint16_t *to, const float *from)
{
    const __m512 value = _mm512_loadu_ps(from);
    const __m512i bits = _mm512_castps_si512(value);
    const __m512i odd = _mm512_and_si512(_mm512_srli_epi32(bits, 16), _mm512_set1_epi32(1));
    const __m512i rounded =
        _mm512_add_epi32(_mm512_add_epi32(bits, _mm512_set1_epi32(0x7fff)), odd);
    const __mmask16 nan = _mm512_cmp_ps_mask(value, value, _CMP_UNORD_Q);
    const __m512i chosen = _mm512_mask_or_epi32(rounded, nan, bits, _mm512_set1_epi32(0x400000));
    const __m256i half = _mm512_cvtepi32_epi16(_mm512_srli_epi32(chosen, 16));
    _mm256_storeu_si256((__m256i *)(void *)to, half);
}
#else
/* cbn_to_bf16 of eight, each in the lower half of 32 bits. */
CBN_INLINE __m256i cbn_to_8_bf16(const float *from)
{
    const __m256 value = _mm256_loadu_ps(from);
    const __m256i bits = _mm256_castps_si256(value);
    const __m256i odd = _mm256_and_si256(_mm256_srli_epi32(bits, 16), _mm256_set1_epi32(1));
    const __m256i rounded =
        _mm256_add_epi32(_mm256_add_epi32(bits, _mm256_set1_epi32(0x7fff)), odd);
    const __m256i quiet = _mm256_or_si256(bits, _mm256_set1_epi32(0x400000));
    const __m256 nan = _mm256_cmp_ps(value, value, _CMP_UNORD_Q);
    const __m256 chosen =
        _mm256_blendv_ps(_mm256_castsi256_ps(rounded), _mm256_castsi256_ps(quiet), nan);
    return _mm256_srli_epi32(_mm256_castps_si256(chosen), 16);
}

CBN_INLINE void cbn_narrow_16_bf16(uint16_t *to, const float *from)
{
    const __m256i quarters = _mm256_packus_epi32(cbn_to_8_bf16(from), cbn_to_8_bf16(from + 8));
    _mm256_storeu_si256((__m256i *)(void *)to, _mm256_permute4x64_epi64(quarters, 0xd8));
}
#endif

CBN_UNUSED static void cbn_narrow_bf16(uint16_t *to, const float *from, ptrdiff_t n)
{
    ptrdiff_t i = 0;
    for (; i + 16 <= n; i += 16) {
        cbn_narrow_16_bf16(to + i, from + i);
    }
    for (; i < n; ++i) {
        to[i] = cbn_to_bf16(from[i]);
    }
}
#else
CBN_UNUSED static void cbn_narrow_bf16(uint16_t *to, const float *from, ptrdiff_t n)
{
    CBN_SIMD
    for (ptrdiff_t i = 0; i < n; ++i) {
        to[i] = cbn_to_bf16(from[i]);
    }
}

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
