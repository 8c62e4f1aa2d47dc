#include "floor.h"

#include <stdint.h>
#include <string.h>

#if defined(__x86_64__) || defined(_M_X64)
#include <emmintrin.h>
#define HAS_NON_TEMPORAL 1
#else
#define HAS_NON_TEMPORAL 0
#endif

#define LINE 64

typedef unsigned char byte;

static void ordinary(byte *restrict out, const byte *restrict a, const byte *restrict b,
                     size_t size)
{
    if (!b) {
        memcpy(out, a, size);
        return;
    }
    for (size_t i = 0; i < size; ++i)
        out[i] = a[i] ^ b[i];
}

#if HAS_NON_TEMPORAL
static void past_caches(byte *restrict out, const byte *restrict a, const byte *restrict b,
                        size_t size)
{
    const size_t to_line = (LINE - (uintptr_t)out % LINE) % LINE;
    size_t i = to_line < size ? to_line : size;
    ordinary(out, a, b, i);
    for (; i + LINE <= size; i += LINE) {
        for (size_t j = i; j < i + LINE; j += sizeof(__m128i)) {
            __m128i word = _mm_loadu_si128((const __m128i *)(a + j));
            if (b)
                word = _mm_xor_si128(word, _mm_loadu_si128((const __m128i *)(b + j)));
            _mm_stream_si128((__m128i *)(out + j), word);
        }
    }
    _mm_sfence();
    ordinary(out + i, a + i, b ? b + i : NULL, size - i);
}
#else
#define past_caches ordinary
#endif

void floor_stream(byte *out, const byte *a, const byte *b, size_t size, int threads,
                  int non_temporal)
{
    const size_t part = (size / LINE / (size_t)threads + 1) * LINE;
    int t;
#pragma omp parallel for num_threads(threads) schedule(static, 1) if (threads > 1)
    for (t = 0; t < threads; ++t) {
        const size_t begin = (size_t)t * part;
        if (begin < size) {
            const size_t rest = size - begin;
            (non_temporal ? past_caches : ordinary)(out + begin, a + begin, b ? b + begin : NULL,
                                                    rest < part ? rest : part);
        }
    }
}
