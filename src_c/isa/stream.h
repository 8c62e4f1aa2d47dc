/* Stores past the caches: a line that is not read soon is not worth the read that an ordinary store
 * causes, nor a place in the cache. */
#ifndef CBN_STREAM_H
#define CBN_STREAM_H

#include <stddef.h>
#include <stdint.h>
#include <string.h>

#include "../compiler.h"

#if CBN_X86_64
#include <immintrin.h>

/* One line, `to` at its beginning. */
CBN_INLINE void cbn_stream_line(void *to, const void *from)
{
#if defined(__AVX512F__)
    /* uncovered: it needs AVX-512 */
    _mm512_stream_si512((__m512i *)to, _mm512_loadu_si512(from));
#elif defined(__AVX2__)
    _mm256_stream_si256((__m256i *)to, _mm256_loadu_si256((const __m256i *)from));
    _mm256_stream_si256((__m256i *)to + 1, _mm256_loadu_si256((const __m256i *)from + 1));
#else
    for (int i = 0; i < 4; ++i) {
        _mm_stream_si128((__m128i *)to + i, _mm_loadu_si128((const __m128i *)from + i));
    }
#endif
}

/* Before another thread may look. */
CBN_INLINE void cbn_stream_end(void) { _mm_sfence(); }
#else
CBN_INLINE void cbn_stream_line(void *to, const void *from) { memcpy(to, from, CBN_LINE_BYTES); }

CBN_INLINE void cbn_stream_end(void) {}
#endif

/* Any number of bytes; broken lines at the ends are stored as usual. */
CBN_UNUSED static void cbn_stream(char *to, const char *from, size_t size)
{
    const size_t to_line = (size_t)((0 - (uintptr_t)to) % CBN_LINE_BYTES);
    size_t i = to_line < size ? to_line : size;
    memcpy(to, from, i);
    for (; i + CBN_LINE_BYTES <= size; i += CBN_LINE_BYTES) {
        cbn_stream_line(to + i, from + i);
    }
    memcpy(to + i, from + i, size - i);
}

#endif
