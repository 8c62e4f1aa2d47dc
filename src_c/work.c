#include "work.h"

#include <math.h>

#ifdef _OPENMP
#include <omp.h>
#endif

#include "cbn.h"
#include "compiler.h"
#include "kernels/kernels.h"

/* Work that a further thread must find before it pays for its wake-up, in elements. */
#define ELEMENTS_PER_THREAD 16384

/* More threads than pay for any call; libgomp ends the process when the system refuses one. */
#define MAX_THREADS 1024

/* Rows of a chunk: enough to spread the cost of a tile (moments of chunks of 256 rows took 1.1
 * times as long), and at most MAX_CHUNKS chunks. The partial results of a forward pass stay under 2
 * % of a float32 input. */
#define MIN_CHUNK_ROWS 512
#define MAX_CHUNK_ROWS 2048
#define USUAL_CHUNKS 64
#define MAX_CHUNKS 8192

/* Columns of a row of lanes, and of a strip: memory likes long runs, caches those whose
 * coefficients stay near (from 4 million elements on, and below; the other number took 1.1 times as
 * long). And rows of a lane, for the same reason as those of a chunk. */
#define FAR_ELEMENTS (4 << 20)
#define FAR_LANES_COLUMNS 2048
#define LANES_COLUMNS 1024
#define MIN_LANE_ROWS 256
#define MAX_STRIP 4096
#define MIN_STRIP 64

/* Runs of an inner axis: long ones for long loops, and the longer the more rows of them, to be
 * worth their merge: 8 of 1024 columns, 16 of 2048, 32 of 4096 (32 x 64 x 56 x 56 with runs of 784
 * instead of 3136 1.1 to 1.2 times as long, of 448 1.3 to 1.4; 8 x 256 x 56 x 56 with 8 of 3136
 * instead of 16 of 1568 1.1 to 1.2 forward, with 32 of 784 1.0 to 1.07). Below so many positions of
 * several images a channel costs more than it has, and rows are gathered, which took 4 times as
 * long at 8 x 512 x 7 x 7. Of one image more, lest x.T have other bytes than x where rows are
 * cheap. */
#define MAX_RUN 4096
#define MIN_RUN 32
#define MIN_RUN_ROWS 8
#define RUN_COLUMNS_PER_ROW 128
#define MIN_POSITIONS 64
#define MIN_POSITIONS_OF_ONE 1024

/* Channels of a short inner axis are taken together, so many columns of them, if there are several
 * images. 32 x 512 x 7 x 7 took 2.9 ns an element channel by channel, 32 x 512 x 28 x 28 by one
 * channel instead of two 1.1 times as long. */
#define SHORT_INNER 1024
#define GROUP_COLUMNS 2048
#define MIN_IMAGES 2

/* Channels of a strip that stay in the second-level cache from pass to pass, in elements. */
#define NEAR_ELEMENTS (64 << 10)

static ptrdiff_t min(ptrdiff_t a, ptrdiff_t b) { return a < b ? a : b; }
static ptrdiff_t max(ptrdiff_t a, ptrdiff_t b) { return a > b ? a : b; }
/* Of a > 0. With a division each, cutting the work was a twentieth of a small call's C. */
static ptrdiff_t ceil_div(ptrdiff_t a, ptrdiff_t b) { return a <= b ? 1 : (a - 1) / b + 1; }

/* In floating point, since strides of 0 make rows huge. */
static int useful_threads(ptrdiff_t rows, ptrdiff_t channels, int threads)
{
    const double most = (double)rows * (double)channels / ELEMENTS_PER_THREAD;
    const int allowed = (int)min(threads, MAX_THREADS);
    return most < 2 || allowed < 1 ? 1 : most < allowed ? (int)most : allowed;
}

static ptrdiff_t whole_blocks(ptrdiff_t rows, ptrdiff_t chunks)
{
    return ceil_div(ceil_div(rows, chunks), CBN_BLOCK_ROWS) * CBN_BLOCK_ROWS;
}

static ptrdiff_t chunk_rows_of(ptrdiff_t rows)
{
    if (rows <= MIN_CHUNK_ROWS) {
        return MIN_CHUNK_ROWS;
    }
    const ptrdiff_t usual = min(whole_blocks(rows, USUAL_CHUNKS), MAX_CHUNK_ROWS);
    return max(max(usual, MIN_CHUNK_ROWS), whole_blocks(rows, MAX_CHUNKS));
}

static ptrdiff_t lanes_of(ptrdiff_t rows, ptrdiff_t channels)
{
    const int far = (double)rows * (double)channels >= FAR_ELEMENTS;
    const ptrdiff_t columns = far ? FAR_LANES_COLUMNS : LANES_COLUMNS;
    ptrdiff_t lanes = 1;
    while (channels > 0 && 2 * lanes * channels <= columns && rows >= 2 * lanes * MIN_LANE_ROWS) {
        lanes *= 2;
    }
    return lanes;
}

/* All of a short inner axis; of a long one or one image the longest divisor that serves, so that no
 * run crosses its end; else a power of two. */
static ptrdiff_t run_of(ptrdiff_t rows, ptrdiff_t inner)
{
    const double worth = sqrt((double)RUN_COLUMNS_PER_ROW * (double)rows);
    const ptrdiff_t most = min(rows / MIN_RUN_ROWS, worth < MAX_RUN ? (ptrdiff_t)worth : MAX_RUN);
    if (inner <= SHORT_INNER && rows / inner >= MIN_IMAGES) {
        return inner;
    }
    for (ptrdiff_t run = most; run >= MIN_RUN; --run) {
        if (inner % run == 0) {
            return run;
        }
    }
    ptrdiff_t run = MIN_RUN;
    while (2 * run <= most) {
        run *= 2;
    }
    return run;
}

static void set_strips(cbn_work *w, ptrdiff_t strip)
{
    w->strip = strip;
    w->strips = ceil_div(w->columns, strip);
}

/* Whole strips to a thread where there are several for each, else chunks of single channels. */
static void split_runs(cbn_work *w, ptrdiff_t inner)
{
    w->run = run_of(w->rows, inner);
    w->run_left_over = w->rows % w->run;
    w->lanes = 1;
    w->columns = w->channels;
    w->left_over = 0;
    w->chunk_rows = chunk_rows_of(w->rows / w->run);
    w->chunks = ceil_div(w->rows / w->run, w->chunk_rows);
    w->by_rows = w->threads > 1 && w->channels < 4 * (ptrdiff_t)w->threads;
    const ptrdiff_t near = NEAR_ELEMENTS / w->rows, share = w->channels / (4 * w->threads);
    const ptrdiff_t most = min(near, share);
    w->group = w->run == inner && GROUP_COLUMNS / inner > 1 ? GROUP_COLUMNS / inner : 1;
    if (w->group > share) {
        w->group = share > 1 ? share : 1;
    }
    set_strips(w, w->by_rows || most < w->group ? w->group : most / w->group * w->group);
    w->slot_bytes = (size_t)(w->group * w->run + 16) * sizeof(double) + 4096;
}

/* Maps share the rows where reductions share the columns of narrow arrays: a core's prefetchers run
 * into what another core has just written at the end of every row, which on some days made forward
 * at 256 x 1024 with two threads take 1.7 times as long. */
static int maps_share_rows(const cbn_work *w)
{
    return w->threads > 1 && w->run == 1 && w->columns <= MAX_STRIP &&
           (!w->by_rows || w->chunks < w->threads);
}

static void split_rows(cbn_work *w)
{
    w->run = 1;
    w->run_left_over = 0;
    w->lanes = lanes_of(w->rows, w->channels);
    const ptrdiff_t lane_rows = w->rows / w->lanes;
    w->columns = w->lanes * w->channels;
    w->left_over = w->rows % w->lanes;
    w->chunk_rows = chunk_rows_of(lane_rows);
    w->chunks = ceil_div(lane_rows, w->chunk_rows);
    const int chunks_share_well = w->chunks >= 2 * w->threads || w->chunks == w->threads;
    w->by_rows =
        w->lanes > 1 ||
        (w->threads > 1 && w->channels < (ptrdiff_t)w->threads * MAX_STRIP && chunks_share_well);
    ptrdiff_t strips = w->columns > MAX_STRIP ? ceil_div(w->columns, MAX_STRIP) : 1;
    if (!w->by_rows) {
        strips = ceil_div(strips, w->threads) * w->threads;
    } else if (w->threads > w->chunks * strips) {
        const ptrdiff_t wanted = ceil_div(w->threads, w->chunks), most = w->columns / MIN_STRIP;
        strips = wanted < most ? wanted : most > 1 ? most : 1;
    }
    set_strips(w, ceil_div(ceil_div(w->columns > 0 ? w->columns : 1, strips), 16) * 16);
    /* Rows that are left over or shared and separate lanes have all channels. The last strip may be
     * a line longer, and kernels choose where in 4 KiB a slot begins. */
    const int whole_rows = w->lanes > 1 || maps_share_rows(w);
    const ptrdiff_t widest = whole_rows ? max(w->channels, w->strip) : w->strip;
    w->slot_bytes = (size_t)(widest + 16) * sizeof(double) + 4096;
}

cbn_work cbn_work_split(ptrdiff_t rows, ptrdiff_t channels, ptrdiff_t inner, int threads, int plain)
{
    cbn_work w = {.rows = rows, .channels = channels};
    w.threads = useful_threads(rows, channels, threads);
    w.slots = plain ? CBN_DIRECT_SLOTS : CBN_SLOTS;
    if (inner > 1 && rows >= (rows > inner ? MIN_POSITIONS : MIN_POSITIONS_OF_ONE)) {
        split_runs(&w, inner);
    } else {
        split_rows(&w);
    }
    if (w.by_rows && w.threads > w.chunks * w.strips) {
        w.threads = (int)(w.chunks * w.strips);
    }
    return w;
}

void cbn_work_align(cbn_work *work, ptrdiff_t lead) { work->lead = lead; }

void cbn_work_separate_lanes(cbn_work *work) { set_strips(work, work->channels); }

size_t cbn_work_scratch(const cbn_work *work)
{
    return (size_t)work->threads * (size_t)work->slots * work->slot_bytes;
}

ptrdiff_t cbn_work_chunk_end(const cbn_work *work, ptrdiff_t chunk)
{
    return chunk + 1 < work->chunks ? (chunk + 1) * work->chunk_rows
                                    : work->rows / (work->lanes * work->run);
}

ptrdiff_t cbn_work_positions_before_end(const cbn_work *work, ptrdiff_t chunk)
{
    const ptrdiff_t left_over = chunk + 1 < work->chunks ? 0 : work->run_left_over;
    return cbn_work_chunk_end(work, chunk) * work->run + left_over;
}

typedef struct team {
    const cbn_work *work;
    const cbn_steps *steps;
    const void *operation;
} team;

static void *work_of(const cbn_work *w, int thread)
{
    return w->scratch + (size_t)thread * (size_t)w->slots * w->slot_bytes;
}

static cbn_place place_of(const cbn_work *w, ptrdiff_t chunk, ptrdiff_t strip, int thread)
{
    const ptrdiff_t column = strip > 0 ? strip * w->strip - w->lead : 0;
    const ptrdiff_t end = strip + 1 < w->strips ? (strip + 1) * w->strip - w->lead : w->columns;
    return (cbn_place){chunk, column, end - column, work_of(w, thread), 0, 0};
}

static void barrier(int threads)
{
    if (threads > 1) {
#ifdef _OPENMP
#pragma omp barrier
#endif
    }
}

static void share_channels(const team *m, cbn_step step, int thread, int threads)
{
    const cbn_work *const w = m->work;
    const int sharers = w->lanes > 1 ? 1 : threads; /* of lanes, there is one merge of them all */
    if (step == NULL) {
        return;
    }
    if (thread < sharers) {
        const ptrdiff_t first = w->channels * thread / sharers;
        const ptrdiff_t last = w->channels * (thread + 1) / sharers;
        step(m->operation, (cbn_place){0, first, last - first, work_of(w, thread), 0, 0});
    }
    barrier(threads);
}

/* One tile more, for the last thread. */
static void take_left_over(const team *m, cbn_step step, int thread, int threads)
{
    const cbn_work *const w = m->work;
    if (w->left_over > 0 && thread == threads - 1) {
        step(m->operation, (cbn_place){w->chunks, 0, w->channels, work_of(w, thread), 0, 0});
    }
}

/* Tiles in the order of rows; `backwards` begins where the pass before it ended, in the cache. */
static void share_tiles(const team *m, cbn_step step, int backwards, int thread, int threads)
{
    const cbn_work *const w = m->work;
    const ptrdiff_t tiles = w->chunks * w->strips;
    const ptrdiff_t first = tiles * thread / threads, last = tiles * (thread + 1) / threads;
    if (step == NULL) {
        return;
    }
    for (ptrdiff_t i = 0; i < last - first; ++i) {
        const ptrdiff_t tile = backwards ? last - 1 - i : first + i;
        step(m->operation, place_of(w, tile / w->strips, tile % w->strips, thread));
    }
    take_left_over(m, step, thread, threads);
    barrier(threads);
}

/* Whole rows, but for lanes, which may lie apart. */
static void share_rows(const team *m, cbn_step step, int thread, int threads)
{
    const cbn_work *const w = m->work;
    const ptrdiff_t strips = w->lanes > 1 ? w->strips : 1;
    if (step == NULL) {
        return;
    }
    for (ptrdiff_t tile = w->chunks * strips; tile-- > 0;) {
        cbn_place place = place_of(w, tile / strips, tile % strips, thread);
        place.columns = w->lanes > 1 ? place.columns : w->columns;
        place.part = thread;
        place.parts = threads;
        step(m->operation, place);
    }
    take_left_over(m, step, thread, threads);
}

static void run_by_rows(const team *m, int thread, int threads)
{
    share_channels(m, m->steps->start, thread, threads);
    share_tiles(m, m->steps->reduce, 0, thread, threads);
    share_channels(m, m->steps->finish, thread, threads);
    if (maps_share_rows(m->work)) {
        share_rows(m, m->steps->map, thread, threads);
    } else {
        share_tiles(m, m->steps->map, 1, thread, threads);
    }
}

/* A thread takes each of its strips through all steps without a barrier, so that the strip may stay
 * in its cache. */
static void run_by_strips(const team *m, int thread, int threads)
{
    const cbn_work *const w = m->work;
    const cbn_steps *const s = m->steps;
    const cbn_step map = maps_share_rows(w) ? NULL : s->map;
    for (ptrdiff_t i = w->strips * thread / threads; i < w->strips * (thread + 1) / threads; ++i) {
        if (s->start != NULL) {
            s->start(m->operation, place_of(w, 0, i, thread));
        }
        for (ptrdiff_t chunk = 0; s->reduce != NULL && chunk < w->chunks; ++chunk) {
            s->reduce(m->operation, place_of(w, chunk, i, thread));
        }
        if (s->finish != NULL) {
            s->finish(m->operation, place_of(w, 0, i, thread));
        }
        for (ptrdiff_t chunk = w->chunks; map != NULL && chunk-- > 0;) {
            map(m->operation, place_of(w, chunk, i, thread));
        }
    }
    if (map == NULL && s->map != NULL) {
        barrier(threads);
        share_rows(m, s->map, thread, threads);
    }
}

static void run_thread(const team *m, int thread, int threads)
{
    (m->work->by_rows ? run_by_rows : run_by_strips)(m, thread, threads);
}

#if defined(_OPENMP) && !defined(_WIN32)
#include <pthread.h>

/* libgomp's threads do not survive fork(), and a child that asks for them waits for ever
 * (GCC bug 60035). Whoever had them in the parent: a forked child runs serially. */
static volatile int forked;

/* uncovered: it runs in a child that ends without writing its counts */
static void after_fork_in_child(void) { forked = 1; }

CBN_AT_LOAD static void watch_forks(void) { pthread_atfork(NULL, NULL, after_fork_in_child); }

static int threads_allowed(void) { return !forked && !omp_in_parallel(); }
#elif defined(_OPENMP)
static int threads_allowed(void) { return !omp_in_parallel(); }
#endif

/* One thread never enters the OpenMP runtime: it may be missing, broken by a fork, or unable to
 * create threads. A runtime that grants fewer threads than asked for changes nothing but time. */
void cbn_work_run(const cbn_work *work, const cbn_steps *steps, const void *operation)
{
    const team m = {work, steps, operation};
#ifdef _OPENMP
    if (work->threads > 1 && threads_allowed()) {
#pragma omp parallel num_threads(work->threads)
        run_thread(&m, omp_get_thread_num(), omp_get_num_threads());
        return;
    }
#endif
    run_thread(&m, 0, 1);
}

int cbn_openmp_version(void)
{
#ifdef _OPENMP
    return _OPENMP;
#else
    return 0;
#endif
}

int cbn_openmp_max_threads(void)
{
#ifdef _OPENMP
    return omp_get_max_threads();
#else
    return 1;
#endif
}
