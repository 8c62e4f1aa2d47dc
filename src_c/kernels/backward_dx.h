/* dx = dy * scale + xhat * along_xhat + along_one.                          docs/math.md (16), (30)
 *
 * With scale = gamma * invstd, along_xhat = -scale * sum(dy * xhat) / N and
 * along_one = -scale * sum(dy) / N this is the backward pass; the same map with other coefficients
 * gives the tangent y_dot and the parts of the double backward, because the Jacobian is symmetric.
 * xhat = ((x - high) - low) * invstd as in normalize.h.
 */

/* Four rows at a time, so that the six coefficients are loaded once for four. */
static void CBN_NAME(backward_dx_run)(cbn_output dx, cbn_input dy, cbn_input x, cbn_tile tile,
                                      const cbn_channels *channels)
{
    const ptrdiff_t cols = tile.cols;
    CBN_WORK *const high = CBN_SCRATCH(CBN_WORK, 0);
    CBN_WORK *const low = CBN_SCRATCH(CBN_WORK, 1);
    CBN_WORK *const invstd = CBN_SCRATCH(CBN_WORK, 2);
    CBN_WORK *const scale = CBN_SCRATCH(CBN_WORK, 3);
    CBN_WORK *const along_xhat = CBN_SCRATCH(CBN_WORK, 4);
    CBN_WORK *const along_one = CBN_SCRATCH(CBN_WORK, 5);
    CBN_NAME(split_mean)(high, low, channels, cols);
    CBN_NAME(round_to_work)(invstd, channels->invstd, cols);
    CBN_NAME(round_to_work)(scale, channels->scale, cols);
    CBN_NAME(round_to_work)(along_xhat, channels->along_xhat, cols);
    CBN_NAME(round_to_work)(along_one, channels->along_one, cols);
    ptrdiff_t r = 0;
    for (; r + 4 <= tile.rows; r += 4) {
        const CBN_ELEMENT *const x0 = CBN_ROW(x, r), *const x1 = CBN_ROW(x, r + 1);
        const CBN_ELEMENT *const x2 = CBN_ROW(x, r + 2), *const x3 = CBN_ROW(x, r + 3);
        const CBN_ELEMENT *const dy0 = CBN_ROW(dy, r), *const dy1 = CBN_ROW(dy, r + 1);
        const CBN_ELEMENT *const dy2 = CBN_ROW(dy, r + 2), *const dy3 = CBN_ROW(dy, r + 3);
        CBN_ELEMENT *const dx0 = CBN_OUT_ROW(dx, r), *const dx1 = CBN_OUT_ROW(dx, r + 1);
        CBN_ELEMENT *const dx2 = CBN_OUT_ROW(dx, r + 2), *const dx3 = CBN_OUT_ROW(dx, r + 3);
        CBN_SIMD
        for (ptrdiff_t j = 0; j < cols; ++j) {
            const CBN_WORK h = high[j], l = low[j], i = invstd[j];
            const CBN_WORK a = scale[j], b = along_xhat[j], c = along_one[j];
            const CBN_WORK xhat0 = ((CBN_LOAD(x0, j) - h) - l) * i;
            const CBN_WORK xhat1 = ((CBN_LOAD(x1, j) - h) - l) * i;
            const CBN_WORK xhat2 = ((CBN_LOAD(x2, j) - h) - l) * i;
            const CBN_WORK xhat3 = ((CBN_LOAD(x3, j) - h) - l) * i;
            CBN_STORE(dx0, j, (CBN_LOAD(dy0, j) * a + xhat0 * b) + c);
            CBN_STORE(dx1, j, (CBN_LOAD(dy1, j) * a + xhat1 * b) + c);
            CBN_STORE(dx2, j, (CBN_LOAD(dy2, j) * a + xhat2 * b) + c);
            CBN_STORE(dx3, j, (CBN_LOAD(dy3, j) * a + xhat3 * b) + c);
        }
    }
    for (; r < tile.rows; ++r) {
        const CBN_ELEMENT *const x0 = CBN_ROW(x, r), *const dy0 = CBN_ROW(dy, r);
        CBN_ELEMENT *const dx0 = CBN_OUT_ROW(dx, r);
        CBN_SIMD
        for (ptrdiff_t j = 0; j < cols; ++j) {
            const CBN_WORK xhat = ((CBN_LOAD(x0, j) - high[j]) - low[j]) * invstd[j];
            CBN_STORE(dx0, j, (CBN_LOAD(dy0, j) * scale[j] + xhat * along_xhat[j]) + along_one[j]);
        }
    }
}

CBN_UNUSED static void CBN_NAME(backward_dx)(cbn_output dx, cbn_input dy, cbn_input x,
                                             cbn_tile tile, const cbn_channels *channels)
{
#ifdef CBN_WIDE
    cbn_channels rest = *channels;
    for (ptrdiff_t left = tile.cols; left > 0; left -= tile.cols) {
        int wide;
        tile.cols = cbn_run(&wide, &rest, left);
        (wide ? CBN_WIDE(backward_dx_run) : CBN_NAME(backward_dx_run))(dx, dy, x, tile, &rest);
        cbn_skip(&rest, tile.cols);
        CBN_SKIP(dx, tile.cols);
        CBN_SKIP(dy, tile.cols);
        CBN_SKIP(x, tile.cols);
    }
#else
    CBN_NAME(backward_dx_run)(dx, dy, x, tile, channels);
#endif
}
