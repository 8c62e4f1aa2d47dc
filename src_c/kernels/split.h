/* Per-channel float64 numbers in the working type, for the kernels below. */

/* mean + mean_low = high + low: x - high is exact for x near the mean, low is what it left out. */
static void CBN_NAME(split_mean)(CBN_WORK *high, CBN_WORK *low, const cbn_channels *channels,
                                 ptrdiff_t cols)
{
    const double *const mean = channels->mean, *const mean_low = channels->mean_low;
    CBN_SIMD
    for (ptrdiff_t j = 0; j < cols; ++j) {
        high[j] = (CBN_WORK)mean[j];
        low[j] = (CBN_WORK)((mean[j] - (double)high[j]) + mean_low[j]);
    }
}

static void CBN_NAME(round_to_work)(CBN_WORK *to, const double *from, ptrdiff_t cols)
{
    CBN_SIMD
    for (ptrdiff_t j = 0; j < cols; ++j) {
        to[j] = (CBN_WORK)from[j];
    }
}
