/* Shared by the kernel templates of one ISA tier. */
#ifndef CBN_COMMON_H
#define CBN_COMMON_H

#include <math.h>
#include <string.h>

#include "../compiler.h"
#include "kernels.h"

#define CBN_NAME(verb) CBN_JOIN(verb, CBN_DTYPE, CBN_ISA)

/* The i-th scratch array of a tile, of any type up to the size of a double. */
#define CBN_SCRATCH(type, i) ((type *)((char *)tile.work + (i) * CBN_STRIP * sizeof(double)))

#define CBN_ROW(in, r) ((const CBN_ELEMENT *)((in).data + (r) * (in).stride))
#define CBN_OUT_ROW(out, r) ((CBN_ELEMENT *)((out).data + (r) * (out).stride))

/* Moves an input or output past its first `count` channels. */
#define CBN_SKIP(array, count) ((array).data += (count) * (ptrdiff_t)sizeof(CBN_ELEMENT))

/* sum + low += term, exact but for the rounding of low (Knuth). */
CBN_INLINE void cbn_two_sum(double *sum, double *low, double term)
{
    const double total = *sum + term;
    const double term_in_total = total - *sum;
    *low += (*sum - (total - term_in_total)) + (term - term_in_total);
    *sum = total;
}

/* Float32 arithmetic serves a channel whose mean and factors neither overflow nor lose bits to
 * underflow with any float32 of interest; up to 2^102 no x - mean of finite float32 overflows.
 * NaN counts as ordinary: it spoils its channel either way. */
CBN_INLINE int cbn_extreme_factor(const double *factor, ptrdiff_t j)
{
    const double size = fabs(factor[j]);
    return (size > 0x1p100) | ((size < 0x1p-120) & (size > 0));
}

CBN_INLINE int cbn_extreme(const cbn_channels *channels, ptrdiff_t j)
{
    return (fabs(channels->mean[j]) > 0x1p102) | cbn_extreme_factor(channels->invstd, j) |
           cbn_extreme_factor(channels->scale, j) | cbn_extreme_factor(channels->along_xhat, j);
}

/* The length of the run of channels that are extreme (then `wide` is 1), or not, throughout. The
 * first loop vectorises and settles nearly every call. */
CBN_UNUSED static ptrdiff_t cbn_run(int *wide, const cbn_channels *channels, ptrdiff_t cols)
{
    int any = 0;
    for (ptrdiff_t j = 0; j < cols; ++j) {
        any |= cbn_extreme(channels, j);
    }
    if (!any) {
        *wide = 0;
        return cols;
    }
    *wide = cbn_extreme(channels, 0);
    ptrdiff_t j = 1;
    while (j < cols && cbn_extreme(channels, j) == *wide) {
        ++j;
    }
    return j;
}

CBN_UNUSED static void cbn_skip(cbn_channels *channels, ptrdiff_t count)
{
    channels->mean += count;
    channels->mean_low += count;
    channels->invstd += count;
    channels->scale += count;
    channels->along_xhat += count;
    channels->along_one += count;
}

#endif
