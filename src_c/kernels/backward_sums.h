/* sum(dy) = dbeta and sum(dy * xhat) = dgamma of each channel.               docs/math.md (7), (8)
 *
 * Four rows at a time as a tree in the working type, over a block of CBN_BLOCK_ROWS rows, then
 * into float64 with the rounding errors kept, which many equal terms would pile up. Sums that
 * overflow float32 are taken again in float64. xhat is recomputed from x: storing it would cost a
 * write and a read of N x D.
 */

/* Rows past the end take dy from a row of zeros. */
static void CBN_NAME(backward_sums_block)(CBN_WORK *s, CBN_WORK *t, cbn_input dy, cbn_input x,
                                          ptrdiff_t rows, ptrdiff_t cols, const CBN_WORK *high,
                                          const CBN_WORK *low, const CBN_WORK *invstd,
                                          const CBN_ELEMENT *zeros)
{
    memset(s, 0, (size_t)cols * sizeof *s);
    memset(t, 0, (size_t)cols * sizeof *t);
    for (ptrdiff_t r = 0; r < rows; r += 4) {
        const ptrdiff_t r1 = r + 1 < rows ? r + 1 : r, r2 = r + 2 < rows ? r + 2 : r;
        const ptrdiff_t r3 = r + 3 < rows ? r + 3 : r;
        const CBN_ELEMENT *const x0 = CBN_ROW(x, r), *const x1 = CBN_ROW(x, r1);
        const CBN_ELEMENT *const x2 = CBN_ROW(x, r2), *const x3 = CBN_ROW(x, r3);
        const CBN_ELEMENT *const g0 = CBN_ROW(dy, r);
        const CBN_ELEMENT *const g1 = r1 > r ? CBN_ROW(dy, r1) : zeros;
        const CBN_ELEMENT *const g2 = r2 > r ? CBN_ROW(dy, r2) : zeros;
        const CBN_ELEMENT *const g3 = r3 > r ? CBN_ROW(dy, r3) : zeros;
        CBN_SIMD
        for (ptrdiff_t j = 0; j < cols; ++j) {
            const CBN_WORK h = high[j], l = low[j], i = invstd[j];
            const CBN_WORK dy0 = CBN_LOAD(g0, j), dy1 = CBN_LOAD(g1, j);
            const CBN_WORK dy2 = CBN_LOAD(g2, j), dy3 = CBN_LOAD(g3, j);
            const CBN_WORK t0 = dy0 * (((CBN_LOAD(x0, j) - h) - l) * i);
            const CBN_WORK t1 = dy1 * (((CBN_LOAD(x1, j) - h) - l) * i);
            const CBN_WORK t2 = dy2 * (((CBN_LOAD(x2, j) - h) - l) * i);
            const CBN_WORK t3 = dy3 * (((CBN_LOAD(x3, j) - h) - l) * i);
            s[j] += (dy0 + dy1) + (dy2 + dy3);
            t[j] += (t0 + t1) + (t2 + t3);
        }
    }
}

static void CBN_NAME(backward_sums_run)(double *sum_dy, double *sum_dy_xhat, cbn_input dy,
                                        cbn_input x, cbn_tile tile, const cbn_channels *channels)
{
    const ptrdiff_t cols = tile.cols;
    CBN_WORK *const s = CBN_SCRATCH(CBN_WORK, 0);
    CBN_WORK *const t = CBN_SCRATCH(CBN_WORK, 1);
    CBN_WORK *const high = CBN_SCRATCH(CBN_WORK, 2);
    CBN_WORK *const low = CBN_SCRATCH(CBN_WORK, 3);
    CBN_WORK *const invstd = CBN_SCRATCH(CBN_WORK, 4);
    CBN_ELEMENT *const zeros = CBN_SCRATCH(CBN_ELEMENT, 5);
    double *const low_dy = CBN_SCRATCH(double, 6);
    double *const low_dy_xhat = CBN_SCRATCH(double, 7);
    CBN_NAME(split_mean)(high, low, channels, cols);
    CBN_NAME(round_to_work)(invstd, channels->invstd, cols);
    memset(zeros, 0, (size_t)cols * sizeof *zeros);
    memset(sum_dy, 0, (size_t)cols * sizeof *sum_dy);
    memset(sum_dy_xhat, 0, (size_t)cols * sizeof *sum_dy_xhat);
    memset(low_dy, 0, (size_t)cols * sizeof *low_dy);
    memset(low_dy_xhat, 0, (size_t)cols * sizeof *low_dy_xhat);
    for (ptrdiff_t start = 0; start < tile.rows; start += CBN_BLOCK_ROWS) {
        const ptrdiff_t left = tile.rows - start;
        const ptrdiff_t n = left < CBN_BLOCK_ROWS ? left : CBN_BLOCK_ROWS;
        const cbn_input dy_block = {dy.data + start * dy.stride, dy.stride};
        const cbn_input x_block = {x.data + start * x.stride, x.stride};
        CBN_NAME(backward_sums_block)(s, t, dy_block, x_block, n, cols, high, low, invstd, zeros);
        CBN_SIMD
        for (ptrdiff_t j = 0; j < cols; ++j) {
            cbn_two_sum(&sum_dy[j], &low_dy[j], (double)s[j]);
            cbn_two_sum(&sum_dy_xhat[j], &low_dy_xhat[j], (double)t[j]);
        }
    }
    CBN_SIMD
    for (ptrdiff_t j = 0; j < cols; ++j) {
        /* an infinite sum has no rounding error but NaN */
        sum_dy[j] += low_dy[j] == low_dy[j] ? low_dy[j] : 0;
        sum_dy_xhat[j] += low_dy_xhat[j] == low_dy_xhat[j] ? low_dy_xhat[j] : 0;
    }
}

#ifdef CBN_WIDE
/* The channels whose sums left the range of float32, once more; one at a time, for they are rare.
 */
static void CBN_NAME(backward_sums_again)(double *sum_dy, double *sum_dy_xhat, cbn_input dy,
                                          cbn_input x, cbn_tile tile, const cbn_channels *channels)
{
    cbn_channels rest = *channels;
    const ptrdiff_t cols = tile.cols;
    tile.cols = 1;
    for (ptrdiff_t j = 0; j < cols; ++j) {
        if (!isfinite(sum_dy[j]) || !isfinite(sum_dy_xhat[j])) {
            CBN_WIDE(backward_sums_run)(sum_dy + j, sum_dy_xhat + j, dy, x, tile, &rest);
        }
        cbn_skip(&rest, 1);
        CBN_SKIP(dy, 1);
        CBN_SKIP(x, 1);
    }
}
#endif

CBN_UNUSED static void CBN_NAME(backward_sums)(double *sum_dy, double *sum_dy_xhat, cbn_input dy,
                                               cbn_input x, cbn_tile tile,
                                               const cbn_channels *channels)
{
#ifdef CBN_WIDE
    cbn_channels rest = *channels;
    for (ptrdiff_t left = tile.cols; left > 0; left -= tile.cols) {
        int wide;
        tile.cols = cbn_run(&wide, &rest, left);
        if (wide) {
            CBN_WIDE(backward_sums_run)(sum_dy, sum_dy_xhat, dy, x, tile, &rest);
        } else {
            CBN_NAME(backward_sums_run)(sum_dy, sum_dy_xhat, dy, x, tile, &rest);
            CBN_NAME(backward_sums_again)(sum_dy, sum_dy_xhat, dy, x, tile, &rest);
        }
        cbn_skip(&rest, tile.cols);
        sum_dy += tile.cols;
        sum_dy_xhat += tile.cols;
        CBN_SKIP(dy, tile.cols);
        CBN_SKIP(x, tile.cols);
    }
#else
    CBN_NAME(backward_sums_run)(sum_dy, sum_dy_xhat, dy, x, tile, channels);
#endif
}
