/* y = (x - mean) * scale + along_one, with scale = gamma * invstd and along_one = beta.
 *                                                                       docs/math.md (4), (5)
 * x * scale + (beta - mean * scale) would cancel for a large mean; affine.h has what is computed
 * instead. Every operation is rounded once, in this order, on every tier.
 */

typedef struct CBN_NAME(normalize_work) {
    CBN_WORK *high, *a, *b;
} CBN_NAME(normalize_work);

/* The first n rows, n and stream being constants of the caller. */
CBN_INLINE void CBN_NAME(normalize_rows)(const CBN_NAME(normalize_work) * w, int n, int stream,
                                         cbn_output y, cbn_input x, cbn_tile tile)
{
    const CBN_WORK *const high = w->high, *const a = w->a, *const b = w->b;
    const CBN_ELEMENT *const x0 = CBN_ROW(x, 0), *const x1 = CBN_ROW(x, n > 1);
    const CBN_ELEMENT *const x2 = CBN_ROW(x, n > 2 ? 2 : 0), *const x3 = CBN_ROW(x, n - 1);
    CBN_ELEMENT *const y0 = CBN_OUT_ROW(y, 0), *const y1 = CBN_OUT_ROW(y, n > 1);
    CBN_ELEMENT *const y2 = CBN_OUT_ROW(y, n > 2 ? 2 : 0), *const y3 = CBN_OUT_ROW(y, n - 1);
#define CBN_NORMALIZE(to0, to1, to2, to3, at, j)                                                   \
    {                                                                                              \
        const CBN_WORK h = high[j], slope = a[j], plus = b[j];                                     \
        CBN_STORE(to0, at, plus - (h - CBN_LOAD(x0, j)) * slope);                                  \
        if (n > 1) {                                                                               \
            CBN_STORE(to1, at, plus - (h - CBN_LOAD(x1, j)) * slope);                              \
        }                                                                                          \
        if (n > 2) {                                                                               \
            CBN_STORE(to2, at, plus - (h - CBN_LOAD(x2, j)) * slope);                              \
            CBN_STORE(to3, at, plus - (h - CBN_LOAD(x3, j)) * slope);                              \
        }                                                                                          \
    }
    if (stream && n == 1) {
        CBN_STREAM_ROW(y0, tile.cols, j, at, to, CBN_NORMALIZE(to, to, to, to, at, j))
    } else if (stream) {
        CBN_ELEMENT *const rows[] = {y0, y1, y2, y3};
        CBN_STREAM_ROWS(n, rows, tile.cols, j, at, made,
                        CBN_NORMALIZE(made[0], made[1], made[2], made[3], at, j))
    } else {
        CBN_COLUMNS(tile, j, CBN_NORMALIZE(y0, y1, y2, y3, j, j))
    }
#undef CBN_NORMALIZE
}

static void CBN_NAME(normalize_run)(cbn_output y, cbn_input x, cbn_tile tile,
                                    const cbn_channels *channels)
{
    const CBN_NAME(normalize_work)
        w = {CBN_SCRATCH(CBN_WORK, 0), CBN_SCRATCH(CBN_WORK, 1), CBN_SCRATCH(CBN_WORK, 2)};
    CBN_SIMD
    for (ptrdiff_t j = 0; j < tile.cols; ++j) {
        CBN_NAME(affine)(&w.high[j], &w.a[j], &w.b[j], channels->mean[j], channels->mean_low[j],
                         channels->scale[j], channels->along_one[j]);
    }
    const int most = cbn_rows_at_once(&tile, sizeof(CBN_WORK));
    const int at_once = !tile.stream || (most == 4 && cbn_rows_alike(y.stride)) ? most : 1;
    ptrdiff_t n;
    for (ptrdiff_t left = tile.rows; left > 0; left -= n) {
        n = left >= at_once ? at_once : 1;
        if (tile.stream && n == 4) {
            CBN_NAME(normalize_rows)(&w, 4, 1, y, x, tile);
        } else if (tile.stream) {
            CBN_NAME(normalize_rows)(&w, 1, 1, y, x, tile);
        } else if (n == 4) {
            CBN_NAME(normalize_rows)(&w, 4, 0, y, x, tile);
        } else if (n == 2) {
            CBN_NAME(normalize_rows)(&w, 2, 0, y, x, tile);
        } else {
            CBN_NAME(normalize_rows)(&w, 1, 0, y, x, tile);
        }
        x.data += n * x.stride;
        y.data += n * y.stride;
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
