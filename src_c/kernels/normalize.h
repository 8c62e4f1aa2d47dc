/* y = (x - mean) * scale + along_one, with scale = gamma * invstd and along_one = beta.
 *                                                                       docs/math.md (4), (5)
 * x * scale + (beta - mean * scale) would cancel for a large mean; affine.h has what is computed
 * instead. Every operation is rounded once, in this order, on every tier.
 */

static void CBN_NAME(normalize_run)(cbn_output y, cbn_input x, cbn_tile tile,
                                    const cbn_channels *channels)
{
    CBN_WORK *const high = CBN_SCRATCH(CBN_WORK, 0);
    CBN_WORK *const a = CBN_SCRATCH(CBN_WORK, 1);
    CBN_WORK *const b = CBN_SCRATCH(CBN_WORK, 2);
    CBN_SIMD
    for (ptrdiff_t j = 0; j < tile.cols; ++j) {
        CBN_NAME(affine)(&high[j], &a[j], &b[j], channels->mean[j], channels->mean_low[j],
                         channels->scale[j], channels->along_one[j]);
    }
    CBN_ELEMENT *const made = CBN_SCRATCH(CBN_ELEMENT, 3);
    /* Four rows, so that the coefficients are loaded once for four. */
    for (ptrdiff_t r = 0, n; r < tile.rows; r += n) {
        n = tile.rows - r >= 4 && !tile.in_order ? 4 : 1;
        const CBN_ELEMENT *const x0 = CBN_ROW(x, r), *const x1 = CBN_ROW(x, r + n / 4);
        const CBN_ELEMENT *const x2 = CBN_ROW(x, r + n / 2), *const x3 = CBN_ROW(x, r + n - 1);
        CBN_ELEMENT *const y0 = CBN_OUT_ROW(y, r), *const y1 = CBN_OUT_ROW(y, r + n / 4);
        CBN_ELEMENT *const y2 = CBN_OUT_ROW(y, r + n / 2), *const y3 = CBN_OUT_ROW(y, r + n - 1);
        if (tile.stream) {
            CBN_STREAM_ROW(y0, made, tile.cols, j,
                           { CBN_STORE(made, j, b[j] - (high[j] - CBN_LOAD(x0, j)) * a[j]); })
        } else if (n == 4) {
            CBN_COLUMNS(tile, j, {
                const CBN_WORK h = high[j], slope = a[j], plus = b[j];
                CBN_STORE(y0, j, plus - (h - CBN_LOAD(x0, j)) * slope);
                CBN_STORE(y1, j, plus - (h - CBN_LOAD(x1, j)) * slope);
                CBN_STORE(y2, j, plus - (h - CBN_LOAD(x2, j)) * slope);
                CBN_STORE(y3, j, plus - (h - CBN_LOAD(x3, j)) * slope);
            })
        } else {
            CBN_COLUMNS(tile, j, { CBN_STORE(y0, j, b[j] - (high[j] - CBN_LOAD(x0, j)) * a[j]); })
        }
    }
    cbn_stream_end();
}

CBN_UNUSED static void CBN_NAME(normalize)(cbn_output y, cbn_input x, cbn_tile tile,
                                           const cbn_channels *channels)
{
#ifdef CBN_WIDE
    cbn_channels rest = *channels;
    for (ptrdiff_t left = tile.cols; left > 0; left -= tile.cols) {
        int wide;
        tile.cols = cbn_run(&wide, &rest, left);
        cbn_tile_at(&tile, x, sizeof(CBN_ELEMENT));
        (wide ? CBN_WIDE(normalize_run) : CBN_NAME(normalize_run))(y, x, tile, &rest);
        cbn_skip(&rest, tile.cols);
        CBN_SKIP(y, tile.cols);
        CBN_SKIP(x, tile.cols);
    }
#else
    cbn_tile_at(&tile, x, sizeof(CBN_ELEMENT));
    CBN_NAME(normalize_run)(y, x, tile, channels);
#endif
}
