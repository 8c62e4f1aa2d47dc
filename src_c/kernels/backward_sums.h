/* sum(dy) = dbeta and sum(dy * xhat) = dgamma of each channel.               docs/math.md (7), (8)
 *
 * A block of CBN_BLOCK_ROWS rows is summed in the working type, four rows at a time as a tree, as
 *     s = sum(dy), t = sum(dy * ((x - high) * power)),
 * with the mean as high + low and the power of two next below invstd, which costs no rounding;
 * blocks are added in float64, those of float64 with the rounding errors kept, which many equal
 * terms would pile up. sum(dy * xhat) = (t - low * power * s) * invstd / power: what high left out
 * and power fell short of is made good once a channel. xhat is recomputed from x: storing it would
 * cost a write and a read of N x D. Sums outside the range of float32 are taken again in float64.
 */

typedef struct CBN_NAME(sums_work) {
    CBN_WORK *s, *t, *high, *power, *scale;
    CBN_ELEMENT *zeros;
    double *sum_dy, *low_dy, *sum_dy_xhat, *low_dy_xhat;
} CBN_NAME(sums_work);

CBN_INLINE void CBN_NAME(sums_add)(double *sum, double *low, double term)
{
#if CBN_KEEP_LOW
    cbn_two_sum(sum, low, term);
#else
    (void)low;
    *sum += term;
#endif
}

/* Four rows of a block: the first make s and t, the last add them to the float64 sums. Rows past
 * the end take dy from a row of zeros. With dx, also dx = dy * scale, as normalize would give it;
 * fewer than four rows of it go through scratch. */
CBN_INLINE void CBN_NAME(backward_sums_part)(const CBN_NAME(sums_work) * w, int first, int end,
                                             int with_dx, cbn_output dx, cbn_input dy, cbn_input x,
                                             cbn_tile tile)
{
    CBN_WORK *const s = w->s, *const t = w->t;
    const CBN_WORK *const high = w->high, *const power = w->power, *const scale = w->scale;
    const ptrdiff_t left = tile.rows, last = tile.rows - 1;
    const int at1 = (int)cbn_least(1, last), at2 = (int)cbn_least(2, last);
    const int at3 = (int)cbn_least(3, last);
    const CBN_ELEMENT *const x0 = CBN_ROW(x, 0, 13), *const x1 = CBN_ROW(x, at1, 13 + at1);
    const CBN_ELEMENT *const x2 = CBN_ROW(x, at2, 13 + at2), *const x3 = CBN_ROW(x, at3, 13 + at3);
    const CBN_ELEMENT *const g0 = CBN_ROW(dy, 0, 22);
    const CBN_ELEMENT *const g1 = left > 1 ? CBN_ROW(dy, 1, 23) : w->zeros;
    const CBN_ELEMENT *const g2 = left > 2 ? CBN_ROW(dy, 2, 24) : w->zeros;
    const CBN_ELEMENT *const g3 = left > 3 ? CBN_ROW(dy, 3, 25) : w->zeros;
    const int made = !with_dx || left < 4 || dx.access != NULL || (CBN_HALVES && dx.half != NULL);
    CBN_ELEMENT *const dx0 = made ? CBN_SCRATCH(CBN_ELEMENT, 9) : (CBN_ELEMENT *)dx.data;
    CBN_ELEMENT *const dx1 =
        made ? CBN_SCRATCH(CBN_ELEMENT, 10) : (CBN_ELEMENT *)(dx.data + dx.stride);
    CBN_ELEMENT *const dx2 =
        made ? CBN_SCRATCH(CBN_ELEMENT, 11) : (CBN_ELEMENT *)(dx.data + 2 * dx.stride);
    CBN_ELEMENT *const dx3 =
        made ? CBN_SCRATCH(CBN_ELEMENT, 12) : (CBN_ELEMENT *)(dx.data + 3 * dx.stride);
    /* float64 has too many numbers under way for two vectors of a line: 1.1 times as long */
    CBN_COLUMNS_OF(!CBN_KEEP_LOW, tile, j, {
        const CBN_WORK h = high[j], p = power[j];
        const CBN_WORK dy0 = CBN_LOAD(g0, j), dy1 = CBN_LOAD(g1, j);
        const CBN_WORK dy2 = CBN_LOAD(g2, j), dy3 = CBN_LOAD(g3, j);
        const CBN_WORK t0 = dy0 * ((h - CBN_LOAD(x0, j)) * p);
        const CBN_WORK t1 = dy1 * ((h - CBN_LOAD(x1, j)) * p);
        const CBN_WORK t2 = dy2 * ((h - CBN_LOAD(x2, j)) * p);
        const CBN_WORK t3 = dy3 * ((h - CBN_LOAD(x3, j)) * p);
        const CBN_WORK sum_s = (dy0 + dy1) + (dy2 + dy3), sum_t = (t0 + t1) + (t2 + t3);
        const CBN_WORK all_s = first ? sum_s : s[j] + sum_s;
        const CBN_WORK all_t = first ? sum_t : t[j] + sum_t;
        if (end) {
            CBN_NAME(sums_add)(&w->sum_dy[j], &w->low_dy[j], (double)all_s);
            CBN_NAME(sums_add)(&w->sum_dy_xhat[j], &w->low_dy_xhat[j], -(double)all_t);
        } else {
            s[j] = all_s;
            t[j] = all_t;
        }
        if (with_dx) {
            const CBN_WORK a = scale[j];
            CBN_STORE(dx0, j, dy0 * a + 0);
            CBN_STORE(dx1, j, dy1 * a + 0);
            CBN_STORE(dx2, j, dy2 * a + 0);
            CBN_STORE(dx3, j, dy3 * a + 0);
        }
    })
    for (ptrdiff_t i = 0; with_dx && made && i < cbn_least(left, 4); ++i) {
        const CBN_ELEMENT *const rows[] = {dx0, dx1, dx2, dx3};
        if (dx.access != NULL) {
            dx.access->write(dx.access, rows[i], dx.position + i * dx.stride, dx.channel,
                             tile.cols);
        } else if (CBN_HALVES && dx.half != NULL) {
            dx.half->store(dx.data + i * dx.stride, rows[i], CBN_HALF_BYTES, 0, tile.cols);
        } else {
            memcpy(dx.data + i * dx.stride, rows[i], (size_t)tile.cols * sizeof(CBN_ELEMENT));
        }
    }
}

/* dx of those rows past the caches, a row after the other while dy is in the first-level cache. */
CBN_INLINE void CBN_NAME(stream_dx)(const CBN_WORK *scale, cbn_output dx, cbn_input dy,
                                    cbn_tile tile)
{
    /* same(4 -> 5): a fifth row is widened and not read */
    for (ptrdiff_t r = 0; r < cbn_least(tile.rows, 4); ++r) {
        const CBN_ELEMENT *const g = CBN_ROW(dy, r, 22);
        CBN_ELEMENT *const row = CBN_OUT_ROW(dx, r, 9);
        CBN_STREAM_ROW(row, tile.cols, j, at, to, CBN_STORE(to, at, CBN_LOAD(g, j) * scale[j] + 0);)
    }
}

/* What becomes of dx. */
#ifndef CBN_NO_DX
#define CBN_NO_DX 0
#define CBN_STORE_DX 1
#define CBN_STREAM_DX 2
#endif

CBN_INLINE void CBN_NAME(backward_sums_rows)(const CBN_NAME(sums_work) * w, int first, int end,
                                             int with_dx, cbn_output dx, cbn_input dy, cbn_input x,
                                             cbn_tile tile)
{
    /* same(4 -> 5): a fifth row is widened and not read */
    const ptrdiff_t rows = cbn_least(tile.rows, 4);
    const int half = CBN_HALVES && (x.half != NULL || dy.half != NULL || dx.half != NULL);
    const int stream = with_dx == CBN_STREAM_DX;
    const ptrdiff_t bytes = half ? CBN_HALF_BYTES : (ptrdiff_t)sizeof(CBN_ELEMENT);
    const ptrdiff_t skew = tile.skew;
    CBN_PARTS_OF(bytes, half || stream, tile, j, stream ? dx.data : x.data, {
        tile.skew = stream && skew > 0 ? (skew + j) % CBN_LINE : skew;
        const CBN_NAME(sums_work) at = {.s = w->s + j,
                                        .t = w->t + j,
                                        .high = w->high + j,
                                        .power = w->power + j,
                                        .scale = w->scale + j,
                                        .zeros = w->zeros,
                                        .sum_dy = w->sum_dy + j,
                                        .low_dy = w->low_dy + j,
                                        .sum_dy_xhat = w->sum_dy_xhat + j,
                                        .low_dy_xhat = w->low_dy_xhat + j};
        const cbn_input x_rows = CBN_NAME(widened)(x, rows, &tile, 13);
        const cbn_input dy_rows = CBN_NAME(widened)(dy, rows, &tile, 17);
        CBN_NAME(backward_sums_part)(&at, first, end, with_dx == CBN_STORE_DX, dx, dy_rows, x_rows,
                                     tile);
        if (stream) {
            CBN_NAME(stream_dx)(at.scale, dx, dy_rows, tile);
        }
        CBN_SKIP(x, tile.cols)
        CBN_SKIP(dy, tile.cols)
        CBN_SKIP(dx, tile.cols)
    })
}

CBN_INLINE void CBN_NAME(backward_sums_block)(const CBN_NAME(sums_work) * w, int with_dx,
                                              cbn_output dx, cbn_input dy, cbn_input x,
                                              cbn_tile tile)
{
    CBN_GATHER_FOUR(x, 13)
    CBN_GATHER_FOUR(dy, 22)
    /* What starts from zeros needs no loop of its own for its first rows, and one loop the fewer to
     * compile is worth more than a hundredth of the time of blocks of four rows, or of those with
     * dx. */
    int first = with_dx == CBN_NO_DX && tile.rows > 4;
    if (!first) {
        memset(w->s, 0, (size_t)tile.cols * sizeof *w->s);
        memset(w->t, 0, (size_t)tile.cols * sizeof *w->t);
    }
    while (tile.rows > 4) {
        if (first) {
            /* same(1 -> 2): any number but 0 is true */
            CBN_NAME(backward_sums_rows)(w, 1, 0, with_dx, dx, dy, x, tile);
        } else {
            CBN_NAME(backward_sums_rows)(w, 0, 0, with_dx, dx, dy, x, tile);
        }
        first = 0;
        tile.rows -= 4;
        CBN_ADVANCE(x, 4)
        CBN_ADVANCE(dy, 4)
        CBN_ADVANCE(dx, 4)
        CBN_GATHER_FOUR(x, 13)
        CBN_GATHER_FOUR(dy, 22)
    }
    /* same(1 -> 2): any number but 0 is true */
    CBN_NAME(backward_sums_rows)(w, 0, 1, with_dx, dx, dy, x, tile);
}

CBN_INLINE void CBN_NAME(backward_sums_blocks)(const CBN_NAME(sums_work) * w, int with_dx,
                                               cbn_output dx, cbn_input dy, cbn_input x,
                                               cbn_tile tile)
{
    for (ptrdiff_t left = tile.rows; left > 0; left -= CBN_BLOCK_ROWS) {
        tile.rows = cbn_least(left, CBN_BLOCK_ROWS);
        CBN_NAME(backward_sums_block)(w, with_dx, dx, dy, x, tile);
        CBN_ADVANCE(dx, tile.rows)
        CBN_ADVANCE(dy, tile.rows)
        CBN_ADVANCE(x, tile.rows)
    }
}

/* In one function with them, the sums alone took 1.02 to 1.06 times as long. */
CBN_APART_FROM_CALLER static void CBN_NAME(backward_sums_storing)(const CBN_NAME(sums_work) * w,
                                                                  cbn_output dx, cbn_input dy,
                                                                  cbn_input x, cbn_tile tile)
{
    CBN_NAME(backward_sums_blocks)(w, CBN_STORE_DX, dx, dy, x, tile);
}

CBN_UNUSED CBN_APART_FROM_CALLER static void
CBN_NAME(backward_sums_streaming)(const CBN_NAME(sums_work) * w, cbn_output dx, cbn_input dy,
                                  cbn_input x, cbn_tile tile)
{
    CBN_NAME(backward_sums_blocks)(w, CBN_STREAM_DX, dx, dy, x, tile);
    cbn_stream_end();
}

/* The power of two of the same exponent; 0, inf and NaN become 0 and inf. */
CBN_INLINE double CBN_NAME(power_of_two)(double value)
{
    uint64_t bits;
    memcpy(&bits, &value, sizeof bits);
    bits &= 0x7ff0000000000000u;
    memcpy(&value, &bits, sizeof value);
    return value;
}

static void CBN_NAME(backward_sums_run)(double *sum_dy, double *sum_dy_xhat, cbn_output dx,
                                        cbn_input dy, cbn_input x, cbn_tile tile,
                                        const cbn_channels *channels)
{
    const ptrdiff_t rows = tile.rows, cols = tile.cols, count = cbn_channels_of(&tile);
    double *const dy_columns = tile.run > 1 ? CBN_SCRATCH(double, 8) : sum_dy;
    double *const dy_xhat_columns = tile.run > 1 ? CBN_SCRATCH(double, 21) : sum_dy_xhat;
    double *const low_dy = CBN_SCRATCH(double, 6), *const low_dy_xhat = CBN_SCRATCH(double, 7);
    const CBN_NAME(sums_work) w = {.s = CBN_SCRATCH(CBN_WORK, 0),
                                   .t = CBN_SCRATCH(CBN_WORK, 1),
                                   .high = CBN_SCRATCH(CBN_WORK, 2),
                                   .power = CBN_SCRATCH(CBN_WORK, 3),
                                   .scale = CBN_SCRATCH(CBN_WORK, 4),
                                   .zeros = CBN_SCRATCH(CBN_ELEMENT, 5),
                                   .sum_dy = dy_columns,
                                   .low_dy = low_dy,
                                   .sum_dy_xhat = dy_xhat_columns,
                                   .low_dy_xhat = low_dy_xhat};
    CBN_SIMD
    for (ptrdiff_t c = 0; c < count; ++c) {
        w.high[c] = (CBN_WORK)channels->mean[c];
        w.power[c] = (CBN_WORK)CBN_NAME(power_of_two)(channels->invstd[c]);
        w.scale[c] = (CBN_WORK)channels->scale[c];
    }
    CBN_SPREAD(w.high, tile)
    CBN_SPREAD(w.power, tile)
    CBN_SPREAD(w.scale, tile)
    if (rows % 4 != 0) {
        memset(w.zeros, 0, (size_t)cols * sizeof *w.zeros);
    }
    memset(dy_columns, 0, (size_t)cols * sizeof *dy_columns);
    memset(dy_xhat_columns, 0, (size_t)cols * sizeof *dy_xhat_columns);
    if (CBN_KEEP_LOW) {
        memset(low_dy, 0, (size_t)cols * sizeof *low_dy);
        memset(low_dy_xhat, 0, (size_t)cols * sizeof *low_dy_xhat);
    }
    if (!CBN_GIVEN(dx)) {
        CBN_NAME(backward_sums_blocks)(&w, CBN_NO_DX, dx, dy, x, tile);
    } else if (CBN_TUNED && !CBN_HALVES && tile.stream && cbn_can_stream(&dx)) {
        CBN_NAME(backward_sums_streaming)(&w, dx, dy, x, tile);
    } else {
        CBN_NAME(backward_sums_storing)(&w, dx, dy, x, tile);
    }
    CBN_ADD_COLUMNS(dy_columns, tile)
    CBN_ADD_COLUMNS(dy_xhat_columns, tile)
    if (CBN_KEEP_LOW) {
        CBN_ADD_COLUMNS(low_dy, tile)
        CBN_ADD_COLUMNS(low_dy_xhat, tile)
    }
    CBN_SIMD
    for (ptrdiff_t c = 0; c < count; ++c) {
        /* an infinite sum has no rounding error but NaN */
        const double low_s = CBN_KEEP_LOW && low_dy[c] == low_dy[c] ? low_dy[c] : 0;
        const double low_t = CBN_KEEP_LOW && low_dy_xhat[c] == low_dy_xhat[c] ? low_dy_xhat[c] : 0;
        const double power = CBN_NAME(power_of_two)(channels->invstd[c]);
        const double high = (double)(CBN_WORK)channels->mean[c];
        const double low = (channels->mean[c] - high + channels->mean_low[c]) * power;
        const double ratio = power == 0 ? 0 : channels->invstd[c] / power;
        sum_dy_xhat[c] = (dy_xhat_columns[c] + (low_t - low * (dy_columns[c] + low_s))) * ratio;
        sum_dy[c] = dy_columns[c] + low_s;
    }
}

#ifdef CBN_WIDE
/* Out of the range in which float32 sums keep their bits. No terms, no sum: zero is in it. */
CBN_INLINE int CBN_NAME(sum_extreme)(double sum)
{
    const double size = fabs(sum);
    /* same(100 -> 101, <= -> <, >= -> >): bits are kept there */
    return !((size >= 0x1p-100) & (size <= 0x1p126)) & (size != 0);
}

CBN_INLINE int CBN_NAME(sums_extreme)(double s, double t)
{
    return CBN_NAME(sum_extreme)(s) | CBN_NAME(sum_extreme)(t);
}

/* Those channels once more; one at a time, for they are rare. */
static void CBN_NAME(backward_sums_again)(double *sum_dy, double *sum_dy_xhat, cbn_input dy,
                                          cbn_input x, cbn_tile tile, const cbn_channels *channels)
{
    const cbn_output none = {.data = NULL};
    cbn_channels rest = *channels;
    const ptrdiff_t count = cbn_channels_of(&tile);
    /* same(0 -> 1): to look at every channel is a matter of speed */
    int any = 0;
    for (ptrdiff_t c = 0; c < count; ++c) {
        any |= CBN_NAME(sums_extreme)(sum_dy[c], sum_dy_xhat[c]);
    }
    tile.cols = tile.run;
    for (ptrdiff_t c = 0; any && c < count; ++c) {
        if (CBN_NAME(sums_extreme)(sum_dy[c], sum_dy_xhat[c])) {
            CBN_WIDE(backward_sums_run)(sum_dy + c, sum_dy_xhat + c, none, dy, x, tile, &rest);
        }
        cbn_skip(&rest, 1);
        CBN_SKIP(dy, tile.cols)
        CBN_SKIP(x, tile.cols)
    }
}
#endif

CBN_UNUSED static void CBN_NAME(backward_sums)(double *sum_dy, double *sum_dy_xhat, cbn_output dx,
                                               cbn_input dy, cbn_input x, cbn_tile tile,
                                               const cbn_channels *channels)
{
#ifdef CBN_WIDE
    cbn_channels rest = *channels;
    for (ptrdiff_t left = cbn_channels_of(&tile), count; left > 0; left -= count) {
        int wide;
        count = cbn_alike(&wide, &rest, left);
        tile.cols = count * tile.run;
        cbn_tile_at(&tile, x, sizeof(CBN_ELEMENT));
        if (wide) {
            CBN_WIDE(backward_sums_run)(sum_dy, sum_dy_xhat, dx, dy, x, tile, &rest);
        } else {
            CBN_NAME(backward_sums_run)(sum_dy, sum_dy_xhat, dx, dy, x, tile, &rest);
            CBN_NAME(backward_sums_again)(sum_dy, sum_dy_xhat, dy, x, tile, &rest);
        }
        cbn_skip(&rest, count);
        sum_dy += count;
        sum_dy_xhat += count;
        CBN_SKIP(dx, tile.cols)
        CBN_SKIP(dy, tile.cols)
        CBN_SKIP(x, tile.cols)
    }
#else
    cbn_tile_at(&tile, x, sizeof(CBN_ELEMENT));
    CBN_NAME(backward_sums_run)(sum_dy, sum_dy_xhat, dx, dy, x, tile, channels);
#endif
}
