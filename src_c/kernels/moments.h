/* Mean and centred sum of squares of each channel, in one read.            docs/math.md (1), (2)
 *
 * A block of CBN_BLOCK_ROWS rows is summed in the working type as differences d = x - anchor,
 *     s = sum(d), q = sum(d * d),
 * eight rows at a time as a tree, then folded into float64 by the merging rule. The anchor is the
 * mean so far (of the block itself for the first one, which is summed twice): differences of near
 * values are exact, a constant channel gives zeros to the bit, and q - s * s / n loses nothing
 * that counts, because what it cancels comes back as the distance between the means. What float32
 * cannot hold (squares past its range) is summed again in float64.
 */

/* Rows past the end read the anchor, so their differences are exact zeros. */
static void CBN_NAME(moments_block)(CBN_WORK *s, CBN_WORK *q, const CBN_ELEMENT *anchor,
                                    cbn_input x, ptrdiff_t rows, ptrdiff_t cols)
{
    memset(s, 0, (size_t)cols * sizeof *s);
    memset(q, 0, (size_t)cols * sizeof *q);
    for (ptrdiff_t r = 0; r < rows; r += 8) {
        const CBN_ELEMENT *const x0 = CBN_ROW(x, r);
        const CBN_ELEMENT *const x1 = r + 1 < rows ? CBN_ROW(x, r + 1) : anchor;
        const CBN_ELEMENT *const x2 = r + 2 < rows ? CBN_ROW(x, r + 2) : anchor;
        const CBN_ELEMENT *const x3 = r + 3 < rows ? CBN_ROW(x, r + 3) : anchor;
        const CBN_ELEMENT *const x4 = r + 4 < rows ? CBN_ROW(x, r + 4) : anchor;
        const CBN_ELEMENT *const x5 = r + 5 < rows ? CBN_ROW(x, r + 5) : anchor;
        const CBN_ELEMENT *const x6 = r + 6 < rows ? CBN_ROW(x, r + 6) : anchor;
        const CBN_ELEMENT *const x7 = r + 7 < rows ? CBN_ROW(x, r + 7) : anchor;
        CBN_SIMD
        for (ptrdiff_t j = 0; j < cols; ++j) {
            const CBN_WORK k = CBN_LOAD(anchor, j);
            const CBN_WORK d0 = CBN_LOAD(x0, j) - k, d1 = CBN_LOAD(x1, j) - k;
            const CBN_WORK d2 = CBN_LOAD(x2, j) - k, d3 = CBN_LOAD(x3, j) - k;
            const CBN_WORK d4 = CBN_LOAD(x4, j) - k, d5 = CBN_LOAD(x5, j) - k;
            const CBN_WORK d6 = CBN_LOAD(x6, j) - k, d7 = CBN_LOAD(x7, j) - k;
            s[j] += ((d0 + d1) + (d2 + d3)) + ((d4 + d5) + (d6 + d7));
            q[j] += ((d0 * d0 + d1 * d1) + (d2 * d2 + d3 * d3)) +
                    ((d4 * d4 + d5 * d5) + (d6 * d6 + d7 * d7));
        }
    }
}

/* Merge a block of n rows into the `before` rows seen already.              docs/math.md (44) */
static void CBN_NAME(moments_fold)(double *base, double *offset, double *m2, const CBN_WORK *s,
                                   const CBN_WORK *q, const CBN_ELEMENT *anchor, ptrdiff_t n,
                                   ptrdiff_t before, ptrdiff_t cols)
{
    const double inv_n = 1.0 / (double)n;
    const double share = (double)n / (double)(before + n);
    const double spread = (double)before * share;
    CBN_SIMD
    for (ptrdiff_t j = 0; j < cols; ++j) {
        const double mean_d = (double)s[j] * inv_n;
        const double block_mean = ((double)CBN_LOAD(anchor, j) - base[j]) + mean_d;
        const double block_m2 = (double)q[j] - (double)s[j] * mean_d;
        const double delta = block_mean - offset[j];
        offset[j] += delta * share;
        m2[j] += block_m2 + delta * delta * spread;
    }
}

/* The first anchor: row 0, then the mean it leads to unless that overflowed. */
static void CBN_NAME(moments_first_anchor)(CBN_ELEMENT *anchor, CBN_WORK *s, CBN_WORK *q,
                                           cbn_input x, ptrdiff_t rows, ptrdiff_t cols)
{
    memcpy(anchor, x.data, (size_t)cols * sizeof *anchor);
    CBN_NAME(moments_block)(s, q, anchor, x, rows, cols);
    const CBN_WORK inv_n = 1 / (CBN_WORK)rows;
    CBN_SIMD
    for (ptrdiff_t j = 0; j < cols; ++j) {
        const CBN_WORK first = CBN_LOAD(anchor, j), mean = first + s[j] * inv_n;
        CBN_STORE(anchor, j, mean - mean == 0 ? mean : first);
    }
}

static void CBN_NAME(moments_next_anchor)(CBN_ELEMENT *anchor, const double *base,
                                          const double *offset, ptrdiff_t cols)
{
    CBN_SIMD
    for (ptrdiff_t j = 0; j < cols; ++j) {
        CBN_STORE(anchor, j, base[j] + offset[j]);
    }
}

#ifdef CBN_WIDE
/* Clear of overflow and underflow. */
CBN_INLINE int CBN_NAME(moments_trust)(CBN_WORK q) { return (q >= 0x1p-110f) & (q <= 0x1p120f); }

static int CBN_NAME(moments_all_trusted)(const CBN_WORK *q, ptrdiff_t cols)
{
    int bad = 0;
    for (ptrdiff_t j = 0; j < cols; ++j) {
        bad |= !CBN_NAME(moments_trust)(q[j]);
    }
    return !bad;
}

/* Constant channels are not to be trusted (q == 0) and yet exact: they alone do not earn the
 * second, wide look. It costs three times the first, and zero channels are common. */
static int CBN_NAME(moments_untrusted_are_constant)(const CBN_WORK *q, CBN_WORK *largest,
                                                    const CBN_ELEMENT *anchor, cbn_input x,
                                                    ptrdiff_t rows, ptrdiff_t cols)
{
    memset(largest, 0, (size_t)cols * sizeof *largest);
    for (ptrdiff_t r = 0; r < rows; ++r) {
        const CBN_ELEMENT *const row = CBN_ROW(x, r);
        CBN_SIMD
        for (ptrdiff_t j = 0; j < cols; ++j) {
            const CBN_WORK d = fabsf(CBN_LOAD(row, j) - CBN_LOAD(anchor, j));
            largest[j] = d > largest[j] ? d : largest[j];
        }
    }
    int bad = 0;
    for (ptrdiff_t j = 0; j < cols; ++j) {
        bad |= !CBN_NAME(moments_trust)(q[j]) & (largest[j] != 0);
    }
    return !bad;
}

static void CBN_NAME(moments_again)(double *wide_s, double *wide_q, const CBN_WORK *s,
                                    const CBN_WORK *q, const CBN_ELEMENT *anchor, cbn_input x,
                                    ptrdiff_t rows, ptrdiff_t cols)
{
    CBN_WIDE(moments_block)(wide_s, wide_q, anchor, x, rows, cols);
    for (ptrdiff_t j = 0; j < cols; ++j) {
        if (CBN_NAME(moments_trust)(q[j])) {
            wide_s[j] = s[j];
            wide_q[j] = q[j];
        }
    }
}
#endif

CBN_UNUSED static void CBN_NAME(moments)(double *base, double *offset, double *m2, cbn_input x,
                                         cbn_tile tile)
{
    const ptrdiff_t cols = tile.cols;
    CBN_WORK *const s = CBN_SCRATCH(CBN_WORK, 0);
    CBN_WORK *const q = CBN_SCRATCH(CBN_WORK, 1);
    CBN_ELEMENT *const anchor = CBN_SCRATCH(CBN_ELEMENT, 2);
    for (ptrdiff_t start = 0; start < tile.rows; start += CBN_BLOCK_ROWS) {
        const ptrdiff_t left = tile.rows - start;
        const ptrdiff_t n = left < CBN_BLOCK_ROWS ? left : CBN_BLOCK_ROWS;
        const cbn_input block = {x.data + start * x.stride, x.stride};
        if (start == 0) {
            CBN_NAME(moments_first_anchor)(anchor, s, q, block, n, cols);
            for (ptrdiff_t j = 0; j < cols; ++j) {
                base[j] = (double)CBN_LOAD(anchor, j);
                offset[j] = 0;
                m2[j] = 0;
            }
        } else {
            CBN_NAME(moments_next_anchor)(anchor, base, offset, cols);
        }
        CBN_NAME(moments_block)(s, q, anchor, block, n, cols);
#ifdef CBN_WIDE
        if (!CBN_NAME(moments_all_trusted)(q, cols) &&
            !CBN_NAME(moments_untrusted_are_constant)(q, CBN_SCRATCH(CBN_WORK, 3), anchor, block, n,
                                                      cols)) {
            double *const wide_s = CBN_SCRATCH(double, 4);
            double *const wide_q = CBN_SCRATCH(double, 5);
            CBN_NAME(moments_again)(wide_s, wide_q, s, q, anchor, block, n, cols);
            CBN_WIDE(moments_fold)(base, offset, m2, wide_s, wide_q, anchor, n, start, cols);
            continue;
        }
#endif
        CBN_NAME(moments_fold)(base, offset, m2, s, q, anchor, n, start, cols);
    }
}
