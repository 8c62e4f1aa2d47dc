/* How an operation's work is cut into tiles and dealt to threads.
 *
 * Every operation is at most four steps: start the channels, reduce tiles to partial results,
 * finish the channels (merge the partial results, turn them into coefficients), map tiles to the
 * output. Tiles are chunks of rows x strips of channels. Where chunks begin follows from the
 * number of rows alone, so the bytes of a result do not depend on how the tiles are dealt; strips
 * may follow the threads, because channels are independent of each other. */
#ifndef CBN_WORK_H
#define CBN_WORK_H

#include <stddef.h>

/* A tile, or for steps on channels a strip. */
typedef struct cbn_place {
    ptrdiff_t chunk, channel, channels;
    void *work; /* CBN_WORK_BYTES of scratch of the calling thread */
} cbn_place;

typedef struct cbn_work {
    ptrdiff_t rows, channels;
    ptrdiff_t chunk_rows, chunks;
    ptrdiff_t strip, strips;
    int by_rows; /* threads share the chunks; otherwise each has whole strips */
    int threads;
    char *scratch; /* threads x CBN_WORK_BYTES */
} cbn_work;

typedef void (*cbn_step)(const void *operation, cbn_place at);

/* Any may be NULL. */
typedef struct cbn_steps {
    cbn_step start;  /* a strip, before any of its tiles */
    cbn_step reduce; /* a tile */
    cbn_step finish; /* a strip, all its tiles reduced */
    cbn_step map;    /* a tile, its strip finished */
} cbn_steps;

/* Everything but `scratch`; fewer threads where they do not pay. */
cbn_work cbn_work_split(ptrdiff_t rows, ptrdiff_t channels, int threads);

/* First row after a chunk. */
ptrdiff_t cbn_work_chunk_end(const cbn_work *work, ptrdiff_t chunk);

void cbn_work_run(const cbn_work *work, const cbn_steps *steps, const void *operation);

#endif
