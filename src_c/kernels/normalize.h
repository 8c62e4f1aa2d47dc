/* y = (x - mean) * scale + along_one, with scale = gamma * invstd and along_one = beta.
 *                                                                       docs/math.md (4), (5)
 * x * scale + (beta - mean * scale) would cancel for a large mean; affine.h has what is computed
 * instead. Every operation is rounded once, in this order, on every tier.
 */

typedef struct CBN_NAME(normalize_work) {
    CBN_WORK *high, *a, *b;
} CBN_NAME(normalize_work);

/* The first n rows; n, stream and alone (there is one channel, with the first coefficients) are
 * constants of the caller. One row where it may be scratch. */
CBN_INLINE void CBN_NAME(normalize_part)(const CBN_NAME(normalize_work) * w, int n, int stream,
                                         int alone, cbn_output y, cbn_input x, cbn_tile tile)
{
    const CBN_WORK *const high = w->high, *const a = w->a, *const b = w->b;
    const CBN_WORK high0 = high[0], a0 = a[0], b0 = b[0];
    /* same(4 lines, 3 -> 4, 4 -> 5): scratch serves one row */
    /* same(3 lines, > -> >=): rows that are not there are others once more */
    const CBN_ELEMENT *const x0 = CBN_ROW(x, 0, 3), *const x1 = CBN_ROW(x, n > 1, 3);
    /* same(3 lines, 2 -> 3): n is 1, 2 or 4 */
    const CBN_ELEMENT *const x2 = CBN_ROW(x, n > 2 ? 2 : 0, 3), *const x3 = CBN_ROW(x, n - 1, 3);
    CBN_ELEMENT *const y0 = CBN_OUT_ROW(y, 0, 4), *const y1 = CBN_OUT_ROW(y, n > 1, 4);
    CBN_ELEMENT *const y2 = CBN_OUT_ROW(y, n > 2 ? 2 : 0, 4), *const y3 = CBN_OUT_ROW(y, n - 1, 4);
#define CBN_NORMALIZE(to0, to1, to2, to3, at, j)                                                   \
    {                                                                                              \
        const CBN_WORK h = alone ? high0 : high[j];                                                \
        const CBN_WORK slope = alone ? a0 : a[j], plus = alone ? b0 : b[j];                        \
        CBN_STORE(to0, at, plus - (h - CBN_LOAD(x0, j)) * slope);                                  \
        /* same(> -> >=): rows that are not there are others once more */                          \
        if (n > 1) {                                                                               \
            CBN_STORE(to1, at, plus - (h - CBN_LOAD(x1, j)) * slope);                              \
        }                                                                                          \
        /* same(> -> >=): rows that are not there are others once more */                          \
        if (n > 2) {                                                                               \
            CBN_STORE(to2, at, plus - (h - CBN_LOAD(x2, j)) * slope);                              \
            CBN_STORE(to3, at, plus - (h - CBN_LOAD(x3, j)) * slope);                              \
        }                                                                                          \
    }
    if (stream && n == 1 && !cbn_is_scratch(&y, y0, &tile, 4)) {
        CBN_STREAM_ROW(y0, tile.cols, j, at, to, CBN_NORMALIZE(to, to, to, to, at, j))
    } else if (stream && n > 1) {
        CBN_ELEMENT *const rows[] = {y0, y1, y2, y3};
        CBN_STREAM_ROWS(n, rows, tile.cols, j, at, made,
                        CBN_NORMALIZE(made[0], made[1], made[2], made[3], at, j))
    } else {
        CBN_COLUMNS(tile, j, CBN_NORMALIZE(y0, y1, y2, y3, j, j))
    }
#undef CBN_NORMALIZE
    cbn_row_made(&y, y0, &tile, 4);
}

CBN_INLINE void CBN_NAME(normalize_rows)(const CBN_NAME(normalize_work) * w, int n, int stream,
                                         int alone, cbn_output y, cbn_input x, cbn_tile tile){
    CBN_PARTS(tile, j, x.half != NULL || y.half != NULL, y.data,
              {
                  const ptrdiff_t c = alone ? 0 : j;
                  const CBN_NAME(normalize_work) at = {w->high + c, w->a + c, w->b + c};
                  /* same(2 lines, 13 -> 14, 17 -> 18): free scratch too */
                  const cbn_input rows = CBN_NAME(widened)(x, n, &tile, 13);
                  const cbn_output made = CBN_NAME(unmade)(y, &tile, 17);
                  CBN_NAME(normalize_part)(&at, n, stream, alone, made, rows, tile);
                  CBN_NAME(narrow)(y, made, n, &tile);
                  CBN_SKIP(x, tile.cols)
                  CBN_SKIP(y, tile.cols)
              })}

/* A row with what follows the affine map. -0 becomes 0 and NaN stays, as in max(0, y). */
CBN_INLINE
    void CBN_NAME(normalize_finished_part)(const CBN_NAME(normalize_work) * w, cbn_output y,
                                           cbn_input x, cbn_tile tile, const cbn_finish *finish)
{
    const CBN_WORK *const high = w->high, *const a = w->a, *const b = w->b;
    const CBN_ELEMENT *const x0 = CBN_ROW(x, 0, 3);
    CBN_ELEMENT *const y0 = CBN_OUT_ROW(y, 0, 4);
    const int gate = CBN_GIVEN(finish->gated), relu = finish->relu;
    const CBN_ELEMENT *const dy = gate ? CBN_ROW(finish->gated, 0, 6) : x0;
#define CBN_FINISHED_ROW(with_residual, value)                                                     \
    if (gate) {                                                                                    \
        CBN_COLUMNS(tile, j, { CBN_STORE(y0, j, (value) > 0 ? CBN_LOAD(dy, j) : 0); })             \
    } else if (relu) {                                                                             \
        CBN_COLUMNS(tile, j, {                                                                     \
            const CBN_WORK v = value;                                                              \
            CBN_STORE(y0, j, v <= 0 ? 0 : v);                                                      \
        })                                                                                         \
    } else if (with_residual) {                                                                    \
        CBN_COLUMNS(tile, j, { CBN_STORE(y0, j, value); })                                         \
    }
    if (CBN_GIVEN(finish->residual)) {
        const CBN_ELEMENT *const r0 = CBN_ROW(finish->residual, 0, 5);
        CBN_FINISHED_ROW(1, (b[j] - (high[j] - CBN_LOAD(x0, j)) * a[j]) + CBN_LOAD(r0, j))
    } else {
        CBN_FINISHED_ROW(0, b[j] - (high[j] - CBN_LOAD(x0, j)) * a[j])
    }
#undef CBN_FINISHED_ROW
    cbn_row_made(&y, y0, &tile, 4);
}

static void CBN_NAME(normalize_finished_row)(const CBN_NAME(normalize_work) * w, cbn_output y,
                                             cbn_input x, cbn_tile tile, cbn_finish finish)
{
    const cbn_input r = finish.residual, g = finish.gated;
    /* same(!= -> ==): arrays of a half type are so together */
    const int half = x.half != NULL || y.half != NULL || r.half != NULL || g.half != NULL;
    CBN_PARTS(tile, j, half, y.data, {
        const CBN_NAME(normalize_work) at = {w->high + j, w->a + j, w->b + j};
        const cbn_input row = CBN_NAME(widened)(x, 1, &tile, 13);
        /* same(3 lines, 1 -> 2): sanitizers see the read past the end */
        const cbn_finish with = {.residual = CBN_NAME(widened)(finish.residual, 1, &tile, 14),
                                 .relu = finish.relu,
                                 .gated = CBN_NAME(widened)(finish.gated, 1, &tile, 15)};
        /* same(17 -> 18): free scratch too */
        const cbn_output made = CBN_NAME(unmade)(y, &tile, 17);
        CBN_NAME(normalize_finished_part)(&at, made, row, tile, &with);
        CBN_NAME(narrow)(y, made, 1, &tile);
        CBN_SKIP(x, tile.cols)
        CBN_SKIP(y, tile.cols)
        CBN_SKIP(finish.residual, tile.cols)
        CBN_SKIP(finish.gated, tile.cols)
    })
}

/* Rows whose elements lie apart are made in scratch and moved together. */
static void CBN_NAME(normalize_apart)(const CBN_NAME(normalize_work) * w, cbn_output y, cbn_input x,
                                      cbn_tile tile)
{
    const cbn_tile whole = tile;
    for (ptrdiff_t before = 0; before < whole.rows; before += tile.rows) {
        tile.rows = cbn_least(whole.rows - before, CBN_GATHERED_ROWS);
        CBN_GATHER(x, tile.rows, 7)
        for (ptrdiff_t r = 0; r < tile.rows; ++r) {
            CBN_NAME(normalize_rows)(w, 1, 0, 0, cbn_output_row(y, r, &tile, 15),
                                     cbn_input_row(x, r, &tile, 7), tile);
        }
        CBN_SCATTER(y, tile.rows, 15)
        CBN_ADVANCE(x, tile.rows)
        CBN_ADVANCE(y, tile.rows)
    }
}

/* Long runs: each row's one by one, whose channel is alone. */
static void CBN_NAME(normalize_by_runs)(const CBN_NAME(normalize_work) * w, cbn_output y,
                                        cbn_input x, cbn_tile tile)
{
    const int stream = tile.stream && !CBN_HALVES;
    const ptrdiff_t channels = cbn_channels_of(&tile);
    cbn_tile run = tile;
    run.cols = tile.run;
    for (ptrdiff_t r = 0; r < tile.rows; ++r) {
        cbn_output to = y;
        cbn_input from = x;
        run.skew = tile.skew;
        for (ptrdiff_t c = 0; c < channels; ++c) {
            const CBN_NAME(normalize_work) of = {w->high + c, w->a + c, w->b + c};
            if (stream) {
                /* same(1 -> 2): any number but 0 is true */
                CBN_NAME(normalize_rows)(&of, 1, 1, 1, to, from, run);
            } else {
                CBN_NAME(normalize_rows)(&of, 1, 0, 1, to, from, run);
            }
            CBN_SKIP(to, run.cols)
            CBN_SKIP(from, run.cols)
            run.skew = (run.skew + run.cols) % CBN_LINE;
        }
        CBN_ADVANCE(y, 1)
        CBN_ADVANCE(x, 1)
    }
    cbn_stream_end();
}

static void CBN_NAME(normalize_run)(cbn_output y, cbn_input x, cbn_tile tile,
                                    const cbn_channels *channels, const cbn_finish *finish)
{
    const CBN_NAME(normalize_work)
        w = {CBN_SCRATCH(CBN_WORK, 0), CBN_SCRATCH(CBN_WORK, 1), CBN_SCRATCH(CBN_WORK, 2)};
    CBN_SIMD
    for (ptrdiff_t c = 0; c < cbn_channels_of(&tile); ++c) {
        CBN_NAME(affine)(&w.high[c], &w.a[c], &w.b[c], channels->mean[c], channels->mean_low[c],
                         channels->scale[c], channels->along_one[c]);
    }
    if (channels->uncentred) {
        memset(w.high, 0, (size_t)cbn_channels_of(&tile) * sizeof *w.high);
        memset(w.b, 0, (size_t)cbn_channels_of(&tile) * sizeof *w.b);
    }
    const int apart = CBN_APART(x) || CBN_APART(y);
    /* same(>= -> >): speed alone */
    if (CBN_TUNED && tile.run >= CBN_LONG_RUN && finish == NULL && !apart) {
        CBN_NAME(normalize_by_runs)(&w, y, x, tile);
        return;
    }
    CBN_SPREAD(w.high, tile)
    CBN_SPREAD(w.a, tile)
    CBN_SPREAD(w.b, tile)
    if (finish != NULL) {
        cbn_finish with = *finish;
        for (ptrdiff_t r = 0; r < tile.rows; ++r) {
            CBN_NAME(normalize_finished_row)(&w, y, x, tile, with);
            CBN_ADVANCE(y, 1)
            CBN_ADVANCE(x, 1)
            CBN_ADVANCE(with.residual, 1)
            CBN_ADVANCE(with.gated, 1)
        }
        return;
    }
    if (apart) {
        CBN_NAME(normalize_apart)(&w, y, x, tile);
        return;
    }
    const int plain = x.access == NULL && y.access == NULL;
    const int most = CBN_TUNED && plain ? cbn_rows_at_once(&tile, sizeof(CBN_WORK)) : 1;
    /* same(): speed alone */
    const int at_once = !tile.stream || (most == 4 && cbn_rows_alike(y.stride)) ? most : 1;
    const int stream = tile.stream && !CBN_HALVES;
    ptrdiff_t n;
    for (ptrdiff_t left = tile.rows; left > 0; left -= n) {
        n = left >= at_once ? at_once : 1;
        if (stream && n == 4) {
            /* same(5 lines, 0 -> 1, 1 -> 2): speed alone */
            CBN_NAME(normalize_rows)(&w, 4, 1, 0, y, x, tile);
        } else if (stream) {
            CBN_NAME(normalize_rows)(&w, 1, 1, 0, y, x, tile);
        } else if (n == 4) {
            CBN_NAME(normalize_rows)(&w, 4, 0, 0, y, x, tile);
        } else if (n == 2) {
            CBN_NAME(normalize_rows)(&w, 2, 0, 0, y, x, tile);
        } else {
            /* same(0 -> 1): speed alone */
            CBN_NAME(normalize_rows)(&w, 1, 0, 0, y, x, tile);
        }
        CBN_ADVANCE(x, n)
        CBN_ADVANCE(y, n)
    }
    cbn_stream_end();
}

CBN_UNUSED static void CBN_NAME(normalize)(cbn_output y, cbn_input x, cbn_tile tile,
                                           const cbn_channels *channels, const cbn_finish *finish)
{
#ifdef CBN_WIDE
    cbn_channels rest = *channels;
    const cbn_finish nothing = {.relu = 0};
    cbn_finish with = finish == NULL ? nothing : *finish;
    for (ptrdiff_t left = cbn_channels_of(&tile), count; left > 0; left -= count) {
        int wide;
        count = cbn_alike(&wide, &rest, left);
        tile.cols = count * tile.run;
        cbn_tile_at(&tile, x, sizeof(CBN_ELEMENT));
        (wide ? CBN_WIDE(normalize_run) : CBN_NAME(normalize_run))(y, x, tile, &rest,
                                                                   finish == NULL ? NULL : &with);
        cbn_skip(&rest, count);
        CBN_SKIP(y, tile.cols)
        CBN_SKIP(x, tile.cols)
        CBN_SKIP(with.residual, tile.cols)
        CBN_SKIP(with.gated, tile.cols)
    }
#else
    cbn_tile_at(&tile, x, sizeof(CBN_ELEMENT));
    CBN_NAME(normalize_run)(y, x, tile, channels, finish);
#endif
}
