/* What is compiled: one line for every function over the columns of rows, and there are no others.
 * The name says how many rows a map takes at once; ..._run is for columns of one channel,
 * ..._stream stores past the caches. */
#ifndef CBN_TABLE_H
#define CBN_TABLE_H

#include "loops.h"

#define CBN_MAP(name, loop, formula_, operands_, rows_, of_)                                       \
    CBN_NOINLINE static void name(const map_rows *given)                                           \
    {                                                                                              \
        const map_shape shape = {                                                                  \
            .formula = formula_, .operands = operands_, .rows = rows_, .of = of_};                 \
        map_all(given, loop, shape);                                                               \
    }

#define CBN_REDUCTION(name, column_, by_lines_, which_)                                            \
    CBN_NOINLINE static void name(const reduce_rows *given)                                        \
    {                                                                                              \
        const reduce_shape shape = {.column = column_, .by_lines = by_lines_, .which = which_};    \
        reduce_all(given, shape);                                                                  \
    }

/* clang-format off */
CBN_MAP(normalize_1,               map_lines,         normalized,                        X,                 1, EACH_COLUMN)
CBN_MAP(normalize_relu_1,          map_lines,         normalized_relu,                   X,                 1, EACH_COLUMN)
CBN_MAP(normalize_residual_1,      map_lines,         normalized_residual,               X | RESIDUAL,      1, EACH_COLUMN)
CBN_MAP(normalize_residual_relu_1, map_lines,         normalized_residual_relu,          X | RESIDUAL,      1, EACH_COLUMN)
CBN_MAP(relu_backward_1,           map_lines,         normalized_relu_gradient,          X | DY,            1, EACH_COLUMN)
CBN_MAP(relu_backward_residual_1,  map_lines,         normalized_residual_relu_gradient, X | DY | RESIDUAL, 1, EACH_COLUMN)
CBN_MAP(dx_1,                      map_lines,         input_gradient,                    X | DY,            1, EACH_COLUMN)
CBN_MAP(scale_1,                   map_lines,         scaled,                            DY,                1, EACH_COLUMN)
#if CBN_TUNED
CBN_MAP(normalize_2,               map_lines,         normalized,                        X,                 2, EACH_COLUMN)
CBN_MAP(normalize_4,               map_lines,         normalized,                        X,                 4, EACH_COLUMN)
CBN_MAP(normalize_run,             map_lines,         normalized,                        X,                 1, ONE_CHANNEL)
CBN_MAP(normalize_1_stream,        map_stream_lines,  normalized,                        X,                 1, EACH_COLUMN)
CBN_MAP(normalize_4_stream,        map_stream_bursts, normalized,                        X,                 4, EACH_COLUMN)
CBN_MAP(normalize_run_stream,      map_stream_lines,  normalized,                        X,                 1, ONE_CHANNEL)
CBN_MAP(dx_2,                      map_lines,         input_gradient,                    X | DY,            2, EACH_COLUMN)
CBN_MAP(dx_run,                    map_lines,         input_gradient,                    X | DY,            1, ONE_CHANNEL)
CBN_MAP(dx_1_stream,               map_stream_lines,  input_gradient,                    X | DY,            1, EACH_COLUMN)
CBN_MAP(dx_2_stream,               map_stream_bursts, input_gradient,                    X | DY,            2, EACH_COLUMN)
CBN_MAP(dx_run_stream,             map_stream_lines,  input_gradient,                    X | DY,            1, ONE_CHANNEL)
CBN_MAP(scale_2,                   map_lines,         scaled,                            DY,                2, EACH_COLUMN)
CBN_MAP(scale_4,                   map_lines,         scaled,                            DY,                4, EACH_COLUMN)
CBN_MAP(scale_run,                 map_lines,         scaled,                            DY,                1, ONE_CHANNEL)
CBN_MAP(scale_1_stream,            map_stream_lines,  scaled,                            DY,                1, EACH_COLUMN)
CBN_MAP(scale_4_stream,            map_stream_bursts, scaled,                            DY,                4, EACH_COLUMN)
CBN_MAP(scale_run_stream,          map_stream_lines,  scaled,                            DY,                1, ONE_CHANNEL)
#endif

CBN_REDUCTION(anchor_only,             anchor_column,           1,             ONLY_ROWS)
CBN_REDUCTION(moments_only,            moments_column,          1,             ONLY_ROWS)
CBN_REDUCTION(backward_sums_only,      backward_sums_column,    !KEEPS_ERRORS, ONLY_ROWS)
CBN_REDUCTION(backward_sums_dx_only,   backward_sums_dx_column, !KEEPS_ERRORS, ONLY_ROWS)
#if CBN_BLOCKS
CBN_REDUCTION(anchor_first,            anchor_column,           1,             FIRST_ROWS)
CBN_REDUCTION(anchor_more,             anchor_column,           1,             MORE_ROWS)
CBN_REDUCTION(anchor_last,             anchor_column,           1,             LAST_ROWS)
CBN_REDUCTION(moments_first,           moments_column,          1,             FIRST_ROWS)
CBN_REDUCTION(moments_more,            moments_column,          1,             MORE_ROWS)
CBN_REDUCTION(moments_last,            moments_column,          1,             LAST_ROWS)
CBN_REDUCTION(backward_sums_first,     backward_sums_column,    !KEEPS_ERRORS, FIRST_ROWS)
CBN_REDUCTION(backward_sums_more,      backward_sums_column,    !KEEPS_ERRORS, MORE_ROWS)
CBN_REDUCTION(backward_sums_last,      backward_sums_column,    !KEEPS_ERRORS, LAST_ROWS)
CBN_REDUCTION(backward_sums_dx_first,  backward_sums_dx_column, !KEEPS_ERRORS, FIRST_ROWS)
CBN_REDUCTION(backward_sums_dx_more,   backward_sums_dx_column, !KEEPS_ERRORS, MORE_ROWS)
CBN_REDUCTION(backward_sums_dx_last,   backward_sums_dx_column, !KEEPS_ERRORS, LAST_ROWS)
#endif
/* clang-format on */

typedef void map_function(const map_rows *given);
typedef void reduce_function(const reduce_rows *given);

/* The functions of a map for one row at once, two, four, or a run, by cbn_stores. Where there is
 * none for stores past the caches, the one for ordinary stores serves. */
typedef struct map_functions {
    map_function *one[2], *two[2], *four[2], *run[2];
} map_functions;

static const map_functions functions_of_map[CBN_MAPS] = {
#if CBN_TUNED
    [CBN_NORMALIZE] = {{normalize_1, normalize_1_stream},
                       {normalize_2},
                       {normalize_4, normalize_4_stream},
                       {normalize_run, normalize_run_stream}},
    [CBN_BACKWARD_DX] = {{dx_1, dx_1_stream}, {dx_2, dx_2_stream}, {NULL}, {dx_run, dx_run_stream}},
    [CBN_SCALE] = {{scale_1, scale_1_stream},
                   {scale_2},
                   {scale_4, scale_4_stream},
                   {scale_run, scale_run_stream}},
#else
    [CBN_NORMALIZE] = {{normalize_1}},
    [CBN_BACKWARD_DX] = {{dx_1}},
    [CBN_SCALE] = {{scale_1}},
#endif
    [CBN_NORMALIZE_RELU] = {{normalize_relu_1}},
    [CBN_NORMALIZE_RESIDUAL] = {{normalize_residual_1}},
    [CBN_NORMALIZE_RESIDUAL_RELU] = {{normalize_residual_relu_1}},
    [CBN_RELU_BACKWARD] = {{relu_backward_1}},
    [CBN_RELU_BACKWARD_RESIDUAL] = {{relu_backward_residual_1}},
};

/* The functions of a reduction, by rows_of_block. */
#if CBN_BLOCKS
#define CBN_BY_ROWS(name) {name##_only, name##_first, name##_more, name##_last}
#else
#define CBN_BY_ROWS(name) {name##_only}
#endif
static reduce_function *const anchor_functions[] = CBN_BY_ROWS(anchor);
static reduce_function *const moments_functions[] = CBN_BY_ROWS(moments);
static reduce_function *const sums_functions[] = CBN_BY_ROWS(backward_sums);
static reduce_function *const sums_dx_functions[] = CBN_BY_ROWS(backward_sums_dx);

#endif
