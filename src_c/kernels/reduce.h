/* Drives a reduction over the rows of a tile, some rows at a time. The sum of a tree of float32
 * goes on to float64 at once, so that no further addition of float32 adds to its error. Float64 has
 * no wider type to go on to: the trees of CBN_BLOCK_ROWS rows are added up first, and only the sums
 * of such blocks go on to sums that keep their rounding errors, which is dearer. */
#ifndef CBN_REDUCE_H
#define CBN_REDUCE_H

#include "rows.h"
#include "table.h"

typedef struct reduce_job {
    /* By rows_of_block. */
    reduce_function *const *function;
    ptrdiff_t at_once; /* rows */
    cbn_tile tile;

    /* dy is not given for moments, and dx where it is not wanted. The slots are for their rows. */
    cbn_rows x, dy, dx;
    int x_slot, dy_slot, dx_slot;
    map_function *map_dx; /* makes dx of a row of dy after its sums, if they do not; or NULL */

    /* Take the place of rows past the last one; where missing_x is NULL, the last row does. */
    const element *missing_x, *missing_dy;
    element *missing_dx;

    /* What the functions read and write of the columns from the first one on. What they do not is
     * NULL. The rows are chosen for each call. */
    reduce_rows numbers;
} reduce_job;

/* Sets every member: no sums, no rows, and nothing in place of missing ones [clears]. */
CBN_INLINE void start_job(reduce_job *job, reduce_function *const function[], ptrdiff_t at_once,
                          const cbn_tile *tile)
{
    const cbn_rows none = {.data = NULL};
    reduce_rows *const numbers = &job->numbers;
    job->function = function;
    job->at_once = at_once;
    job->tile = *tile;
    job->x = job->dy = job->dx = none;
    job->x_slot = job->dy_slot = job->dx_slot = 0;
    job->map_dx = NULL;
    job->missing_x = job->missing_dy = NULL;
    job->missing_dx = NULL;
    numbers->x = numbers->dy = NULL;
    numbers->dx = NULL;
    numbers->groups = numbers->x_step = numbers->dy_step = numbers->dx_step = 0;
    numbers->anchor = NULL;
    numbers->high = numbers->power = numbers->scale = NULL;
    numbers->s = numbers->t = NULL;
    numbers->sum[0] = numbers->sum[1] = numbers->error[0] = numbers->error[1] = NULL;
    numbers->cols = tile->cols;
    numbers->skew = tile->skew;
}

/* The float64 sums, from zeros on, and their rounding errors; those are NULL for moments. */
static void start_sums(reduce_job *job, double *const sum[2], double *const error[2])
{
    const size_t bytes = (size_t)job->tile.cols * sizeof(double);
    for (int k = 0; k < 2; ++k) {
        job->numbers.sum[k] = sum[k];
        memset(sum[k], 0, bytes);
        job->numbers.error[k] = error != NULL ? error[k] : NULL;
        if (KEEPS_ERRORS && error != NULL) {
            memset(error[k], 0, bytes);
        }
    }
}

static enum rows_of_block which_rows(const reduce_job *job, ptrdiff_t before, ptrdiff_t block_rows)
{
    const int first = before == 0, last = block_rows - before <= job->at_once;
    return !CBN_BLOCKS || (first && last) ? ONLY_ROWS
           : first                        ? FIRST_ROWS
           : last                         ? LAST_ROWS
                                          : MORE_ROWS;
}

/* How many groups of rows one call takes, of `left` rows of a block. */
CBN_INLINE ptrdiff_t groups_of(const reduce_job *job, enum rows_of_block which, ptrdiff_t left)
{
    const ptrdiff_t whole = which == MORE_ROWS ? (left - 1) / job->at_once
                            : CBN_BLOCKS       ? 1
                                               : left / job->at_once;
    return whole > 1 ? whole : 1;
}

/* --- rows and what takes the place of missing ones -------------------------------------------- */

typedef struct reduce_pointers {
    const element *x[CBN_GROUP_ROWS], *dy[CBN_GROUP_ROWS];
    element *dx[CBN_GROUP_ROWS];
} reduce_pointers;

/* NULL stays NULL. */
#define CBN_FROM(column, array) ((array) == NULL ? NULL : (array) + (column))

/* Completes the rows that are taken at once, 4 or 8 of them, of which `count` are there. */
CBN_INLINE void fill_missing(const reduce_job *job, reduce_pointers *at, ptrdiff_t count,
                             ptrdiff_t column)
{
    for (ptrdiff_t r = count; (r & (job->at_once - 1)) != 0; ++r) {
        at->x[r] = job->missing_x != NULL ? job->missing_x + column : at->x[count - 1];
        at->dy[r] = CBN_FROM(column, job->missing_dy);
        at->dx[r] = CBN_FROM(column, job->missing_dx);
    }
}

/* The rows of a group from `first` on, among those of `at`. */
CBN_INLINE void choose_rows(reduce_rows *to, const reduce_pointers *at, ptrdiff_t first)
{
    to->x = at->x + first;
    to->dy = at->dy + first;
    to->dx = at->dx + first;
}

/* --- direct rows ------------------------------------------------------------------------------ */

static void reduce_direct(const reduce_job *job, ptrdiff_t first, ptrdiff_t block_rows)
{
    const cbn_rows *const x = &job->x, *const dy = &job->dy, *const dx = &job->dx;
    reduce_pointers at;
    reduce_rows rows = job->numbers;
    rows.x_step = job->at_once * x->stride;
    rows.dy_step = job->at_once * dy->stride;
    rows.dx_step = job->at_once * dx->stride;
    for (ptrdiff_t before = 0; before < block_rows; before += rows.groups * job->at_once) {
        const enum rows_of_block which = which_rows(job, before, block_rows);
        const ptrdiff_t left = block_rows - before, there = cbn_least(left, job->at_once);
        const window w = {.row = first + before, .rows = there};
        direct_rows(at.x, x, &w);
        if (is_given(dy)) {
            direct_rows(at.dy, dy, &w);
        }
        for (ptrdiff_t r = 0; is_given(dx) && r < there; ++r) {
            at.dx[r] = (element *)(void *)direct_row(dx, &w, r);
        }
        fill_missing(job, &at, there, 0);
        choose_rows(&rows, &at, 0);
        rows.groups = groups_of(job, which, left);
        job->function[which](&rows);
    }
}

/* --- copies of rows -------------------------------------------------------------------------- */

/* Moves the numbers of the columns on by `count` columns. */
static void move_columns(reduce_rows *rows, ptrdiff_t count)
{
    rows->anchor = CBN_FROM(count, rows->anchor);
    rows->high = CBN_FROM(count, rows->high);
    rows->power = CBN_FROM(count, rows->power);
    rows->scale = CBN_FROM(count, rows->scale);
    rows->s += count;
    rows->t += count;
    for (int k = 0; k < 2; ++k) {
        rows->sum[k] += count;
        rows->error[k] = CBN_FROM(count, rows->error[k]);
    }
    rows->skew = rows->skew > 0 ? (rows->skew + count) % LINE : 0;
}

static void make_dx(const reduce_job *job, const reduce_pointers *rows, const window *w)
{
    map_rows row = no_map_rows();
    row.rows = 1;
    row.cols = w->cols;
    for (int k = 0; k < COEFFICIENTS; ++k) {
        row.coefficient[k] = job->numbers.scale + w->column;
    }
    for (ptrdiff_t r = 0; r < w->rows; ++r) {
        row.in[CBN_DY] = rows->dy[r];
        row.out = rows->dx[r];
        job->map_dx(&row);
    }
}

/* The rows of a window, of a block that has `block_rows` and had `before` until here. */
static void reduce_copies(const reduce_job *job, window w, ptrdiff_t before, ptrdiff_t block_rows)
{
    const int in_panels = job->map_dx != NULL || comes_in_panels(&job->x) ||
                          comes_in_panels(&job->dy) || comes_in_panels(&job->dx);
    const cbn_rows *const lines = job->map_dx != NULL ? &job->dx : &job->x;
    reduce_pointers at;
    reduce_rows rows = job->numbers;
    rows.groups = 1;
    for (const ptrdiff_t end = job->tile.cols; w.column < end; w.column += w.cols) {
        w.cols = in_panels ? panel_cols(lines, w.column, end, w.rows) : end;
        input_rows(at.x, &job->x, &w, &job->tile, job->x_slot);
        if (is_given(&job->dy)) {
            input_rows(at.dy, &job->dy, &w, &job->tile, job->dy_slot);
        }
        if (is_given(&job->dx)) {
            output_rows(at.dx, &job->dx, &w, &job->tile, job->dx_slot);
        }
        fill_missing(job, &at, w.rows, w.column);
        rows.cols = w.cols;
        for (ptrdiff_t r = 0; r < w.rows; r += job->at_once) {
            choose_rows(&rows, &at, r);
            job->function[which_rows(job, before + r, block_rows)](&rows);
        }
        if (job->map_dx != NULL) {
            make_dx(job, &at, &w);
        } else if (is_given(&job->dx)) {
            commit_rows(&job->dx, at.dx, &w, &job->tile, job->dx_slot);
        }
        move_columns(&rows, w.cols);
    }
}

/* --- blocks of rows -------------------------------------------------------------------------- */

static void reduce_block(const reduce_job *job, ptrdiff_t first, ptrdiff_t block_rows)
{
    if (is_direct(&job->x) && is_direct(&job->dy) && is_direct(&job->dx) && job->map_dx == NULL) {
        reduce_direct(job, first, block_rows);
        return;
    }
    const int together = rows_together(&job->x) > 1 || rows_together(&job->dy) > 1;
    window w = {.row = first};
    for (ptrdiff_t before = 0; before < block_rows; before += w.rows) {
        w.row = first + before;
        w.rows = cbn_least(together ? CBN_GROUP_ROWS : job->at_once, block_rows - before);
        reduce_copies(job, w, before, block_rows);
    }
}

static void reduce_blocks(const reduce_job *job)
{
    const ptrdiff_t rows = job->tile.rows, most = CBN_BLOCKS ? CBN_BLOCK_ROWS : rows;
    for (ptrdiff_t first = 0; first < rows; first += most) {
        reduce_block(job, first, cbn_least(rows - first, most));
    }
}

/* --- moments of the rows of a tile ----------------------------------------------------------- */

/* sum[0] = sum(x - anchor) of each column, and sum[1] = sum((x - anchor)^2), which anchor_functions
 * leave at 0. */
static void sum_differences(reduce_function *const functions[], double *const sum[2],
                            const element *anchor, const cbn_rows *x, const cbn_tile *tile)
{
    reduce_job job;
    start_job(&job, functions, MOMENTS_ROWS, tile);
    job.x = *x;
    job.x_slot = MOMENTS_X;
    job.missing_x = job.numbers.anchor = anchor;
    job.numbers.s = scratch_at(tile, MOMENTS_S);
    job.numbers.t = scratch_at(tile, MOMENTS_T);
    start_sums(&job, sum, NULL);
    reduce_blocks(&job);
}

static void moments_blocks(double *const sum[2], const element *anchor, const cbn_rows *x,
                           const cbn_tile *tile)
{
    sum_differences(moments_functions, sum, anchor, x, tile);
}

#endif
