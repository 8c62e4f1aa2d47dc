/* How an operation's work is cut into tiles and dealt to threads.
 *
 * Every operation is at most four steps: start the channels, reduce tiles to partial results,
 * finish the channels (merge the partial results, turn them into coefficients), map tiles to the
 * output. Tiles are chunks of rows x strips of columns. Where chunks begin follows from the shape
 * alone, so the bytes of a result do not depend on how the tiles are dealt; strips may follow the
 * threads and the addresses, because columns are independent of each other.
 *
 * Columns are channels; but the rows of narrow arrays are taken side by side, `lanes` at a time, as
 * one row of lanes x channels columns, and the lanes of a channel merged in the end, for long
 * loops. Lanes, too, follow from the shape alone. Rows that are left over are one tile more, chunk
 * number `chunks`, of plain rows.
 *
 * Arrays with an inner axis (NCHW) are taken channel by channel, `run` adjacent positions of one
 * channel as a row; what is left over belongs to the last chunk. A column is then a channel, and
 * the run's partial results are merged before they leave their tile. */
#ifndef CBN_WORK_H
#define CBN_WORK_H

#include <stddef.h>

/* A tile, or for steps on channels a range of channels. */
typedef struct cbn_place {
    ptrdiff_t chunk, column, columns;
    void *work;      /* scratch of the calling thread */
    int part, parts; /* of the rows of the chunk; all of them if there are no parts */
} cbn_place;

typedef struct cbn_work {
    ptrdiff_t rows, channels; /* positions */
    ptrdiff_t lanes, columns, left_over;
    ptrdiff_t run, run_left_over, group;
    ptrdiff_t chunk_rows, chunks;  /* of rows / lanes / run */
    ptrdiff_t strip, strips, lead; /* the first strip is `lead` columns shorter */
    int by_rows;                   /* threads share the chunks; otherwise each has whole strips */
    int threads;
    int slots;         /* of scratch a thread */
    size_t slot_bytes; /* of one of them */
    char *scratch;     /* cbn_work_scratch() bytes, at a line */
} cbn_work;

typedef void (*cbn_step)(const void *operation, cbn_place at);

/* Any may be NULL. */
typedef struct cbn_steps {
    cbn_step start;  /* channels, before any of their tiles */
    cbn_step reduce; /* a tile */
    cbn_step finish; /* channels, all their tiles reduced */
    cbn_step map;    /* a tile, its channels finished */
} cbn_steps;

/* Everything but `scratch` and `lead`; fewer threads where they do not pay. `inner` is S, and the
 * rows are plain if no array needs access. */
cbn_work cbn_work_split(ptrdiff_t rows, ptrdiff_t channels, ptrdiff_t inner, int threads,
                        int plain);

/* Makes strips begin `lead` < 16 columns earlier, where the lines of the rows do. */
void cbn_work_align(cbn_work *work, ptrdiff_t lead);

/* Makes every strip one lane, for rows that do not touch each other. */
void cbn_work_separate_lanes(cbn_work *work);

/* Bytes of scratch of all threads. */
size_t cbn_work_scratch(const cbn_work *work);

/* First row after a chunk, in rows of lanes or runs; and how many positions of a channel lie before
 * it, in a lane. */
ptrdiff_t cbn_work_chunk_end(const cbn_work *work, ptrdiff_t chunk);
ptrdiff_t cbn_work_positions_before_end(const cbn_work *work, ptrdiff_t chunk);

void cbn_work_run(const cbn_work *work, const cbn_steps *steps, const void *operation);

#endif
