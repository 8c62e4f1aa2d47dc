/* The float64 arithmetic on per-channel numbers that not every call needs, and what is too little
 * to be worth a tier's vectors; the rest is in kernels/arithmetic.h. Loops over channels, and over
 * rows only where float64 overflowed; equation numbers refer to docs/math.md. Every array has
 * `count` channels. */
#ifndef CBN_CHANNELS_H
#define CBN_CHANNELS_H

#include <stddef.h>

void cbn_channels_add(double *sum, const double *other, ptrdiff_t count);

/* Statistics of one float64 channel by scaled arithmetic, for squares past the range of float64.
 * value(x, row) is the channel's value in a row.
 * Returned: 0, and nothing written, if the channel has a value that is not finite. */
int cbn_channels_scaled_statistics(double *mean, double *mean_low, double *var, double *invstd,
                                   double eps, double (*value)(const void *x, ptrdiff_t row),
                                   const void *x, ptrdiff_t rows);

/* scale = gamma * invstd; gamma NULL means ones. */
void cbn_channels_scale(double *scale, const double *gamma, const double *invstd, ptrdiff_t count);

/* The sums that double backward reduces, (51). */
typedef struct cbn_double_sums {
    const double *dy_xhat, *dy, *ddx_xhat, *ddx, *dy_ddx;
} cbn_double_sums;

/* The coefficients of g_x, those of ddx, xhat and one times 1/n, and g_gamma: (52)-(57).
 * scale = gamma * invstd, ddgamma NULL means zeros. */
void cbn_channels_double_backward(double *c_dy, double *c_ddx, double *c_xhat, double *c_one,
                                  double *g_gamma, const cbn_double_sums *sum, const double *scale,
                                  const double *invstd, const double *ddgamma, double n,
                                  ptrdiff_t count);

/* A copy of `from`, or `value` throughout where from is NULL. */
void cbn_channels_copy(double *to, const double *from, double value, ptrdiff_t count);

#endif
