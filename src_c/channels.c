#include "channels.h"

#include <math.h>

void cbn_channels_merge_moments(double *base, double *offset, double *m2, const double *base2,
                                const double *offset2, const double *m2_2, ptrdiff_t n1,
                                ptrdiff_t n2, ptrdiff_t count)
{
    const double share = (double)n2 / ((double)n1 + (double)n2);
    const double spread = (double)n1 * share;
    for (ptrdiff_t j = 0; j < count; ++j) {
        const double delta = (base2[j] - base[j]) + (offset2[j] - offset[j]);
        offset[j] += delta * share;
        m2[j] += m2_2[j] + delta * delta * spread;
    }
}

void cbn_channels_add(double *sum, const double *other, ptrdiff_t count)
{
    for (ptrdiff_t j = 0; j < count; ++j) {
        sum[j] += other[j];
    }
}

void cbn_channels_statistics(double *mean, double *mean_low, double *var, const double *base,
                             const double *offset, const double *m2, ptrdiff_t rows,
                             ptrdiff_t count)
{
    for (ptrdiff_t j = 0; j < count; ++j) {
        /* Knuth's two-sum */
        const double sum = base[j] + offset[j];
        const double offset_in_sum = sum - base[j];
        mean[j] = sum;
        mean_low[j] = (base[j] - (sum - offset_in_sum)) + (offset[j] - offset_in_sum);
        var[j] = m2[j] / (double)rows;
    }
}

void cbn_channels_invstd(double *invstd, const double *var, double eps, ptrdiff_t count)
{
    for (ptrdiff_t j = 0; j < count; ++j) {
        const double square = var[j] + eps;
        invstd[j] = square == 0 ? 0 : 1 / sqrt(square);
    }
}

void cbn_channels_scale(double *scale, const double *gamma, const double *invstd, ptrdiff_t count)
{
    for (ptrdiff_t j = 0; j < count; ++j) {
        scale[j] = gamma == NULL ? invstd[j] : gamma[j] * invstd[j];
    }
}

void cbn_channels_project(double *along, const double *sum, const double *scale, ptrdiff_t rows,
                          ptrdiff_t count)
{
    for (ptrdiff_t j = 0; j < count; ++j) {
        along[j] = -scale[j] * (sum[j] / (double)rows);
    }
}

void cbn_channels_copy(double *to, const double *from, double value, ptrdiff_t count)
{
    for (ptrdiff_t j = 0; j < count; ++j) {
        to[j] = from == NULL ? value : from[j];
    }
}
