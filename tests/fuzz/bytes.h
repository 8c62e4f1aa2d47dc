/* Decisions and numbers from the bytes of a fuzzer; what has run out is decided by zeros. */
#ifndef FUZZ_BYTES_H
#define FUZZ_BYTES_H

#include <stddef.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

typedef struct bytes {
    const uint8_t *at;
    size_t left;
    uint64_t state; /* of the numbers that no byte is spent on */
} bytes;

/* A number below n <= 256. */
static uint32_t take(bytes *from, uint32_t n)
{
    if (from->left == 0) {
        return 0;
    }
    --from->left;
    from->state = (from->state ^ *from->at) * 0x100000001B3u;
    return *from->at++ % n;
}

/* splitmix64 */
static uint64_t random_bits(bytes *from)
{
    uint64_t z = from->state += 0x9E3779B97F4A7C15u;
    z = (z ^ (z >> 30)) * 0xBF58476D1CE4E5B9u;
    z = (z ^ (z >> 27)) * 0x94D049BB133111EBu;
    return z ^ (z >> 31);
}

/* Of exactly that size, for the address sanitizer to see its ends. */
static void *new_memory(size_t size)
{
    void *const memory = malloc(size > 0 ? size : 1);
    if (memory == NULL) {
        fprintf(stderr, "no memory\n");
        exit(1);
    }
    return memory;
}

static char *copy_of(const char *memory, size_t size)
{
    return memcpy(new_memory(size), memory, size);
}

typedef enum kind { ORDINARY, CONSTANT, FAR, HUGE_AND_TINY, ANY_BITS, KINDS } kind;

static double next_double(bytes *from, kind of)
{
    const uint64_t bits = random_bits(from);
    const double unit = (double)(bits >> 11) * 0x1p-53 - 0.5;
    double value = unit;
    switch (of) {
    case ORDINARY:
        return 4 * unit;
    case CONSTANT:
        return 0.7;
    case FAR:
        return 1e6 + unit;
    case HUGE_AND_TINY:
        return unit * (bits & 1 ? 1e30 : 1e-30);
    default:
        memcpy(&value, &bits, sizeof value);
        return value;
    }
}

static void fill_doubles(bytes *from, double *to, ptrdiff_t count, int positive)
{
    const kind of = (kind)take(from, KINDS);
    for (ptrdiff_t j = 0; j < count; ++j) {
        const double value = next_double(from, of);
        to[j] = positive && value < 0 ? -value : value;
    }
}

#endif
