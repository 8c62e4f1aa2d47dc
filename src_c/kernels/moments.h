/* Mean and centred sum of squares of each channel, in one read.            docs/math.md (1), (2)
 *
 * A block of CBN_BLOCK_ROWS rows is summed in the working type as differences d = x - anchor,
 *     s = sum(d), q = sum(d * d),
 * eight rows at a time as a tree; blocks are added in float64, then the columns of a run. The
 * anchor is the mean so far (of the first rows for twice as many, hence they are summed twice),
 * renewed and the sums folded into mean and m2 whenever the rows have doubled: differences of near
 * values are exact, a constant channel gives zeros to the bit, and q - s * s / n loses nothing that
 * counts, because as many rows lie before, and the distance of their mean comes back as much as it
 * cancels. What float32 cannot hold (squares past its range) is summed again in float64.
 */

/* Rows that are read twice, for the first anchor, which then serves as many again: half of few
 * rows. To fold is dear for columns, where eight rows of many took 1.15 times as long at 64 x 256.
 * It is cheap for channels, but not their sums before it: of 32 images sixteen for the anchor take
 * 0.95 times as long as eight. */
CBN_INLINE ptrdiff_t CBN_NAME(anchor_rows)(ptrdiff_t rows, ptrdiff_t run)
{
    return cbn_least((rows + 15) / 16 * 8, run == 1 ? CBN_BLOCK_ROWS : 16);
}

/* Eight rows. The first rows of a block make s and q, the last
 * add them to the float64 sums. Rows past the end read the anchor, so their differences are exact
 * zeros. anchor - x instead of x - anchor is a load the fewer, since x is then the operand that may
 * come from memory: 0.95 times the time, here and in the other kernels. */
CBN_INLINE void CBN_NAME(moments_part)(CBN_WORK *s, CBN_WORK *q, double *sum, double *squares,
                                       int first, int last, const CBN_ELEMENT *anchor, cbn_input x,
                                       cbn_tile tile)
{
    const ptrdiff_t left = tile.rows;
    CBN_GATHER(x, cbn_least(left, 8), 13)
    const CBN_ELEMENT *const x0 = CBN_ROW(x, 0, 13);
    const CBN_ELEMENT *const x1 = left > 1 ? CBN_ROW(x, 1, 14) : anchor;
    const CBN_ELEMENT *const x2 = left > 2 ? CBN_ROW(x, 2, 15) : anchor;
    const CBN_ELEMENT *const x3 = left > 3 ? CBN_ROW(x, 3, 16) : anchor;
    const CBN_ELEMENT *const x4 = left > 4 ? CBN_ROW(x, 4, 17) : anchor;
    const CBN_ELEMENT *const x5 = left > 5 ? CBN_ROW(x, 5, 18) : anchor;
    const CBN_ELEMENT *const x6 = left > 6 ? CBN_ROW(x, 6, 19) : anchor;
    const CBN_ELEMENT *const x7 = left > 7 ? CBN_ROW(x, 7, 20) : anchor;
    CBN_COLUMNS(tile, j, {
        const CBN_WORK k = CBN_LOAD(anchor, j);
        const CBN_WORK d0 = k - CBN_LOAD(x0, j), d1 = k - CBN_LOAD(x1, j);
        const CBN_WORK d2 = k - CBN_LOAD(x2, j), d3 = k - CBN_LOAD(x3, j);
        const CBN_WORK d4 = k - CBN_LOAD(x4, j), d5 = k - CBN_LOAD(x5, j);
        const CBN_WORK d6 = k - CBN_LOAD(x6, j), d7 = k - CBN_LOAD(x7, j);
        const CBN_WORK d = ((d0 + d1) + (d2 + d3)) + ((d4 + d5) + (d6 + d7));
        const CBN_WORK all = first ? d : s[j] + d;
        if (last) {
            sum[j] -= (double)all;
        } else {
            s[j] = all;
        }
        const CBN_WORK d_d = ((d0 * d0 + d1 * d1) + (d2 * d2 + d3 * d3)) +
                             ((d4 * d4 + d5 * d5) + (d6 * d6 + d7 * d7));
        const CBN_WORK all_squares = first ? d_d : q[j] + d_d;
        if (last) {
            squares[j] += (double)all_squares;
        } else {
            q[j] = all_squares;
        }
    })
}

CBN_INLINE void CBN_NAME(moments_rows)(CBN_WORK *s, CBN_WORK *q, double *sum, double *squares,
                                       int first, int last, const CBN_ELEMENT *anchor, cbn_input x,
                                       cbn_tile tile){
    CBN_PARTS(tile, j, x.half != NULL, x.data,
              {
                  /* same(13 -> 14): free scratch too */
                  const cbn_input rows = CBN_NAME(widened)(x, cbn_least(tile.rows, 8), &tile, 13);
                  /* same(+ -> -): the sums of a part may lie anywhere in scratch */
                  CBN_NAME(moments_part)(s + j, q + j, sum + j, squares + j, first, last,
                                         anchor + j, rows, tile);
                  CBN_SKIP(x, tile.cols)
              })}

CBN_INLINE void CBN_NAME(moments_block)(CBN_WORK *s, CBN_WORK *q, double *sum, double *squares,
                                        const CBN_ELEMENT *anchor, cbn_input x, cbn_tile tile)
{
    int first = tile.rows > 8;
    if (!first) { /* Eight rows or fewer start from zeros, which saves a copy of the loop for them.
                   */
        memset(s, 0, (size_t)tile.cols * sizeof *s);
        memset(q, 0, (size_t)tile.cols * sizeof *q);
    }
    while (tile.rows > 8) {
        if (first) {
            /* same(1 -> 2): any number but 0 is true */
            CBN_NAME(moments_rows)(s, q, sum, squares, 1, 0, anchor, x, tile);
        } else {
            CBN_NAME(moments_rows)(s, q, sum, squares, 0, 0, anchor, x, tile);
        }
        first = 0;
        tile.rows -= 8;
        CBN_ADVANCE(x, 8)
    }
    /* same(1 -> 2): any number but 0 is true */
    CBN_NAME(moments_rows)(s, q, sum, squares, 0, 1, anchor, x, tile);
}

/* Add the blocks of the tile's rows in float64. */
static void CBN_NAME(moments_blocks)(double *sum, double *squares, CBN_WORK *s, CBN_WORK *q,
                                     const CBN_ELEMENT *anchor, cbn_input x, cbn_tile tile)
{
    cbn_tile block = tile;
    memset(sum, 0, (size_t)tile.cols * sizeof *sum);
    memset(squares, 0, (size_t)tile.cols * sizeof *squares);
    for (ptrdiff_t left = tile.rows; left > 0; left -= CBN_BLOCK_ROWS) {
        block.rows = cbn_least(left, CBN_BLOCK_ROWS);
        CBN_NAME(moments_block)(s, q, sum, squares, anchor, x, block);
        CBN_ADVANCE(x, block.rows)
    }
}

/* Merge the tile's rows into `before` rows seen already.                         docs/math.md (44)
 * For float64 base + offset is kept as the nearest number and what it leaves out; the spread of
 * float32 is so much larger than what float64 rounds off that base may stay where it began. */
static void CBN_NAME(moments_fold)(double *base, double *offset, double *m2, const double *sum,
                                   const double *squares, const CBN_ELEMENT *anchor,
                                   ptrdiff_t before, cbn_tile tile)
{
    const double n = (double)(tile.rows * tile.run), n_before = (double)(before * tile.run);
    const double inv_n = 1.0 / n;
    const double share = n / (n_before + n);
    const double spread = n_before * share;
    CBN_SIMD
    for (ptrdiff_t j = 0; j < cbn_channels_of(&tile); ++j) {
        const double mean_d = sum[j] * inv_n;
        const double from_base = ((double)CBN_LOAD(anchor, j) - base[j]) + mean_d;
        const double delta = from_base - offset[j];
#if CBN_KEEP_LOW
        double low = 0;
        cbn_two_sum(&base[j], &low, offset[j] + delta * share);
        offset[j] = low;
#else
        offset[j] += delta * share;
#endif
        m2[j] += (squares[j] - sum[j] * mean_d) + delta * delta * spread;
    }
}

/* The first anchor of each channel: of its columns row 0, then the mean of the first rows that it
 * leads to unless that overflowed, then their mean. */
static void CBN_NAME(moments_first_anchor)(CBN_ELEMENT *anchor, CBN_WORK *s, CBN_WORK *q,
                                           double *sum, double *squares, cbn_input x, cbn_tile tile)
{
    memcpy(anchor, CBN_ROW(x, 0, 13), (size_t)tile.cols * sizeof *anchor);
    CBN_NAME(moments_blocks)(sum, squares, s, q, anchor, x, tile);
    const double inv_n = 1 / (double)tile.rows;
    CBN_SIMD
    /* same(< -> <=): there is room for one more, which is not used */
    for (ptrdiff_t j = 0; j < tile.cols; ++j) {
        const CBN_WORK first = CBN_LOAD(anchor, j), mean = first + (CBN_WORK)(sum[j] * inv_n);
        const CBN_WORK near = mean - mean == 0 ? mean : first;
        sum[j] = (double)near;
        CBN_STORE(anchor, j, near);
    }
    CBN_ADD_COLUMNS(sum, tile)
    for (ptrdiff_t c = 0; tile.run > 1 && c < cbn_channels_of(&tile); ++c) {
        CBN_STORE(anchor, c, sum[c] / (double)tile.run);
    }
}

#ifdef CBN_WIDE
/* Clear of overflow, and of underflow that counts. */
CBN_INLINE int CBN_NAME(moments_trust)(double squares)
{
    return (squares >= 0x1p-110) & (squares <= 0x1p140);
}

static int CBN_NAME(moments_all_trusted)(const double *squares, ptrdiff_t count)
{
    int bad = 0;
    for (ptrdiff_t j = 0; j < count; ++j) {
        bad |= !CBN_NAME(moments_trust)(squares[j]);
    }
    return !bad;
}

/* Constant channels are not to be trusted (no squares) and yet exact: they alone do not earn the
 * second, wide look. It costs three times the first, and zero channels are common. */
static int CBN_NAME(moments_untrusted_are_constant)(const double *squares, CBN_WORK *largest,
                                                    const CBN_ELEMENT *anchor, cbn_input x,
                                                    cbn_tile tile)
{
    memset(largest, 0, (size_t)tile.cols * sizeof *largest);
    for (ptrdiff_t r = 0; r < tile.rows; ++r) {
        const CBN_ELEMENT *const row = CBN_ROW(x, r, 13);
        CBN_SIMD
        /* same(< -> <=): there is room for one more, which is not used */
        for (ptrdiff_t j = 0; j < tile.cols; ++j) {
            const CBN_WORK d = fabsf(CBN_LOAD(row, j) - CBN_LOAD(anchor, j));
            /* same(> -> >=): either of two equal numbers is the largest */
            largest[j] = d > largest[j] ? d : largest[j];
        }
    }
    int bad = 0;
    /* same(< -> <=): there is room for one more, which is not used */
    for (ptrdiff_t j = 0; j < tile.cols; ++j) {
        /* same(0 -> 1): speed alone */
        bad |= !CBN_NAME(moments_trust)(squares[j / tile.run]) & (largest[j] != 0);
    }
    return !bad;
}

/* Sums of the untrusted channels by float64 arithmetic. */
static void CBN_NAME(moments_again)(double *sum, double *squares, const CBN_ELEMENT *anchor,
                                    cbn_input x, cbn_tile tile)
{
    double *const wide_sum = CBN_SCRATCH(double, 5), *const wide_squares = CBN_SCRATCH(double, 6);
    double *const s = CBN_SCRATCH(double, 7), *const q = CBN_SCRATCH(double, 8);
    CBN_WIDE(moments_blocks)(wide_sum, wide_squares, s, q, anchor, x, tile);
    CBN_ADD_COLUMNS(wide_sum, tile)
    CBN_ADD_COLUMNS(wide_squares, tile)
    for (ptrdiff_t j = 0; j < cbn_channels_of(&tile); ++j) {
        if (!CBN_NAME(moments_trust)(squares[j])) {
            sum[j] = wide_sum[j];
            squares[j] = wide_squares[j];
        }
    }
}
#endif

CBN_UNUSED static void CBN_NAME(moments)(double *base, double *offset, double *m2, cbn_input x,
                                         cbn_tile tile)
{
    const ptrdiff_t rows = tile.rows, count = cbn_channels_of(&tile);
    cbn_tile_at(&tile, x, sizeof(CBN_ELEMENT));
    CBN_WORK *const s = CBN_SCRATCH(CBN_WORK, 0);
    CBN_WORK *const q = CBN_SCRATCH(CBN_WORK, 1);
    CBN_ELEMENT *const anchor = CBN_SCRATCH(CBN_ELEMENT, 2);
    double *const sum = CBN_SCRATCH(double, 3), *const squares = CBN_SCRATCH(double, 4);
    for (ptrdiff_t before = 0; before < rows; before += tile.rows) {
        cbn_input segment = x;
        CBN_ADVANCE(segment, before)
        if (before == 0) {
            tile.rows = cbn_least(CBN_NAME(anchor_rows)(rows, tile.run), rows);
            CBN_NAME(moments_first_anchor)(anchor, s, q, sum, squares, segment, tile);
            tile.rows = cbn_least(2 * tile.rows, rows);
            CBN_SIMD
            for (ptrdiff_t j = 0; j < count; ++j) {
                base[j] = (double)CBN_LOAD(anchor, j);
                offset[j] = 0;
                m2[j] = 0;
            }
        } else {
            tile.rows = cbn_least(before, rows - before);
            CBN_SIMD
            for (ptrdiff_t j = 0; j < count; ++j) {
                CBN_STORE(anchor, j, base[j] + offset[j]);
            }
        }
        CBN_SPREAD(anchor, tile)
        CBN_NAME(moments_blocks)(sum, squares, s, q, anchor, segment, tile);
        CBN_ADD_COLUMNS(sum, tile)
        CBN_ADD_COLUMNS(squares, tile)
#ifdef CBN_WIDE
        if (!CBN_NAME(moments_all_trusted)(squares, count) &&
            !CBN_NAME(moments_untrusted_are_constant)(squares, s, anchor, segment, tile)) {
            CBN_NAME(moments_again)(sum, squares, anchor, segment, tile);
        }
#endif
        /* same(> -> >=, < -> <=): columns of a run of one are the channels; there is room for one
         * more */
        for (ptrdiff_t j = 1; tile.run > 1 && j < count; ++j) {
            anchor[j] = anchor[j * tile.run];
        }
        CBN_NAME(moments_fold)(base, offset, m2, sum, squares, anchor, before, tile);
    }
}
