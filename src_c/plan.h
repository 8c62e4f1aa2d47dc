/* How the work of an operation is cut into places, and which thread takes which of them. A plan
 * follows from sizes and the number of threads: it looks at no array and runs nothing.
 *
 * A place is a chunk of rows x a strip of columns. Where chunks begin follows from the shape alone,
 * so that the bytes of a result do not depend on who takes which place. Strips may follow the
 * threads and the addresses, because columns do not depend on each other.
 *
 * A column is a channel, and a row a position. The rows of narrow arrays are too short for a loop:
 * `lanes` of them side by side are taken as one row of lanes x channels columns, and the lanes of a
 * channel are merged in the end. The number of lanes follows from the shape too. Rows that are left
 * over are one place more, which is chunk number `chunks` and has no lanes.
 *
 * In arrays with an inner axis (NCHW) `run` adjacent positions of one channel are a row. What is
 * left over belongs to the last chunk. Columns of a plan are channels then, and the results of a
 * run's columns are merged before they leave their place. */
#ifndef CBN_PLAN_H
#define CBN_PLAN_H

#include <stddef.h>

typedef struct cbn_plan {
    ptrdiff_t positions, channels;
    ptrdiff_t lanes, columns, left_over; /* positions that fill no row of lanes */
    ptrdiff_t run, run_left_over;        /* positions that fill no run */
    ptrdiff_t group;                     /* channels whose runs a kernel takes at once */
    ptrdiff_t rows;                      /* each has lanes x run positions of a channel */
    ptrdiff_t chunk_rows, chunks;
    ptrdiff_t strip, strips, lead; /* columns; the first strip is `lead` columns shorter */
    int by_rows;                   /* threads share the chunks, or else the strips */
    int threads;
    int slots;         /* of scratch for each thread */
    size_t slot_bytes; /* of one of them */
} cbn_plan;

/* What a thread takes at a time. For work on numbers of each channel it is a range of channels. */
typedef struct cbn_place {
    ptrdiff_t chunk, column, columns;
    int share, shares; /* which part of the chunk's rows; all of them if `shares` is 0 */
    void *scratch;     /* of the thread that takes it */
} cbn_place;

/* The plan for an array; it may have fewer threads than are allowed, where more do not pay. `inner`
 * is S. Direct arrays (kernels/rows.h) need less scratch. */
cbn_plan cbn_plan_for(ptrdiff_t positions, ptrdiff_t channels, ptrdiff_t inner, int threads,
                      int direct);

/* Lets strips begin `lead` < 16 columns earlier, where cache lines begin. */
void cbn_plan_align(cbn_plan *plan, ptrdiff_t lead);

/* Makes each lane a strip, for rows that do not touch each other. */
void cbn_plan_separate_lanes(cbn_plan *plan);

/* Whether threads share the rows of a map although they do not share those of the reduction. */
int cbn_plan_maps_share_rows(const cbn_plan *plan);

/* Bytes of scratch of one thread, and of all of them. */
size_t cbn_plan_thread_scratch(const cbn_plan *plan);
size_t cbn_plan_scratch(const cbn_plan *plan);

/* The first row after a chunk; and how many positions of a channel lie before it, in a lane. */
ptrdiff_t cbn_plan_chunk_end(const cbn_plan *plan, ptrdiff_t chunk);
ptrdiff_t cbn_plan_positions_before_end(const cbn_plan *plan, ptrdiff_t chunk);

/* Where share `share` of `total` things begins, if they are dealt to `shares` as evenly as can be;
 * the next share begins where it ends. */
ptrdiff_t cbn_plan_share_begin(ptrdiff_t total, int share, int shares);

/* A place without scratch, and the one of the rows that are left over. */
cbn_place cbn_plan_place(const cbn_plan *plan, ptrdiff_t chunk, ptrdiff_t strip);
cbn_place cbn_plan_left_over(const cbn_plan *plan);

/* The ways to deal places: ranges of channels, places in the order of rows, the same backwards, and
 * places of which each thread takes some rows. */
typedef enum cbn_deal { CBN_CHANNELS, CBN_PLACES, CBN_PLACES_BACKWARDS, CBN_SHARED_ROWS } cbn_deal;

/* How many places a thread of `threads` is dealt, and which is number i of them. */
ptrdiff_t cbn_plan_dealt(const cbn_plan *plan, cbn_deal deal, int thread, int threads);
cbn_place cbn_plan_deal(const cbn_plan *plan, cbn_deal deal, int thread, int threads, ptrdiff_t i);

#endif
