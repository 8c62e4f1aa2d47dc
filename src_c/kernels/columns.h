/* What the functions of kernels/table.h are given, and what they do at one column: read values,
 * call a formula, store what it gives. */
#ifndef CBN_COLUMNS_H
#define CBN_COLUMNS_H

#include "formulas/maps.h"
#include "formulas/reductions.h"

CBN_INLINE work value(const element *row, ptrdiff_t j) { return (work)row[j]; }

/* --- maps ------------------------------------------------------------------------------------ */

enum { MAP_ROWS = 4 }; /* rows that a map takes at once, at most */
enum { HIGH, SLOPE, PLUS, SCALE, COEFFICIENTS };

/* `rows` rows of each operand, a number of bytes from row to row, and the coefficients of their
 * columns; or where each row belongs to one channel, a coefficient for each row. */
typedef struct map_rows {
    const element *in[CBN_OPERANDS];
    element *out;
    ptrdiff_t in_stride[CBN_OPERANDS], out_stride;
    const work *coefficient[COEFFICIENTS];
    ptrdiff_t rows, cols, skew;
} map_rows;

/* No rows of any operand. GCC clears a struct as a whole by an instruction that waits for all
 * stores past the caches, and a map has such a struct for every run [clears]. */
CBN_INLINE map_rows no_map_rows(void)
{
    map_rows rows;
    for (int operand = 0; operand < CBN_OPERANDS; ++operand) {
        rows.in[operand] = NULL;
        rows.in_stride[operand] = 0;
    }
    for (int k = 0; k < COEFFICIENTS; ++k) {
        rows.coefficient[k] = NULL;
    }
    rows.out = NULL;
    rows.out_stride = 0;
    rows.rows = rows.cols = rows.skew = 0;
    return rows;
}

/* The operands in a formula, as a set. */
enum { X = 1 << CBN_X, DY = 1 << CBN_DY, RESIDUAL = 1 << CBN_RESIDUAL };

/* Whose coefficients a map reads: those of each column, or of the one channel of a row. */
enum channels_of { EACH_COLUMN, ONE_CHANNEL };

/* The constants of a map, which takes some rows at once. `one` are the coefficients of the one
 * channel. */
typedef struct map_shape {
    work (*formula)(values v, coefficients c);
    int operands, rows;
    enum channels_of of;
    coefficients one;
} map_shape;

CBN_INLINE void *further(const void *row, ptrdiff_t bytes) { return (char *)row + bytes; }

CBN_INLINE const element *in_row(const map_rows *rows, int operand, int row)
{
    return further(rows->in[operand], row * rows->in_stride[operand]);
}

CBN_INLINE element *out_row(const map_rows *rows, int row)
{
    return further(rows->out, row * rows->out_stride);
}

CBN_INLINE values values_at(const map_rows *rows, int operands, int row, ptrdiff_t j)
{
    return (values){
        .x = operands & X ? value(in_row(rows, CBN_X, row), j) : 0,
        .dy = operands & DY ? value(in_row(rows, CBN_DY, row), j) : 0,
        .residual = operands & RESIDUAL ? value(in_row(rows, CBN_RESIDUAL, row), j) : 0,
    };
}

CBN_INLINE coefficients coefficients_at(const map_rows *rows, ptrdiff_t j)
{
    return (coefficients){.high = rows->coefficient[HIGH][j],
                          .slope = rows->coefficient[SLOPE][j],
                          .plus = rows->coefficient[PLUS][j],
                          .scale = rows->coefficient[SCALE][j]};
}

/* Column j of a row, as element `at` of that row of `to`. */
CBN_INLINE void map_value(const map_rows *rows, const map_shape *shape, coefficients c, int row,
                          element *to, ptrdiff_t at, ptrdiff_t j)
{
    to[at] = (element)shape->formula(values_at(rows, shape->operands, row, j), c);
}

/* Column j of the rows, as element `at` of rows from `to` on, a stride apart. The compiler does not
 * make vectors of a loop over the rows. */
CBN_INLINE void map_column(const map_rows *rows, const map_shape *shape, element *to,
                           ptrdiff_t stride, ptrdiff_t at, ptrdiff_t j)
{
    const coefficients c = shape->of == ONE_CHANNEL ? shape->one : coefficients_at(rows, j);
    map_value(rows, shape, c, 0, to, at, j);
    if (shape->rows > 1) {
        map_value(rows, shape, c, 1, further(to, stride), at, j);
    }
    if (shape->rows > 2) {
        map_value(rows, shape, c, 2, further(to, 2 * stride), at, j);
        map_value(rows, shape, c, 3, further(to, 3 * stride), at, j);
    }
}

/* --- reductions ------------------------------------------------------------------------------ */

enum { MOMENTS_ROWS = 8, SUMS_ROWS = 4 }; /* that a reduction takes at once */

/* `groups` times some rows of x, dy and dx, which are a number of bytes further in the next group;
 * numbers of their columns; the sums of the block of rows, and the float64 sums with their rounding
 * errors. */
typedef struct reduce_rows {
    const element *const *x, *const *dy;
    element *const *dx;
    ptrdiff_t groups, x_step, dy_step, dx_step;
    const element *anchor;
    const work *high, *power, *scale;
    work *s, *t;
    double *sum[2], *error[2];
    ptrdiff_t cols, skew;
} reduce_rows;

/* Rows of a block: the first make s and t, and the last add them to the float64 sums, so that no
 * loop over the sums alone is needed [block-ends]. The only rows do both. */
enum rows_of_block { ONLY_ROWS, FIRST_ROWS, MORE_ROWS, LAST_ROWS };

/* What a reduction does at column j of the rows of a group. */
typedef void reduce_column(const reduce_rows *rows, ptrdiff_t group, enum rows_of_block which,
                           ptrdiff_t j);

/* The constants of a reduction, and the group that it is at. */
typedef struct reduce_shape {
    reduce_column *column;
    int by_lines;
    enum rows_of_block which;
    ptrdiff_t group;
} reduce_shape;

CBN_INLINE work x_at(const reduce_rows *rows, ptrdiff_t group, int row, ptrdiff_t j)
{
    return value(further(rows->x[row], group * rows->x_step), j);
}

CBN_INLINE work dy_at(const reduce_rows *rows, ptrdiff_t group, int row, ptrdiff_t j)
{
    return value(further(rows->dy[row], group * rows->dy_step), j);
}

CBN_INLINE void set_dx(const reduce_rows *rows, ptrdiff_t group, int row, ptrdiff_t j, work dx)
{
    element *const row_of_dx = further(rows->dx[row], group * rows->dx_step);
    row_of_dx[j] = (element)dx;
}

CBN_INLINE terms block_sums(const reduce_rows *rows, enum rows_of_block which, terms add,
                            ptrdiff_t j)
{
    const int begins = which == ONLY_ROWS || which == FIRST_ROWS;
    return begins ? add : (terms){rows->s[j] + add.s, rows->t[j] + add.t};
}

CBN_INLINE int ends_block(enum rows_of_block which)
{
    return which == ONLY_ROWS || which == LAST_ROWS;
}

CBN_INLINE void keep_block_sums(const reduce_rows *rows, terms sums, ptrdiff_t j)
{
    rows->s[j] = sums.s;
    rows->t[j] = sums.t;
}

CBN_INLINE differences differences_at(const reduce_rows *rows, ptrdiff_t group, ptrdiff_t j)
{
    const work x[MOMENTS_ROWS] = {x_at(rows, group, 0, j), x_at(rows, group, 1, j),
                                  x_at(rows, group, 2, j), x_at(rows, group, 3, j),
                                  x_at(rows, group, 4, j), x_at(rows, group, 5, j),
                                  x_at(rows, group, 6, j), x_at(rows, group, 7, j)};
    return differences_from(value(rows->anchor, j), x);
}

/* Sums without squares, since the first anchor does not need them [anchor]. */
CBN_INLINE void anchor_column(const reduce_rows *rows, ptrdiff_t group, enum rows_of_block which,
                              ptrdiff_t j)
{
    const terms add = {.s = sum_of_differences(differences_at(rows, group, j))};
    const terms sums = block_sums(rows, which, add, j);
    if (ends_block(which)) {
        rows->sum[0][j] -= (double)sums.s;
    } else {
        rows->s[j] = sums.s;
    }
}

CBN_INLINE void moments_column(const reduce_rows *rows, ptrdiff_t group, enum rows_of_block which,
                               ptrdiff_t j)
{
    const terms add = moments_terms(differences_at(rows, group, j));
    const terms sums = block_sums(rows, which, add, j);
    if (ends_block(which)) {
        rows->sum[0][j] -= (double)sums.s;
        rows->sum[1][j] += (double)sums.t;
    } else {
        keep_block_sums(rows, sums, j);
    }
}

CBN_INLINE void backward_sums_column(const reduce_rows *rows, ptrdiff_t group,
                                     enum rows_of_block which, ptrdiff_t j)
{
    const work x[SUMS_ROWS] = {x_at(rows, group, 0, j), x_at(rows, group, 1, j),
                               x_at(rows, group, 2, j), x_at(rows, group, 3, j)};
    const work dy[SUMS_ROWS] = {dy_at(rows, group, 0, j), dy_at(rows, group, 1, j),
                                dy_at(rows, group, 2, j), dy_at(rows, group, 3, j)};
    const terms add = backward_sums_terms(rows->high[j], rows->power[j], x, dy);
    const terms sums = block_sums(rows, which, add, j);
    if (ends_block(which)) {
        add_with_error(&rows->sum[0][j], &rows->error[0][j], (double)sums.s);
        add_with_error(&rows->sum[1][j], &rows->error[1][j], -(double)sums.t);
    } else {
        keep_block_sums(rows, sums, j);
    }
}

/* With the sums also dx = dy * scale, while dy is at hand. */
CBN_INLINE void backward_sums_dx_column(const reduce_rows *rows, ptrdiff_t group,
                                        enum rows_of_block which, ptrdiff_t j)
{
    const coefficients c = {.scale = rows->scale[j]};
    const values v[SUMS_ROWS] = {{.dy = dy_at(rows, group, 0, j)},
                                 {.dy = dy_at(rows, group, 1, j)},
                                 {.dy = dy_at(rows, group, 2, j)},
                                 {.dy = dy_at(rows, group, 3, j)}};
    backward_sums_column(rows, group, which, j);
    set_dx(rows, group, 0, j, scaled(v[0], c));
    set_dx(rows, group, 1, j, scaled(v[1], c));
    set_dx(rows, group, 2, j, scaled(v[2], c));
    set_dx(rows, group, 3, j, scaled(v[3], c));
}

#endif
