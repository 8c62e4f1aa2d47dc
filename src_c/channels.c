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

static double mean_over(double sum, double n) { return isinf(n) ? 0 : sum / n; }

void cbn_channels_project(double *along, const double *sum, const double *scale, double n,
                          const double *plus, ptrdiff_t count)
{
    for (ptrdiff_t j = 0; j < count; ++j) {
        along[j] = (plus == NULL ? 0 : plus[j]) - scale[j] * mean_over(sum[j], n);
    }
}

void cbn_channels_double_backward(double *c_dy, double *c_ddx, double *c_xhat, double *c_one,
                                  double *g_gamma, const cbn_double_sums *sum, const double *scale,
                                  const double *invstd, const double *ddgamma, double n,
                                  ptrdiff_t count)
{
    const double share = isinf(n) ? 0 : 1 / n;
    for (ptrdiff_t j = 0; j < count; ++j) {
        const double mean_ddx = mean_over(sum->ddx[j], n);
        const double mean_ddx_xhat = mean_over(sum->ddx_xhat[j], n);
        const double e_ddx =
            (sum->dy_ddx[j] - sum->dy[j] * mean_ddx) - sum->dy_xhat[j] * mean_ddx_xhat;
        const double dd = ddgamma == NULL ? 0 : ddgamma[j];
        const double by_dy = invstd[j] * (dd - scale[j] * mean_ddx_xhat);
        const double by_ddx = -scale[j] * invstd[j] * sum->dy_xhat[j];
        const double by_xhat =
            (-by_dy * sum->dy_xhat[j] - by_ddx * mean_ddx_xhat) - scale[j] * invstd[j] * e_ddx;
        const double by_one = -by_dy * sum->dy[j] - by_ddx * mean_ddx;
        /* One value has neither gradient nor curvature; roundings would not quite cancel. */
        const int alive = n != 1;
        c_dy[j] = alive ? by_dy : 0;
        c_ddx[j] = alive ? by_ddx * share : 0;
        c_xhat[j] = alive ? by_xhat * share : 0;
        c_one[j] = alive ? by_one * share : 0;
        g_gamma[j] = alive ? invstd[j] * e_ddx : 0;
    }
}

void cbn_channels_copy(double *to, const double *from, double value, ptrdiff_t count)
{
    for (ptrdiff_t j = 0; j < count; ++j) {
        to[j] = from == NULL ? value : from[j];
    }
}
