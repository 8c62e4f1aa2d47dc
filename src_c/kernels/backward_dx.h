/* dx = dy * scale + xhat * along_xhat + along_one.                          docs/math.md (16), (30)
 *
 * With scale = gamma * invstd, along_xhat = -scale * sum(dy * xhat) / N and
 * along_one = -scale * sum(dy) / N this is the backward pass; the same map with other coefficients
 * gives the tangent y_dot and the parts of the double backward, because the Jacobian is symmetric.
 * xhat * along_xhat + along_one is computed as affine.h says, with the slope invstd * along_xhat.
 */

static void CBN_NAME(backward_dx_run)(cbn_output dx, cbn_input dy, cbn_input x, cbn_tile tile,
                                      const cbn_channels *channels)
{
    CBN_WORK *const high = CBN_SCRATCH(CBN_WORK, 0);
    CBN_WORK *const a = CBN_SCRATCH(CBN_WORK, 1);
    CBN_WORK *const b = CBN_SCRATCH(CBN_WORK, 2);
    CBN_WORK *const scale = CBN_SCRATCH(CBN_WORK, 3);
    CBN_SIMD
    for (ptrdiff_t j = 0; j < tile.cols; ++j) {
        CBN_NAME(affine)(&high[j], &a[j], &b[j], channels->mean[j], channels->mean_low[j],
                         channels->along_xhat[j] * channels->invstd[j], channels->along_one[j]);
        scale[j] = (CBN_WORK)channels->scale[j];
    }
    CBN_ELEMENT *const made = CBN_SCRATCH(CBN_ELEMENT, 4);
    /* Two rows, so that the coefficients are loaded once for two; the twelve lines of four would
     * not fit into a set of the first-level cache, where rows of all three arrays are 4 KiB apart.
     */
    for (ptrdiff_t r = 0, n; r < tile.rows; r += n) {
        n = tile.rows - r >= 2 && !tile.in_order ? 2 : 1;
        const CBN_ELEMENT *const x0 = CBN_ROW(x, r), *const x1 = CBN_ROW(x, r + n - 1);
        const CBN_ELEMENT *const dy0 = CBN_ROW(dy, r), *const dy1 = CBN_ROW(dy, r + n - 1);
        CBN_ELEMENT *const dx0 = CBN_OUT_ROW(dx, r), *const dx1 = CBN_OUT_ROW(dx, r + n - 1);
#define CBN_DX(to, j, dy, x)                                                                       \
    CBN_STORE(to, j, CBN_LOAD(dy, j) * scale[j] + (b[j] - (high[j] - CBN_LOAD(x, j)) * a[j]))
        if (tile.stream) {
            CBN_STREAM_ROW(dx0, made, tile.cols, j, { CBN_DX(made, j, dy0, x0); })
        } else if (n == 2) {
            CBN_COLUMNS(tile, j, {
                const CBN_WORK h = high[j], slope = a[j], plus = b[j], by_dy = scale[j];
                CBN_STORE(dx0, j,
                          CBN_LOAD(dy0, j) * by_dy + (plus - (h - CBN_LOAD(x0, j)) * slope));
                CBN_STORE(dx1, j,
                          CBN_LOAD(dy1, j) * by_dy + (plus - (h - CBN_LOAD(x1, j)) * slope));
            })
        } else {
            CBN_COLUMNS(tile, j, { CBN_DX(dx0, j, dy0, x0); })
        }
#undef CBN_DX
    }
    cbn_stream_end();
}

CBN_UNUSED static void CBN_NAME(backward_dx)(cbn_output dx, cbn_input dy, cbn_input x,
                                             cbn_tile tile, const cbn_channels *channels)
{
#ifdef CBN_WIDE
    cbn_channels rest = *channels;
    for (ptrdiff_t left = tile.cols; left > 0; left -= tile.cols) {
        int wide;
        tile.cols = cbn_run(&wide, &rest, left);
        cbn_tile_at(&tile, x, sizeof(CBN_ELEMENT));
        (wide ? CBN_WIDE(backward_dx_run) : CBN_NAME(backward_dx_run))(dx, dy, x, tile, &rest);
        cbn_skip(&rest, tile.cols);
        CBN_SKIP(dx, tile.cols);
        CBN_SKIP(dy, tile.cols);
        CBN_SKIP(x, tile.cols);
    }
#else
    cbn_tile_at(&tile, x, sizeof(CBN_ELEMENT));
    CBN_NAME(backward_dx_run)(dx, dy, x, tile, channels);
#endif
}
