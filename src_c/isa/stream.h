/* Stores past the caches: a line that is not read soon is not worth the read that an ordinary store
 * causes, nor a place in the cache. */
#ifndef CBN_STREAM_H
#define CBN_STREAM_H

#include <stddef.h>
#include <stdint.h>
#include <string.h>

#include "../compiler.h"

#if CBN_X86_64
#include <emmintrin.h>

CBN_UNUSED static void cbn_stream(char *to, const char *from, size_t size)
{
    const size_t to_line = (size_t)(-(uintptr_t)to % 64);
    const size_t head = to_line < size ? to_line : size;
    memcpy(to, from, head);
    size_t i = head;
    for (; i + 64 <= size; i += 64) {
        for (size_t j = i; j < i + 64; j += 16) {
            _mm_stream_si128((__m128i *)(to + j), _mm_loadu_si128((const __m128i *)(from + j)));
        }
    }
    memcpy(to + i, from + i, size - i);
}

/* Before another thread may look. */
CBN_INLINE void cbn_stream_end(void) { _mm_sfence(); }
#else
CBN_INLINE void cbn_stream(char *to, const char *from, size_t size) { memcpy(to, from, size); }

CBN_INLINE void cbn_stream_end(void) {}
#endif

#endif
