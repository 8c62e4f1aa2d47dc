#include "work.h"

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

/* Rows of a chunk: enough to spread the cost of a tile, few enough that 64 blocks added one after
 * another err by less than the contract, and at most MAX_CHUNKS chunks. The partial results of a
 * forward pass stay under 3 % of a float32 input. */
#define MIN_CHUNK_ROWS 256
#define MAX_CHUNK_ROWS 2048
#define USUAL_CHUNKS 64
#define MAX_CHUNKS 8192

/* A strip shorter than 256 bytes of float32 wastes the lines and pages it touches: below that,
 * threads share the rows instead of the channels. */
#define MIN_STRIP 64

static ptrdiff_t ceil_div(ptrdiff_t a, ptrdiff_t b) { return a / b + (a % b != 0); }

/* In floating point, since strides of 0 make rows huge. */
static int useful_threads(ptrdiff_t rows, ptrdiff_t channels, int threads)
{
    const double most = (double)rows * (double)channels / ELEMENTS_PER_THREAD;
    const int allowed = threads < MAX_THREADS ? threads : MAX_THREADS;
    return most < 2 || allowed < 1 ? 1 : most < allowed ? (int)most : allowed;
}

static ptrdiff_t whole_blocks(ptrdiff_t rows, ptrdiff_t chunks)
{
    return ceil_div(ceil_div(rows, chunks), CBN_BLOCK_ROWS) * CBN_BLOCK_ROWS;
}

static ptrdiff_t chunk_rows_of(ptrdiff_t rows)
{
    const ptrdiff_t usual = whole_blocks(rows, USUAL_CHUNKS);
    const ptrdiff_t least = whole_blocks(rows, MAX_CHUNKS);
    const ptrdiff_t capped = usual < MAX_CHUNK_ROWS ? usual : MAX_CHUNK_ROWS;
    const ptrdiff_t enough = capped > MIN_CHUNK_ROWS ? capped : MIN_CHUNK_ROWS;
    return least > enough ? least : enough;
}

cbn_work cbn_work_split(ptrdiff_t rows, ptrdiff_t channels, int threads)
{
    cbn_work w = {.rows = rows, .channels = channels};
    w.chunk_rows = chunk_rows_of(rows);
    w.chunks = ceil_div(rows, w.chunk_rows);
    w.strips = channels > CBN_STRIP ? ceil_div(channels, CBN_STRIP) : 1;
    w.threads = useful_threads(rows, channels, threads);
    w.by_rows = w.threads > 1 && channels < (ptrdiff_t)w.threads * MIN_STRIP;
    if (!w.by_rows) {
        w.strips = ceil_div(w.strips, w.threads) * w.threads;
    } else if (w.threads > w.chunks) {
        w.threads = (int)w.chunks;
    }
    w.strip = ceil_div(ceil_div(channels > 0 ? channels : 1, w.strips), 16) * 16;
    w.strips = ceil_div(channels, w.strip);
    return w;
}

ptrdiff_t cbn_work_chunk_end(const cbn_work *work, ptrdiff_t chunk)
{
    return chunk + 1 < work->chunks ? (chunk + 1) * work->chunk_rows : work->rows;
}

typedef struct team {
    const cbn_work *work;
    const cbn_steps *steps;
    const void *operation;
} team;

static cbn_place place_of(const cbn_work *w, ptrdiff_t chunk, ptrdiff_t strip, int thread)
{
    const ptrdiff_t channel = strip * w->strip, left = w->channels - channel;
    return (cbn_place){chunk, channel, left < w->strip ? left : w->strip,
                       w->scratch + (size_t)thread * CBN_WORK_BYTES};
}

static void barrier(int threads)
{
    if (threads > 1) {
#ifdef _OPENMP
#pragma omp barrier
#endif
    }
}

static void share_strips(const team *m, cbn_step step, int thread, int threads)
{
    const ptrdiff_t strips = m->work->strips;
    if (step == NULL) {
        return;
    }
    for (ptrdiff_t i = strips * thread / threads; i < strips * (thread + 1) / threads; ++i) {
        step(m->operation, place_of(m->work, 0, i, thread));
    }
    barrier(threads);
}

/* Tiles in the order of rows; `backwards` begins where the pass before it ended, in the cache. */
static void share_tiles(const team *m, cbn_step step, int backwards, int thread, int threads)
{
    const ptrdiff_t strips = m->work->strips, tiles = m->work->chunks * strips;
    const ptrdiff_t first = tiles * thread / threads, last = tiles * (thread + 1) / threads;
    if (step == NULL) {
        return;
    }
    for (ptrdiff_t i = 0; i < last - first; ++i) {
        const ptrdiff_t tile = backwards ? last - 1 - i : first + i;
        step(m->operation, place_of(m->work, tile / strips, tile % strips, thread));
    }
    barrier(threads);
}

static void run_by_rows(const team *m, int thread, int threads)
{
    share_strips(m, m->steps->start, thread, threads);
    share_tiles(m, m->steps->reduce, 0, thread, threads);
    share_strips(m, m->steps->finish, thread, threads);
    share_tiles(m, m->steps->map, 1, thread, threads);
}

/* No barrier: a thread takes each of its strips through all steps, so that the strip may stay in
 * its cache. */
static void run_by_strips(const team *m, int thread, int threads)
{
    const cbn_work *const w = m->work;
    const cbn_steps *const s = m->steps;
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
        for (ptrdiff_t chunk = w->chunks; s->map != NULL && chunk-- > 0;) {
            s->map(m->operation, place_of(w, chunk, i, thread));
        }
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
