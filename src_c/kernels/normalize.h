/* y = (x - mean) * scale + along_one, with scale = gamma * invstd and along_one = beta.
 *                                                                       docs/math.md (4), (5)
 * The mean is a high and a low part in the working type, ((x - high) - low) * scale + along_one:
 * x * scale + (beta - mean * scale) would cancel for a large mean. Every operation is rounded
 * once, in this order, on every tier.
 */

/* Four rows at a time, so that the coefficients are loaded once for four. */
static void CBN_NAME(normalize_run)(cbn_output y, cbn_input x, cbn_tile tile,
                                    const cbn_channels *channels)
{
    const ptrdiff_t rows = tile.rows, cols = tile.cols;
    CBN_WORK *const high = CBN_SCRATCH(CBN_WORK, 0);
    CBN_WORK *const low = CBN_SCRATCH(CBN_WORK, 1);
    CBN_WORK *const scale = CBN_SCRATCH(CBN_WORK, 2);
    CBN_WORK *const along_one = CBN_SCRATCH(CBN_WORK, 3);
    CBN_NAME(split_mean)(high, low, channels, cols);
    CBN_NAME(round_to_work)(scale, channels->scale, cols);
    CBN_NAME(round_to_work)(along_one, channels->along_one, cols);
    ptrdiff_t r = 0;
    for (; r + 4 <= rows; r += 4) {
        const CBN_ELEMENT *const x0 = CBN_ROW(x, r), *const x1 = CBN_ROW(x, r + 1);
        const CBN_ELEMENT *const x2 = CBN_ROW(x, r + 2), *const x3 = CBN_ROW(x, r + 3);
        CBN_ELEMENT *const y0 = CBN_OUT_ROW(y, r), *const y1 = CBN_OUT_ROW(y, r + 1);
        CBN_ELEMENT *const y2 = CBN_OUT_ROW(y, r + 2), *const y3 = CBN_OUT_ROW(y, r + 3);
        CBN_SIMD
        for (ptrdiff_t j = 0; j < cols; ++j) {
            const CBN_WORK h = high[j], l = low[j], a = scale[j], c = along_one[j];
            CBN_STORE(y0, j, ((CBN_LOAD(x0, j) - h) - l) * a + c);
            CBN_STORE(y1, j, ((CBN_LOAD(x1, j) - h) - l) * a + c);
            CBN_STORE(y2, j, ((CBN_LOAD(x2, j) - h) - l) * a + c);
            CBN_STORE(y3, j, ((CBN_LOAD(x3, j) - h) - l) * a + c);
        }
    }
    for (; r < rows; ++r) {
        const CBN_ELEMENT *const x0 = CBN_ROW(x, r);
        CBN_ELEMENT *const y0 = CBN_OUT_ROW(y, r);
        CBN_SIMD
        for (ptrdiff_t j = 0; j < cols; ++j) {
            CBN_STORE(y0, j, ((CBN_LOAD(x0, j) - high[j]) - low[j]) * scale[j] + along_one[j]);
        }
    }
}

CBN_UNUSED static void CBN_NAME(normalize)(cbn_output y, cbn_input x, cbn_tile tile,
                                           const cbn_channels *channels)
{
#ifdef CBN_WIDE
    cbn_channels rest = *channels;
    for (ptrdiff_t left = tile.cols; left > 0; left -= tile.cols) {
        int wide;
        tile.cols = cbn_run(&wide, &rest, left);
        (wide ? CBN_WIDE(normalize_run) : CBN_NAME(normalize_run))(y, x, tile, &rest);
        cbn_skip(&rest, tile.cols);
        CBN_SKIP(y, tile.cols);
        CBN_SKIP(x, tile.cols);
    }
#else
    CBN_NAME(normalize_run)(y, x, tile, channels);
#endif
}
