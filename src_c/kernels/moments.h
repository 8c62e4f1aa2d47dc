/* Mean and centred sum of squares of each channel, in one read.            docs/math.md (1), (2)
 *
 * Rows are summed as differences from an anchor, which is the mean of the rows so far: differences
 * of near values are exact, a constant channel gives zeros to the bit, and sum((x - anchor)^2) less
 * sum(x - anchor)^2 / n loses nothing that counts. The anchor is renewed, and the sums are merged
 * into mean and m2, whenever the number of rows has doubled: as many rows lie before, so that the
 * distance of their mean comes back as much as it cancels. The first rows are summed twice, since
 * they make the first anchor. What float32 cannot hold is summed again in float64. */
#ifndef CBN_MOMENTS_H
#define CBN_MOMENTS_H

#include "reduce.h"
#include "runs.h"

/* Rows that make the first anchor. It serves the same rows, whose distance from it is then as small
 * as can be. Runs would have to be added up once more for that, and the anchor of half of them
 * serves all [anchor]. */
CBN_INLINE ptrdiff_t anchor_rows(ptrdiff_t rows, ptrdiff_t run)
{
    if (run == 1) {
        return rows <= 64 ? rows : 32;
    }
    const ptrdiff_t eights = (rows + 15) / 16 * 8;
    return cbn_least(cbn_least(eights, 16), rows);
}

CBN_INLINE ptrdiff_t first_rows(ptrdiff_t rows, ptrdiff_t run)
{
    return cbn_least((run == 1 ? 1 : 2) * anchor_rows(rows, run), rows);
}

/* Merges the tile's rows into `before` rows seen already.                      docs/math.md (44)
 * Where errors are kept, base + offset is the nearest number and what it leaves out. The spread of
 * float32 is so much larger than what float64 rounds off that base may stay where it began. */
static void merge_rows(double *base, double *offset, double *m2, double *const sums[2],
                       const element *anchor, ptrdiff_t before, const cbn_tile *tile)
{
    const double n = (double)(tile->rows * tile->run), n_before = (double)(before * tile->run);
    const double inv_n = 1.0 / n;
    const double share = n / (n_before + n);
    const double spread = n_before * share;
    const double *const sum = sums[0], *const squares = sums[1];
    CBN_SIMD
    for (ptrdiff_t j = 0; j < channels_of_tile(tile); ++j) {
        const double mean_d = sum[j] * inv_n;
        const double from_base = ((double)anchor[j] - base[j]) + mean_d;
        const double delta = from_base - offset[j];
        if (KEEPS_ERRORS) {
            double low = 0;
            cbn_two_sum(&base[j], &low, offset[j] + delta * share);
            offset[j] = low;
        } else {
            offset[j] += delta * share;
        }
        m2[j] += (squares[j] - sum[j] * mean_d) + delta * delta * spread;
    }
}

/* The first anchor of each channel: of a column row 0 leads to the mean of the first rows, which is
 * taken unless it overflowed; of a channel it is the mean of those. */
static void set_first_anchor(element *anchor, double *const sum[2], const cbn_rows *x,
                             const cbn_tile *tile)
{
    const ptrdiff_t cols = tile->cols;
    memcpy(anchor, whole_row(x, 0, tile, MOMENTS_X), (size_t)cols * sizeof *anchor);
    sum_differences(anchor_functions, sum, anchor, x, tile);
    const double inv_n = 1 / (double)tile->rows;
    double *const near = sum[0];
    CBN_SIMD
    /* same(< -> <=): there is room for one more, which is not used */
    for (ptrdiff_t j = 0; j < cols; ++j) {
        const element first = anchor[j], mean = first + (element)(near[j] * inv_n);
        anchor[j] = mean - mean == 0 ? mean : first;
        near[j] = (double)anchor[j];
    }
    sum_of_runs(near, tile);
    for (ptrdiff_t c = 0; tile->run > 1 && c < channels_of_tile(tile); ++c) {
        anchor[c] = (element)(near[c] / (double)tile->run);
    }
}

/* --- channels that float32 cannot hold ------------------------------------------------------- */

/* Clear of overflow, and of underflow that counts. */
CBN_INLINE int is_trusted(double squares) { return (squares >= 0x1p-110) & (squares <= 0x1p140); }

static int all_trusted(const double *squares, ptrdiff_t count)
{
    int bad = 0;
    for (ptrdiff_t j = 0; j < count; ++j) {
        bad |= !is_trusted(squares[j]);
    }
    return !bad;
}

/* Constant channels have no squares and are exact all the same. Alone they do not earn a second
 * look by the wide kernels [constant-channels], since channels of zeros are common. */
static int untrusted_are_constant(const double *squares, const element *anchor, const cbn_rows *x,
                                  const cbn_tile *tile)
{
    element *const largest = scratch_at(tile, MOMENTS_S);
    memset(largest, 0, (size_t)tile->cols * sizeof *largest);
    for (ptrdiff_t r = 0; r < tile->rows; ++r) {
        const element *const row = whole_row(x, r, tile, MOMENTS_X);
        CBN_SIMD
        /* same(< -> <=): there is room for one more, which is not used */
        for (ptrdiff_t j = 0; j < tile->cols; ++j) {
            const element difference = row[j] - anchor[j];
            const element d = difference < 0 ? -difference : difference;
            /* same(> -> >=): either of two equal numbers is the largest */
            largest[j] = d > largest[j] ? d : largest[j];
        }
    }
    int bad = 0;
    /* same(< -> <=): there is room for one more, which is not used */
    for (ptrdiff_t j = 0; j < tile->cols; ++j) {
        /* same(0 -> 1): speed alone */
        bad |= !is_trusted(squares[j / tile->run]) & (largest[j] != 0);
    }
    return !bad;
}

/* The sums of untrusted channels by float64 arithmetic. */
static void sum_untrusted_again(double *const sum[2], const element *anchor, const cbn_rows *x,
                                const cbn_tile *tile)
{
    double *const wide[2] = {scratch_at(tile, MOMENTS_WIDE_SUM),
                             scratch_at(tile, MOMENTS_WIDE_SUM + 1)};
    cbn_wide.moments_blocks(wide, (const void *)anchor, x, tile);
    sum_of_runs(wide[0], tile);
    sum_of_runs(wide[1], tile);
    for (ptrdiff_t j = 0; j < channels_of_tile(tile); ++j) {
        if (!is_trusted(sum[1][j])) {
            sum[0][j] = wide[0][j];
            sum[1][j] = wide[1][j];
        }
    }
}

/* --- the kernel ------------------------------------------------------------------------------ */

/* Sums of the tile's rows for each channel, of which the anchors become one number each. */
static void sum_segment(double *const sum[2], element *anchor, const cbn_rows *x,
                        const cbn_tile *tile)
{
    const ptrdiff_t count = channels_of_tile(tile);
    spread_over_runs(anchor, tile);
    moments_blocks(sum, anchor, x, tile);
    sum_of_runs(sum[0], tile);
    sum_of_runs(sum[1], tile);
    if (HAS_WIDE && !all_trusted(sum[1], count) &&
        !untrusted_are_constant(sum[1], anchor, x, tile)) {
        sum_untrusted_again(sum, anchor, x, tile);
    }
    /* same(> -> >=, < -> <=): columns of a run of one are the channels; there is room for one
     * more */
    for (ptrdiff_t j = 1; tile->run > 1 && j < count; ++j) {
        anchor[j] = anchor[j * tile->run];
    }
}

static void moments(double *base, double *offset, double *m2, cbn_rows x, cbn_tile tile)
{
    const ptrdiff_t rows = tile.rows, count = channels_of_tile(&tile);
    place_tile(&tile, &x);
    element *const anchor = scratch_at(&tile, MOMENTS_ANCHOR);
    double *const sum[2] = {scratch_at(&tile, MOMENTS_SUM), scratch_at(&tile, MOMENTS_SUM + 1)};
    for (ptrdiff_t before = 0; before < rows; before += tile.rows) {
        const cbn_rows segment = after_rows(x, before);
        if (before == 0) {
            tile.rows = anchor_rows(rows, tile.run);
            set_first_anchor(anchor, sum, &segment, &tile);
            tile.rows = first_rows(rows, tile.run);
            CBN_SIMD
            for (ptrdiff_t j = 0; j < count; ++j) {
                base[j] = (double)anchor[j];
                offset[j] = 0;
                m2[j] = 0;
            }
        } else {
            tile.rows = cbn_least(before, rows - before);
            CBN_SIMD
            for (ptrdiff_t j = 0; j < count; ++j) {
                anchor[j] = (element)(base[j] + offset[j]);
            }
        }
        sum_segment(sum, anchor, &segment, &tile);
        merge_rows(base, offset, m2, sum, anchor, before, &tile);
    }
}

#endif
