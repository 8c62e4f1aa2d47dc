/* The control and status register of the processor's floating point, as the caller's thread has it:
 * rounding, exceptions, and whether subnormal numbers are flushed to zero. */
#define EXPORT __attribute__((visibility("default")))

#if defined(__x86_64__)
#include <immintrin.h>

/* Without the six flags that arithmetic raises. */
EXPORT unsigned cbn_float_control(void) { return _mm_getcsr() & ~0x3fu; }
#elif defined(__aarch64__)
EXPORT unsigned cbn_float_control(void)
{
    unsigned long control;
    __asm__ volatile("mrs %0, fpcr" : "=r"(control));
    return (unsigned)control;
}
#endif
