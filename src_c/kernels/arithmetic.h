/* The float64 arithmetic on per-channel numbers of every call: partial results are merged and
 * become statistics and coefficients. It is compiled for each tier, because its divisions and
 * square roots count in calls with few rows and are made faster by wide vectors [tier-arithmetic].
 * Each is rounded correctly on every tier. */
#ifndef CBN_ARITHMETIC_H
#define CBN_ARITHMETIC_H

#include "kernels.h"
#include "numbers.h"

static void merge_moments(double *base, double *offset, double *m2, const double *base2,
                          const double *offset2, const double *m2_2, ptrdiff_t n1, ptrdiff_t n2,
                          ptrdiff_t count)
{
    const double share = (double)n2 / ((double)n1 + (double)n2);
    const double spread = (double)n1 * share;
    CBN_SIMD
    for (ptrdiff_t j = 0; j < count; ++j) {
        const double delta = (base2[j] - base[j]) + (offset2[j] - offset[j]);
        double mean = base[j], low = 0;
        cbn_two_sum(&mean, &low, offset[j] + delta * share);
        base[j] = mean;
        offset[j] = low;
        m2[j] += m2_2[j] + delta * delta * spread;
    }
}

static void statistics(double *mean, double *mean_low, double *var, const double *base,
                       const double *offset, const double *m2, ptrdiff_t rows, ptrdiff_t count)
{
    CBN_SIMD
    for (ptrdiff_t j = 0; j < count; ++j) {
        double high = base[j], low = 0;
        cbn_two_sum(&high, &low, offset[j]);
        mean[j] = high;
        mean_low[j] = low;
        var[j] = m2[j] / (double)rows;
    }
}

static void invstd(double *invstd, const double *var, double eps, ptrdiff_t count)
{
    CBN_SIMD
    for (ptrdiff_t j = 0; j < count; ++j) {
        const double square = var[j] + eps, inverse = 1 / sqrt(square);
        invstd[j] = square == 0 ? 0 : inverse;
    }
}

static void project(double *along, const double *sum, const double *scale, double n,
                    const double *plus, ptrdiff_t count)
{
    const int fixed = isinf(n);
    if (plus == NULL) {
        memset(along, 0, (size_t)count * sizeof *along);
        plus = along;
    }
    CBN_SIMD
    for (ptrdiff_t j = 0; j < count; ++j) {
        const double share = sum[j] / n;
        along[j] = plus[j] - scale[j] * (fixed ? 0 : share);
    }
}

const cbn_arithmetic CBN_OF_TIER(cbn_arithmetic) = {
    .merge_moments = merge_moments,
    .statistics = statistics,
    .invstd = invstd,
    .project = project,
};

#endif
