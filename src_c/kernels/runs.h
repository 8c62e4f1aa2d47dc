/* Between channels and their columns: a run of adjacent columns belongs to one channel. */
#ifndef CBN_RUNS_H
#define CBN_RUNS_H

#include "columns.h"

/* A division is worth its branch here. */
CBN_INLINE ptrdiff_t channels_of_tile(const cbn_tile *tile)
{
    return tile->run == 1 ? tile->cols : tile->cols / tile->run;
}

CBN_NOINLINE static void fill_runs(work *columns, ptrdiff_t channels, ptrdiff_t run)
{
    enum { OF_LINE = CBN_LINE_BYTES / sizeof(work) };
    for (ptrdiff_t c = channels; c-- > 0;) {
        const work number = columns[c];
        work *end = columns + (c + 1) * run;
        /* The lowest line may reach into the channels below, whose turn is yet to come, but not to
         * where their numbers wait. */
        for (; end > columns + c * run && end - OF_LINE >= columns + c; end -= OF_LINE) {
            CBN_SIMD
            for (int j = 0; j < OF_LINE; ++j) {
                end[j - OF_LINE] = number;
            }
        }
        while (end > columns + c * run) {
            *--end = number;
        }
    }
}

/* A number a channel becomes one for each of its columns, in place, from the last channel down. */
CBN_INLINE void spread_over_runs(work *columns, const cbn_tile *tile)
{
    /* same(> -> >=): columns of a run of one are the channels */
    if (tile->run > 1) {
        fill_runs(columns, channels_of_tile(tile), tile->run);
    }
}

/* Halves are added until few columns are left for eight sums [add-runs]. */
CBN_NOINLINE static void add_runs(double *columns, ptrdiff_t channels, ptrdiff_t run)
{
    enum { FEW = 64, SUMS = 8 };
    for (ptrdiff_t c = 0; c < channels; ++c) {
        double *const from = columns + c * run;
        double sum[SUMS] = {0};
        ptrdiff_t left = run, j = 0;
        for (; left > FEW; left -= left / 2) {
            const ptrdiff_t folded = left / 2;
            CBN_SIMD
            for (ptrdiff_t k = 0; k < folded; ++k) {
                from[k] += from[k + left - folded];
            }
        }
        for (; j + SUMS <= left; j += SUMS) {
            CBN_SIMD
            for (int k = 0; k < SUMS; ++k) {
                sum[k] += from[j + k];
            }
        }
        for (int k = 0; j < left; ++j, ++k) {
            sum[k] += from[j];
        }
        columns[c] =
            ((sum[0] + sum[1]) + (sum[2] + sum[3])) + ((sum[4] + sum[5]) + (sum[6] + sum[7]));
    }
}

/* The numbers of each channel's columns become one number, their sum. */
CBN_INLINE void sum_of_runs(double *columns, const cbn_tile *tile)
{
    /* same(> -> >=): columns of a run of one are the channels */
    if (tile->run > 1) {
        add_runs(columns, channels_of_tile(tile), tile->run);
    }
}

#endif
