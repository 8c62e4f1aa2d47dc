/* Drives a map over the rows of a tile: which function of the table, how many rows at once, whole
 * rows or runs. */
#ifndef CBN_MAP_H
#define CBN_MAP_H

#include "rows.h"
#include "runs.h"
#include "table.h"

/* --- coefficients of each channel ------------------------------------------------------------ */

/* Of (x - mean) * scale + along_one. */
static void set_affine(work *const to[COEFFICIENTS], const cbn_channels *channels, ptrdiff_t count)
{
    work *const high = to[HIGH], *const slope = to[SLOPE], *const plus = to[PLUS];
    CBN_SIMD
    for (ptrdiff_t c = 0; c < count; ++c) {
        affine(&high[c], &slope[c], &plus[c], channels->mean[c], channels->mean_low[c],
               channels->scale[c], channels->along_one[c]);
    }
}

/* Of dy * scale + xhat * along_xhat + along_one. */
static void set_gradient(work *const to[COEFFICIENTS], const cbn_channels *channels,
                         ptrdiff_t count)
{
    work *const high = to[HIGH], *const slope = to[SLOPE], *const plus = to[PLUS];
    work *const scale = to[SCALE];
    CBN_SIMD
    for (ptrdiff_t c = 0; c < count; ++c) {
        affine(&high[c], &slope[c], &plus[c], channels->mean[c], channels->mean_low[c],
               channels->along_xhat[c] * channels->invstd[c], channels->along_one[c]);
        scale[c] = (work)channels->scale[c];
    }
}

/* Of dy * scale. */
static void set_scale(work *const to[COEFFICIENTS], const cbn_channels *channels, ptrdiff_t count)
{
    work *const scale = to[SCALE];
    CBN_SIMD
    for (ptrdiff_t c = 0; c < count; ++c) {
        scale[c] = (work)channels->scale[c];
    }
}

/* --- what each map has ----------------------------------------------------------------------- */

/* The coefficients in a formula, as a set. */
enum { AFFINE = 1 << HIGH | 1 << SLOPE | 1 << PLUS, BY_SCALE = 1 << SCALE };

/* Runs of so many columns are taken one by one [long-runs]. */
enum { NEVER, LONG_RUN = 512, LONG_RUN_OF_DX = 128 };

typedef struct map_kind {
    int operands, coefficients;
    void (*set)(work *const to[COEFFICIENTS], const cbn_channels *channels, ptrdiff_t count);
    int long_run;
} map_kind;

static const map_kind map_kinds[CBN_MAPS] = {
    [CBN_NORMALIZE] = {X, AFFINE, set_affine, CBN_TUNED ? LONG_RUN : NEVER},
    [CBN_NORMALIZE_RELU] = {X, AFFINE, set_affine, NEVER},
    [CBN_NORMALIZE_RESIDUAL] = {X | RESIDUAL, AFFINE, set_affine, NEVER},
    [CBN_NORMALIZE_RESIDUAL_RELU] = {X | RESIDUAL, AFFINE, set_affine, NEVER},
    [CBN_RELU_BACKWARD] = {X | DY, AFFINE, set_affine, NEVER},
    [CBN_RELU_BACKWARD_RESIDUAL] = {X | DY | RESIDUAL, AFFINE, set_affine, NEVER},
    [CBN_BACKWARD_DX] = {X | DY, AFFINE | BY_SCALE, set_gradient,
                         CBN_TUNED ? LONG_RUN_OF_DX : NEVER},
    [CBN_SCALE] = {DY, BY_SCALE, set_scale, CBN_TUNED ? LONG_RUN : NEVER},
};

/* --- one map of one tile --------------------------------------------------------------------- */

typedef struct map_job {
    const map_kind *kind;
    const map_functions *functions;
    cbn_rows out, in[CBN_OPERANDS];
    cbn_tile tile;
    work *coefficient[COEFFICIENTS];
    int direct;         /* all arrays are */
    int even;           /* rows of all arrays, or copies of them, are evenly apart */
    int in_panels;      /* some array is copied a panel at a time */
    ptrdiff_t together; /* rows_together() of all arrays */
} map_job;

CBN_INLINE int has_operand(const map_job *job, int operand)
{
    return (job->kind->operands >> operand & 1) != 0;
}

static map_function *function_of(const map_job *job, int rows, enum channels_of of,
                                 cbn_stores stores)
{
    const map_functions *const functions = job->functions;
    map_function *const *const by_stores = of == ONE_CHANNEL ? functions->run
                                           : rows == 4       ? functions->four
                                           : rows == 2       ? functions->two
                                                             : functions->one;
    return by_stores[stores] != NULL ? by_stores[stores] : by_stores[CBN_ORDINARY];
}

/* Direct rows, `n` at once; or of one row the run of each channel. */
static void map_direct(const map_job *job, const window *w, int n, enum channels_of of)
{
    const ptrdiff_t run_bytes = job->tile.run * (ptrdiff_t)sizeof(element);
    map_rows rows = no_map_rows();
    rows.rows = of == ONE_CHANNEL ? channels_of_tile(&job->tile) : w->rows;
    rows.cols = of == ONE_CHANNEL ? job->tile.run : w->cols;
    rows.skew = job->tile.skew;
    for (int operand = 0; operand < CBN_OPERANDS; ++operand) {
        if (has_operand(job, operand)) {
            const cbn_rows *const in = &job->in[operand];
            rows.in[operand] = (const element *)(const void *)direct_row(in, w, 0);
            rows.in_stride[operand] = of == ONE_CHANNEL ? run_bytes : in->stride;
        }
    }
    rows.out = (element *)(void *)direct_row(&job->out, w, 0);
    rows.out_stride = of == ONE_CHANNEL ? run_bytes : job->out.stride;
    for (int k = 0; k < COEFFICIENTS; ++k) {
        rows.coefficient[k] = job->coefficient[k];
    }
    function_of(job, n, of, job->tile.stores)(&rows);
}

/* Rows that are copied, at most CBN_GROUP_ROWS: all of them in one call if they are even. The
 * columns are those of channel `channel`, or of each its own. */
static void map_copies(const map_job *job, window w, int n, enum channels_of of, ptrdiff_t channel)
{
    const element *in[CBN_OPERANDS][CBN_GROUP_ROWS];
    element *out[CBN_GROUP_ROWS];
    const ptrdiff_t end = w.column + w.cols, at_once = job->even ? w.rows : 1;
    map_rows rows = no_map_rows();
    rows.rows = at_once;
    rows.out_stride = distance_of(&job->out);
    for (; w.column < end; w.column += w.cols) {
        w.cols = job->in_panels ? panel_cols(&job->out, w.column, end, w.rows) : end - w.column;
        for (int operand = 0; operand < CBN_OPERANDS; ++operand) {
            if (has_operand(job, operand)) {
                input_rows(in[operand], &job->in[operand], &w, &job->tile,
                           MAP_IN + operand * CBN_GROUP_ROWS);
                rows.in_stride[operand] = distance_of(&job->in[operand]);
            }
        }
        const int direct = output_rows(out, &job->out, &w, &job->tile, MAP_OUT);
        const cbn_stores stores = direct ? job->tile.stores : CBN_ORDINARY;
        rows.cols = w.cols;
        rows.skew = job->tile.skew > 0 ? (job->tile.skew + w.column) % LINE : 0;
        for (int k = 0; k < COEFFICIENTS; ++k) {
            rows.coefficient[k] = job->coefficient[k] + (of == ONE_CHANNEL ? channel : w.column);
        }
        for (ptrdiff_t r = 0; r < w.rows; r += at_once) {
            for (int operand = 0; operand < CBN_OPERANDS; ++operand) {
                if (has_operand(job, operand)) {
                    rows.in[operand] = in[operand][r];
                }
            }
            rows.out = out[r];
            function_of(job, n, of, stores)(&rows);
        }
        commit_rows(&job->out, out, &w, &job->tile, MAP_OUT);
    }
}

/* How many rows to take at once, at most four [rows-at-once]: the coefficients of narrow rows stay
 * in the first-level cache, and those of wide ones are loaded once for four. */
CBN_INLINE int best_at_once(const cbn_tile *tile)
{
    const size_t bytes = (size_t)tile->cols * sizeof(work);
    const size_t narrow = tile->stores == CBN_PAST_CACHES ? 2048 : 4096;
    /* same(3 lines): how many rows at once is a matter of speed */
    const int is_narrow = (tile->run > 1 && tile->in_order) || bytes <= narrow;
    return !is_narrow ? 4 : tile->in_order ? 1 : bytes <= 1024 ? 4 : 2;
}

static int rows_at_once(const map_job *job)
{
    const map_functions *const functions = job->functions;
    const int broken = job->tile.stores == CBN_PAST_CACHES && !begin_alike(&job->out);
    const int best = best_at_once(&job->tile);
    if (functions->two[CBN_ORDINARY] == NULL || !job->even || broken) {
        return 1;
    }
    if (functions->four[CBN_ORDINARY] != NULL) {
        return best;
    }
    /* Four rows of three arrays would not fit into a set of the first-level cache. Two are better
     * than one where rows are wide, or too short for their loop [rows-at-once-dx]. */
    /* same(2 lines): speed alone */
    return best == 4 || (best == 2 && (size_t)job->tile.cols * sizeof(work) <= 2048) ? 2 : 1;
}

/* Several rows of a panel are mapped by one call, unless memory is best read in its order. */
CBN_INLINE ptrdiff_t rows_of_copies(const map_job *job, ptrdiff_t left, int n)
{
    const int several = job->together > 1 || (job->even && !job->tile.in_order);
    return several ? cbn_least(left, CBN_GROUP_ROWS) / n * n : n;
}

static void map_whole_rows(const map_job *job)
{
    const int at_once = rows_at_once(job);
    window w = {.cols = job->tile.cols};
    int n;
    for (; w.row < job->tile.rows; w.row += w.rows) {
        const ptrdiff_t left = job->tile.rows - w.row;
        n = left >= at_once ? at_once : 1;
        if (job->direct) {
            w.rows = left / n * n;
            map_direct(job, &w, n, EACH_COLUMN);
        } else {
            w.rows = rows_of_copies(job, left, n);
            map_copies(job, w, n, EACH_COLUMN, 0);
        }
    }
}

/* Runs of copies are worth it from more columns on, since each is copied by itself. */
CBN_INLINE int takes_runs(const map_job *job)
{
    const int least = job->direct ? job->kind->long_run : LONG_RUN;
    /* same(>= -> >): speed alone */
    return job->kind->long_run != NEVER && job->together == 1 && job->tile.run >= least;
}

static void map_runs(const map_job *job)
{
    const ptrdiff_t run = job->tile.run, channels = channels_of_tile(&job->tile);
    for (ptrdiff_t r = 0; r < job->tile.rows; ++r) {
        if (job->direct) {
            const window row = {.row = r, .rows = 1, .cols = job->tile.cols};
            map_direct(job, &row, 1, ONE_CHANNEL);
            continue;
        }
        for (ptrdiff_t c = 0; c < channels; ++c) {
            const window w = {.row = r, .rows = 1, .column = c * run, .cols = run};
            map_copies(job, w, 1, ONE_CHANNEL, c);
        }
    }
}

static void add_array(map_job *job, const cbn_rows *array)
{
    job->direct = job->direct && is_direct(array);
    job->even = job->even && is_even(array);
    job->together = job->together > 1 ? job->together : rows_together(array);
    job->in_panels = job->in_panels || comes_in_panels(array);
}

/* A map of the channels of a tile, all of them in the working type. */
static void map_range(cbn_map map, cbn_rows out, const cbn_rows in[CBN_OPERANDS], cbn_tile tile,
                      const cbn_channels *channels)
{
    map_job job; /* no member is cleared that is set below [clears] */
    job.kind = &map_kinds[map];
    job.functions = &functions_of_map[map];
    job.out = out;
    job.tile = tile;
    job.direct = job.even = 1;
    job.in_panels = 0;
    job.together = 1;
    add_array(&job, &out);
    for (int operand = 0; operand < CBN_OPERANDS; ++operand) {
        job.in[operand] = in[operand];
        if (has_operand(&job, operand)) {
            add_array(&job, &in[operand]);
        }
    }
    job.coefficient[HIGH] = scratch_at(&tile, MAP_COEFFICIENTS + HIGH);
    job.coefficient[SLOPE] = scratch_at(&tile, MAP_COEFFICIENTS + SLOPE);
    job.coefficient[PLUS] = scratch_at(&tile, MAP_COEFFICIENTS + PLUS);
    job.coefficient[SCALE] = scratch_at(&tile, MAP_COEFFICIENTS + SCALE);
    job.kind->set(job.coefficient, channels, channels_of_tile(&tile));
    if (takes_runs(&job)) {
        map_runs(&job);
    } else {
        for (int k = 0; k < COEFFICIENTS; ++k) {
            if (job.kind->coefficients & 1 << k) {
                spread_over_runs(job.coefficient[k], &tile);
            }
        }
        map_whole_rows(&job);
    }
    finish_stores(tile.stores);
}

#endif
