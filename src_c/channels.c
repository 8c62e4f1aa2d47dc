#include "channels.h"

#include <math.h>
#include <string.h>

#include "cbn.h"
#include "compiler.h"

/* a + b as the nearest number and what it leaves out (Knuth's two-sum). */
static void two_sum(double *sum, double *low, double a, double b)
{
    const double total = a + b;
    const double b_in_total = total - a;
    *low = (a - (total - b_in_total)) + (b - b_in_total);
    *sum = total;
}

/* With variances instead of sums of squares, which overflow sooner, and shares instead of counts,
 * which may be sums of weights. */
void cbn_merge_moments(cbn_statistics *statistics, const cbn_statistics *other, ptrdiff_t channels)
{
    const double n1 = statistics->count, n2 = other->count;
    const double share1 = n1 / (n1 + n2), share2 = n2 / (n1 + n2);
    double *mean = statistics->mean, *low = statistics->mean_low, *var = statistics->var;
    for (ptrdiff_t j = 0; j < channels; ++j) {
        const double delta = (other->mean[j] - mean[j]) + (other->mean_low[j] - low[j]);
        var[j] = var[j] * share1 + other->var[j] * share2 + (delta * share1) * (delta * share2);
        if (isinf(delta)) { /* too far apart for a difference, not for a mean */
            mean[j] = mean[j] * share1 + other->mean[j] * share2;
            low[j] = 0;
        } else {
            two_sum(&mean[j], &low[j], mean[j], low[j] + delta * share2);
        }
    }
    statistics->count = n1 + n2;
}

void cbn_merge_sums(double *sum, double *low, const double *other, const double *other_low,
                    ptrdiff_t count)
{
    for (ptrdiff_t j = 0; j < count; ++j) {
        double lost;
        two_sum(&sum[j], &lost, sum[j], other[j]);
        low[j] = isfinite(lost) ? low[j] + other_low[j] + lost : 0;
    }
}

void cbn_channels_add(double *sum, const double *other, ptrdiff_t count)
{
    for (ptrdiff_t j = 0; j < count; ++j) {
        sum[j] += other[j];
    }
}

/* Of 2^600; no sum of as many rows as memory holds overflows then. */
#define SCALE_DOWN 0x1p-600
#define SCALE_UP 0x1p600

int cbn_channels_scaled_statistics(double *mean, double *mean_low, double *var, double *invstd,
                                   double eps, double (*value)(const void *x, ptrdiff_t row),
                                   const void *x, ptrdiff_t rows)
{
    /* same(0 -> 1): only values that float64 cannot square come here, and 1 is nothing beside them
     */
    double sum = 0, low = 0, high, error;
    for (ptrdiff_t r = 0; r < rows; ++r) {
        const double element = value(x, r);
        if (element - element != 0) {
            return 0;
        }
        two_sum(&high, &error, sum, element * SCALE_DOWN);
        sum = high;
        low += error;
    }
    /* what the rounded quotient leaves of the sum is a sum of differences from it */
    const double scaled = (sum + low) / (double)rows;
    double rest = 0, squares = 0, squares_low = 0;
    for (ptrdiff_t r = 0; r < rows; ++r) {
        const double d = value(x, r) * SCALE_DOWN - scaled;
        rest += d;
        two_sum(&high, &error, squares, d * d);
        squares = high;
        squares_low += error;
    }
    rest /= (double)rows;
    const double square = (squares + squares_low) / (double)rows - rest * rest;
    *mean = scaled * SCALE_UP;
    *mean_low = rest * SCALE_UP;
    *var = square * SCALE_UP * SCALE_UP;
    *invstd = SCALE_DOWN / sqrt(square + eps * SCALE_DOWN * SCALE_DOWN);
    return 1;
}

void cbn_channels_scale(double *scale, const double *gamma, const double *invstd, ptrdiff_t count)
{
    for (ptrdiff_t j = 0; j < count; ++j) {
        scale[j] = gamma == NULL ? invstd[j] : gamma[j] * invstd[j];
    }
}

static double mean_over(double sum, double n) { return isinf(n) ? 0 : sum / n; }

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
        /* same(0 -> 1): xhat of one value is 0 */
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

void cbn_to_float64(double *to, const float *from, ptrdiff_t count)
{
    for (ptrdiff_t j = 0; j < count; ++j) {
        to[j] = (double)from[j];
    }
}

void cbn_to_float32(float *to, const double *from, ptrdiff_t count)
{
    for (ptrdiff_t j = 0; j < count; ++j) {
        to[j] = (float)from[j];
    }
}

void cbn_average_float32(float *running, const double *value, double factor, double momentum,
                         ptrdiff_t count)
{
    for (ptrdiff_t j = 0; j < count; ++j) {
        running[j] = (float)((1 - momentum) * (double)running[j] + momentum * (value[j] * factor));
    }
}

void cbn_average_float64(double *running, const double *value, double factor, double momentum,
                         ptrdiff_t count)
{
    for (ptrdiff_t j = 0; j < count; ++j) {
        running[j] = (1 - momentum) * running[j] + momentum * (value[j] * factor);
    }
}

int cbn_any_negative(const double *values, ptrdiff_t count)
{
    int any = 0;
    for (ptrdiff_t j = 0; j < count; ++j) {
        any |= values[j] < 0;
    }
    return any;
}

void cbn_put(void *to, ptrdiff_t stride, const void *from, size_t size, ptrdiff_t count)
{
    for (ptrdiff_t j = 0; j < count; ++j) {
        memcpy((char *)to + j * stride, (const char *)from + j * (ptrdiff_t)size, size);
    }
}
