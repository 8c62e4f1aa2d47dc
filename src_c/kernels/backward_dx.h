/* dx = dy * scale + xhat * along_xhat + along_one.                          docs/math.md (16), (30)
 *
 * With scale = gamma * invstd, along_xhat = -scale * sum(dy * xhat) / N and
 * along_one = -scale * sum(dy) / N this is the backward pass; the same map with other coefficients
 * gives the tangent y_dot and the parts of the double backward, because the Jacobian is symmetric.
 * xhat * along_xhat + along_one is computed as affine.h says, with the slope invstd * along_xhat.
 */

typedef struct CBN_NAME(dx_work) {
    CBN_WORK *high, *a, *b, *scale;
} CBN_NAME(dx_work);

/* As normalize_part. */
CBN_INLINE void CBN_NAME(backward_dx_part)(const CBN_NAME(dx_work) * w, int n, int stream,
                                           int alone, cbn_output dx, cbn_input dy, cbn_input x,
                                           cbn_tile tile)
{
    const CBN_WORK *const high = w->high, *const a = w->a, *const b = w->b;
    const CBN_WORK *const scale = w->scale;
    const CBN_WORK high0 = high[0], a0 = a[0], b0 = b[0], scale0 = scale[0];
    /* same(3 lines, 4 -> 5, 5 -> 6, 6 -> 7): scratch serves one row */
    const CBN_ELEMENT *const x0 = CBN_ROW(x, 0, 4), *const x1 = CBN_ROW(x, n - 1, 4);
    const CBN_ELEMENT *const dy0 = CBN_ROW(dy, 0, 5), *const dy1 = CBN_ROW(dy, n - 1, 5);
    CBN_ELEMENT *const dx0 = CBN_OUT_ROW(dx, 0, 6), *const dx1 = CBN_OUT_ROW(dx, n - 1, 6);
#define CBN_DX(to, at, dy, x, j)                                                                   \
    CBN_STORE(to, at, CBN_LOAD(dy, j) * by_dy + (plus - (h - CBN_LOAD(x, j)) * slope))
#define CBN_DX_ROWS(to0, to1, at, j)                                                               \
    {                                                                                              \
        const CBN_WORK h = alone ? high0 : high[j], by_dy = alone ? scale0 : scale[j];             \
        const CBN_WORK slope = alone ? a0 : a[j], plus = alone ? b0 : b[j];                        \
        CBN_DX(to0, at, dy0, x0, j);                                                               \
        if (n > 1) {                                                                               \
            CBN_DX(to1, at, dy1, x1, j);                                                           \
        }                                                                                          \
    }
    if (stream && n == 1 && !cbn_is_scratch(&dx, dx0, &tile, 6)) {
        CBN_STREAM_ROW(dx0, tile.cols, j, at, to, CBN_DX_ROWS(to, to, at, j))
    } else if (stream && n > 1) {
        CBN_ELEMENT *const rows[] = {dx0, dx1};
        CBN_STREAM_ROWS(n, rows, tile.cols, j, at, made, CBN_DX_ROWS(made[0], made[1], at, j))
    } else {
        CBN_COLUMNS(tile, j, CBN_DX_ROWS(dx0, dx1, j, j))
    }
#undef CBN_DX_ROWS
#undef CBN_DX
    cbn_row_made(&dx, dx0, &tile, 6);
}

CBN_INLINE void CBN_NAME(backward_dx_rows)(const CBN_NAME(dx_work) * w, int n, int stream,
                                           int alone, cbn_output dx, cbn_input dy, cbn_input x,
                                           cbn_tile tile)
{
    const int half = x.half != NULL || dy.half != NULL || dx.half != NULL;
    CBN_PARTS(tile, j, half, dx.data, {
        const ptrdiff_t c = alone ? 0 : j;
        const CBN_NAME(dx_work) at = {w->high + c, w->a + c, w->b + c, w->scale + c};
        /* same(3 lines, 13 -> 14, 16 -> 17, 19 -> 20): free scratch too */
        const cbn_input x_rows = CBN_NAME(widened)(x, n, &tile, 13);
        const cbn_input dy_rows = CBN_NAME(widened)(dy, n, &tile, 16);
        const cbn_output made = CBN_NAME(unmade)(dx, &tile, 19);
        CBN_NAME(backward_dx_part)(&at, n, stream, alone, made, dy_rows, x_rows, tile);
        CBN_NAME(narrow)(dx, made, n, &tile);
        CBN_SKIP(x, tile.cols)
        CBN_SKIP(dy, tile.cols)
        CBN_SKIP(dx, tile.cols)
    })
}

/* As normalize_apart. */
static void CBN_NAME(backward_dx_apart)(const CBN_NAME(dx_work) * w, cbn_output dx, cbn_input dy,
                                        cbn_input x, cbn_tile tile)
{
    const cbn_tile whole = tile;
    for (ptrdiff_t before = 0; before < whole.rows; before += tile.rows) {
        tile.rows = cbn_least(whole.rows - before, CBN_GATHERED_ROWS);
        CBN_GATHER(x, tile.rows, 7)
        CBN_GATHER(dy, tile.rows, 15)
        for (ptrdiff_t r = 0; r < tile.rows; ++r) {
            CBN_NAME(backward_dx_rows)(w, 1, 0, 0, cbn_output_row(dx, r, &tile, 23),
                                       cbn_input_row(dy, r, &tile, 15),
                                       cbn_input_row(x, r, &tile, 7), tile);
        }
        CBN_SCATTER(dx, tile.rows, 23)
        CBN_ADVANCE(x, tile.rows)
        CBN_ADVANCE(dy, tile.rows)
        CBN_ADVANCE(dx, tile.rows)
    }
}

/* As normalize_by_runs. */
static void CBN_NAME(backward_dx_by_runs)(const CBN_NAME(dx_work) * w, cbn_output dx, cbn_input dy,
                                          cbn_input x, cbn_tile tile)
{
    const int stream = tile.stream && !CBN_HALVES;
    const ptrdiff_t channels = cbn_channels_of(&tile);
    cbn_tile run = tile;
    run.cols = tile.run;
    for (ptrdiff_t r = 0; r < tile.rows; ++r) {
        cbn_output to = dx;
        cbn_input from_dy = dy, from_x = x;
        run.skew = tile.skew;
        for (ptrdiff_t c = 0; c < channels; ++c) {
            const CBN_NAME(dx_work) of = {w->high + c, w->a + c, w->b + c, w->scale + c};
            if (stream) {
                CBN_NAME(backward_dx_rows)(&of, 1, 1, 1, to, from_dy, from_x, run);
            } else {
                CBN_NAME(backward_dx_rows)(&of, 1, 0, 1, to, from_dy, from_x, run);
            }
            CBN_SKIP(to, run.cols)
            CBN_SKIP(from_dy, run.cols)
            CBN_SKIP(from_x, run.cols)
            run.skew = (run.skew + run.cols) % CBN_LINE;
        }
        CBN_ADVANCE(dx, 1)
        CBN_ADVANCE(dy, 1)
        CBN_ADVANCE(x, 1)
    }
    cbn_stream_end();
}

static void CBN_NAME(backward_dx_run)(cbn_output dx, cbn_input dy, cbn_input x, cbn_tile tile,
                                      const cbn_channels *channels)
{
    const CBN_NAME(dx_work) w = {CBN_SCRATCH(CBN_WORK, 0), CBN_SCRATCH(CBN_WORK, 1),
                                 CBN_SCRATCH(CBN_WORK, 2), CBN_SCRATCH(CBN_WORK, 3)};
    CBN_SIMD
    for (ptrdiff_t c = 0; c < cbn_channels_of(&tile); ++c) {
        CBN_NAME(affine)(&w.high[c], &w.a[c], &w.b[c], channels->mean[c], channels->mean_low[c],
                         channels->along_xhat[c] * channels->invstd[c], channels->along_one[c]);
        w.scale[c] = (CBN_WORK)channels->scale[c];
    }
    const int apart = CBN_APART(x) || CBN_APART(dy) || CBN_APART(dx);
    /* same(>= -> >): speed alone */
    if (CBN_TUNED && tile.run >= CBN_LONG_RUN_OF_DX && !apart) {
        CBN_NAME(backward_dx_by_runs)(&w, dx, dy, x, tile);
        return;
    }
    CBN_SPREAD(w.high, tile)
    CBN_SPREAD(w.a, tile)
    CBN_SPREAD(w.b, tile)
    CBN_SPREAD(w.scale, tile)
    /* The twelve lines of four rows would not fit into a set of the first-level cache, where rows
     * of all three arrays are 4 KiB apart. One narrow row takes 0.8 times as long as two, unless
     * rows are too short for their loop. */
    const int most = cbn_rows_at_once(&tile, sizeof(CBN_WORK));
    const int plain = x.access == NULL && dy.access == NULL && dx.access == NULL;
    if (apart) {
        CBN_NAME(backward_dx_apart)(&w, dx, dy, x, tile);
        return;
    }
    const int two = !CBN_TUNED || !plain ? 0
                    /* same(2 lines): speed alone */
                    : most == 2 ? (size_t)tile.cols * sizeof(CBN_WORK) <= 2048
                                : most == 4 && (!tile.stream || cbn_rows_alike(dx.stride));
    const int stream = tile.stream && !CBN_HALVES;
    ptrdiff_t n;
    for (ptrdiff_t left = tile.rows; left > 0; left -= n) {
        n = two && left > 1 ? 2 : 1;
        if (stream && n == 2) {
            /* same(3 lines, 0 -> 1, 1 -> 2): speed alone */
            CBN_NAME(backward_dx_rows)(&w, 2, 1, 0, dx, dy, x, tile);
        } else if (stream) {
            CBN_NAME(backward_dx_rows)(&w, 1, 1, 0, dx, dy, x, tile);
        } else if (n == 2) {
            CBN_NAME(backward_dx_rows)(&w, 2, 0, 0, dx, dy, x, tile);
        } else {
            /* same(0 -> 1): speed alone */
            CBN_NAME(backward_dx_rows)(&w, 1, 0, 0, dx, dy, x, tile);
        }
        CBN_ADVANCE(dx, n)
        CBN_ADVANCE(dy, n)
        CBN_ADVANCE(x, n)
    }
    cbn_stream_end();
}

CBN_UNUSED static void CBN_NAME(backward_dx)(cbn_output dx, cbn_input dy, cbn_input x,
                                             cbn_tile tile, const cbn_channels *channels)
{
#ifdef CBN_WIDE
    cbn_channels rest = *channels;
    for (ptrdiff_t left = cbn_channels_of(&tile), count; left > 0; left -= count) {
        int wide;
        count = cbn_alike(&wide, &rest, left);
        tile.cols = count * tile.run;
        cbn_tile_at(&tile, x, sizeof(CBN_ELEMENT));
        (wide ? CBN_WIDE(backward_dx_run) : CBN_NAME(backward_dx_run))(dx, dy, x, tile, &rest);
        cbn_skip(&rest, count);
        CBN_SKIP(dx, tile.cols)
        CBN_SKIP(dy, tile.cols)
        CBN_SKIP(x, tile.cols)
    }
#else
    cbn_tile_at(&tile, x, sizeof(CBN_ELEMENT));
    CBN_NAME(backward_dx_run)(dx, dy, x, tile, channels);
#endif
}
