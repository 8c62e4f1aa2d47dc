/* sum(dy) = dbeta and sum(dy * xhat) = dgamma of each channel.               docs/math.md (7), (8)
 *
 * The rows give sum(dy) and sum(dy * ((x - high) * power)) of each column, with the mean as
 * high + low and power as the power of two next below invstd. What high left out of the mean, and
 * what power fell short of invstd, is made good once a channel. xhat is computed again from x,
 * since to store it would cost a write and a read of the whole array. */
#ifndef CBN_BACKWARD_SUMS_H
#define CBN_BACKWARD_SUMS_H

#include "reduce.h"
#include "runs.h"

/* The power of two of the same exponent; 0, inf and NaN become 0 and inf. */
CBN_INLINE double power_of_two(double value)
{
    uint64_t bits;
    memcpy(&bits, &value, sizeof bits);
    bits &= 0x7ff0000000000000u;
    memcpy(&value, &bits, sizeof value);
    return value;
}

/* An infinite sum has no rounding error but NaN. */
CBN_INLINE double error_of(double error) { return KEEPS_ERRORS && error == error ? error : 0; }

/* From the sums of the columns to those of the channels. */
static void finish_sums(double *sum_dy_xhat, double *sum_dy, double *const sum[2],
                        double *const error[2], const cbn_channels *channels, ptrdiff_t count)
{
    CBN_SIMD
    for (ptrdiff_t c = 0; c < count; ++c) {
        const double error_s = error_of(error[0][c]), error_t = error_of(error[1][c]);
        const double power = power_of_two(channels->invstd[c]);
        const double high = (double)(work)channels->mean[c];
        const double low = (channels->mean[c] - high + channels->mean_low[c]) * power;
        const double ratio = power == 0 ? 0 : channels->invstd[c] / power;
        sum_dy_xhat[c] = (sum[1][c] + (error_t - low * (sum[0][c] + error_s))) * ratio;
        sum_dy[c] = sum[0][c] + error_s;
    }
}

/* dx is made along with the sums, or past the caches from each row of dy after them. */
static void choose_functions(reduce_job *job)
{
    const cbn_stores stores = job->tile.stores;
    map_function *const past_caches = functions_of_map[CBN_SCALE].one[CBN_PAST_CACHES];
    if (!is_given(&job->dx)) {
        return;
    }
    if (stores == CBN_PAST_CACHES && is_direct(&job->dx) && begin_alike(&job->dx)) {
        job->map_dx = past_caches;
    }
    if (job->map_dx == NULL) {
        job->function = sums_dx_functions;
    }
}

/* The sums of the channels of a tile, all of them in the working type. */
static void backward_sums_range(double *sum_dy_xhat, double *sum_dy, cbn_rows dx, cbn_rows dy,
                                cbn_rows x, cbn_tile tile, const cbn_channels *channels)
{
    const ptrdiff_t cols = tile.cols, count = channels_of_tile(&tile);
    work *const high = scratch_at(&tile, SUMS_HIGH), *const power = scratch_at(&tile, SUMS_POWER);
    work *const scale = scratch_at(&tile, SUMS_SCALE);
    element *const zeros = scratch_at(&tile, SUMS_ZEROS);
    /* Threads would write side by side in the arrays of the results, every four rows, and wait for
     * each other [sums-in-scratch]. */
    double *const sum[2] = {scratch_at(&tile, SUMS_SUM), scratch_at(&tile, SUMS_SUM + 1)};
    double *const error[2] = {scratch_at(&tile, SUMS_ERROR), scratch_at(&tile, SUMS_ERROR + 1)};
    CBN_SIMD
    for (ptrdiff_t c = 0; c < count; ++c) {
        high[c] = (work)channels->mean[c];
        power[c] = (work)power_of_two(channels->invstd[c]);
        scale[c] = (work)channels->scale[c];
    }
    spread_over_runs(high, &tile);
    spread_over_runs(power, &tile);
    spread_over_runs(scale, &tile);
    if (tile.rows % SUMS_ROWS != 0) {
        memset(zeros, 0, (size_t)cols * sizeof *zeros);
    }
    reduce_job job;
    start_job(&job, sums_functions, SUMS_ROWS, &tile);
    job.x = x;
    job.dy = dy;
    job.dx = dx;
    job.x_slot = SUMS_X;
    job.dy_slot = SUMS_DY;
    job.dx_slot = SUMS_DX;
    job.missing_dy = zeros;
    job.missing_dx = scratch_at(&tile, SUMS_SPARE_DX);
    job.numbers.high = high;
    job.numbers.power = power;
    job.numbers.scale = scale;
    job.numbers.s = scratch_at(&tile, SUMS_S);
    job.numbers.t = scratch_at(&tile, SUMS_T);
    start_sums(&job, sum, error);
    choose_functions(&job);
    reduce_blocks(&job);
    if (job.map_dx != NULL) {
        finish_stores(tile.stores);
    }
    for (int k = 0; k < 2; ++k) {
        sum_of_runs(sum[k], &tile);
        if (KEEPS_ERRORS) {
            sum_of_runs(error[k], &tile);
        }
    }
    finish_sums(sum_dy_xhat, sum_dy, sum, error, channels, count);
}

#endif
