/* The bits of float16 and bfloat16, one value at a time and in plain integer arithmetic, which
 * vectorises. Rounding is to nearest, ties to even; every float16 and bfloat16 is a float32. */
#ifndef CBN_HALF_H
#define CBN_HALF_H

#include <stdint.h>
#include <string.h>

#include "../compiler.h"

CBN_INLINE float cbn_float_of_bits(uint32_t bits)
{
    float value;
    memcpy(&value, &bits, sizeof value);
    return value;
}

CBN_INLINE uint32_t cbn_bits_of_float(float value)
{
    uint32_t bits;
    memcpy(&bits, &value, sizeof bits);
    return bits;
}

/* The exponent of float16 is at home in the lower bits of float32's: 2^112 moves it there. */
CBN_INLINE float cbn_from_f16(uint16_t half)
{
    const uint32_t size = half & 0x7fffu;
    const uint32_t finite = cbn_bits_of_float(cbn_float_of_bits(size << 13) * 0x1p112f);
    const uint32_t bits = size >= 0x7c00u ? size << 13 | 0x7f800000u : finite;
    return cbn_float_of_bits(bits | (uint32_t)(half & 0x8000u) << 16);
}

CBN_INLINE uint16_t cbn_to_f16(float value)
{
    const uint32_t bits = cbn_bits_of_float(value), size = bits & 0x7fffffffu;
    /* from 2^-14 on the lost 13 bits are rounded by hand, below by adding 1/2, whose last bit is
     * that of the smallest float16 */
    const uint32_t normal = (size + 0xfffu + (size >> 13 & 1u) - 0x38000000u) >> 13;
    const uint32_t subnormal = cbn_bits_of_float(cbn_float_of_bits(size) + 0.5f) - 0x3f000000u;
    const uint32_t finite = size < 0x38800000u ? subnormal : normal;
    const uint32_t capped = size >= 0x47800000u ? 0x7c00u : finite;
    return (uint16_t)((size > 0x7f800000u ? 0x7e00u : capped) | (bits >> 16 & 0x8000u));
}

CBN_INLINE float cbn_from_bf16(uint16_t half) { return cbn_float_of_bits((uint32_t)half << 16); }

CBN_INLINE uint16_t cbn_to_bf16(float value)
{
    const uint32_t bits = cbn_bits_of_float(value);
    const uint32_t rounded = bits + 0x7fffu + (bits >> 16 & 1u);
    return (uint16_t)((value != value ? bits | 0x400000u : rounded) >> 16);
}

#endif
