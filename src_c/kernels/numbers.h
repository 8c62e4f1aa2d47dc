/* What all kernels need of numbers and of pointers. */
#ifndef CBN_NUMBERS_H
#define CBN_NUMBERS_H

#include <math.h>
#include <stddef.h>
#include <stdint.h>
#include <string.h>

#include "../compiler.h"

/* same(< -> <=): either of two equal numbers is the least */
CBN_INLINE ptrdiff_t cbn_least(ptrdiff_t a, ptrdiff_t b) { return a < b ? a : b; }

/* sum + low += term, exact but for the rounding of low (Knuth's two-sum). */
CBN_INLINE void cbn_two_sum(double *sum, double *low, double term)
{
    const double total = *sum + term;
    const double term_in_total = total - *sum;
    *low += (*sum - (total - term_in_total)) + (term - term_in_total);
    *sum = total;
}

#endif
