/* The order of passes and the split of the work among threads.
 *
 * Every operation is at most three steps: reduce tiles to partial results, finish the channels
 * (merge the partial results, turn them into coefficients), map tiles to the output. Tiles are
 * chunks of rows x strips of channels. Where chunks begin and in which tree their results are
 * merged follows from the number of rows alone, so the bytes of a result do not depend on how the
 * tiles are dealt to threads; strips may follow the threads, because channels are independent.
 */
#include <math.h>

#ifdef _OPENMP
#include <omp.h>
#endif

#include "cbn.h"
#include "channels.h"
#include "compiler.h"
#include "dispatch.h"
#include "layout.h"

/* Work that a further thread must find before it pays for its wake-up, in elements. */
#define ELEMENTS_PER_THREAD 16384

/* Rows of a chunk: enough to spread the cost of a tile, and at most MAX_CHUNKS of them, which
 * bounds the partial results to 5 % of a float32 input. */
#define MIN_CHUNK_ROWS 256
#define MAX_CHUNKS 64

/* A strip shorter than 256 bytes of float32 wastes the lines and pages it touches: below that,
 * threads share the rows instead of the channels. */
#define MIN_STRIP 64

#define MOMENTS 3 /* base, offset, m2 */
#define COEFFICIENTS 3

typedef struct job job;

/* One tile or, for `finish`, one range of channels. */
typedef struct place {
    ptrdiff_t chunk, channel, channels;
    void *work;
} place;

struct job {
    const cbn_kernels *kernels;
    ptrdiff_t rows, channels;
    ptrdiff_t chunk_rows, chunks;
    ptrdiff_t strip, strips;
    int share_rows; /* threads deal in chunks; otherwise each thread has whole strips */
    int threads;

    void (*start)(const job *, place);  /* a range of channels, before any tile of it */
    void (*reduce)(const job *, place); /* a tile */
    void (*finish)(const job *, place); /* a range of channels, all its tiles reduced */
    void (*map)(const job *, place);    /* a tile, its channels finished */

    cbn_input x, dy;
    cbn_output out;
    const double *gamma, *beta;
    double eps;
    cbn_statistics statistics;
    double *dgamma, *dbeta;

    double *partial;                         /* chunks x MOMENTS x channels */
    double *scale, *along_xhat, *along_one;  /* coefficients */
    char *work;                              /* threads x CBN_WORK_BYTES */
};

/* --- shapes of the work ----------------------------------------------------------------------*/

static ptrdiff_t ceil_div(ptrdiff_t a, ptrdiff_t b)
{
    return a / b + (a % b != 0);
}

static ptrdiff_t chunk_rows_of(ptrdiff_t rows)
{
    const ptrdiff_t even = ceil_div(ceil_div(rows, MAX_CHUNKS), CBN_BLOCK_ROWS) * CBN_BLOCK_ROWS;
    return even > MIN_CHUNK_ROWS ? even : MIN_CHUNK_ROWS;
}

static size_t partial_size(ptrdiff_t rows, ptrdiff_t channels)
{
    const ptrdiff_t chunks = ceil_div(rows, chunk_rows_of(rows));
    return (size_t)(chunks * channels) * MOMENTS * sizeof(double);
}

static size_t coefficients_size(ptrdiff_t channels)
{
    return (size_t)channels * COEFFICIENTS * sizeof(double);
}

/* Not more than find enough to do; in floating point, since strides of 0 make rows huge. */
static int useful_threads(ptrdiff_t rows, ptrdiff_t channels, int threads)
{
    const double most = (double)rows * (double)channels / ELEMENTS_PER_THREAD;
    return most >= threads ? threads : most < 2 ? 1 : (int)most;
}

size_t cbn_scratch_size(ptrdiff_t rows, ptrdiff_t channels, int threads)
{
    return partial_size(rows, channels) + coefficients_size(channels) +
           (size_t)useful_threads(rows, channels, threads) * CBN_WORK_BYTES;
}

static void split(job *j)
{
    j->chunk_rows = chunk_rows_of(j->rows);
    j->chunks = ceil_div(j->rows, j->chunk_rows);
    j->strips = ceil_div(j->channels, CBN_STRIP);
    j->share_rows = j->threads > 1 && j->channels < j->threads * MIN_STRIP;
    if (j->share_rows) {
        if (j->threads > j->chunks) {
            j->threads = (int)j->chunks;
        }
    } else {
        j->strips = ceil_div(j->strips, j->threads) * j->threads;
    }
    j->strip = ceil_div(ceil_div(j->channels, j->strips), 16) * 16;
    j->strips = ceil_div(j->channels, j->strip);
}

/* --- threads ---------------------------------------------------------------------------------*/

/* Call `step` on what thread t of T owns of `count` consecutive tasks, optionally last one first:
 * the second pass begins where the first ended, in the cache. */
static void share(void (*step)(const job *, place), const job *j, int tiles, int backwards, int t,
                  int threads)
{
    const ptrdiff_t count = tiles ? j->chunks * j->strips : j->strips;
    const ptrdiff_t first = count * t / threads, last = count * (t + 1) / threads;
    for (ptrdiff_t i = 0; i < last - first; ++i) {
        const ptrdiff_t task = backwards ? last - 1 - i : first + i;
        const ptrdiff_t strip = task % j->strips;
        const ptrdiff_t channel = strip * j->strip;
        const ptrdiff_t left = j->channels - channel;
        step(j, (place){task / j->strips, channel, left < j->strip ? left : j->strip,
                        j->work + (size_t)t * CBN_WORK_BYTES});
    }
}

static void barrier(int threads)
{
    if (threads > 1) {
#ifdef _OPENMP
#pragma omp barrier
#endif
    }
}

static void share_rows(const job *j, int t, int threads)
{
    if (j->start != NULL) {
        share(j->start, j, 0, 0, t, threads);
        barrier(threads);
    }
    if (j->reduce != NULL) {
        share(j->reduce, j, 1, 0, t, threads);
        barrier(threads);
    }
    if (j->finish != NULL) {
        share(j->finish, j, 0, 0, t, threads);
        barrier(threads);
    }
    if (j->map != NULL) {
        share(j->map, j, 1, 1, t, threads);
    }
}

/* No barrier: a thread takes its strips through all steps one after another. */
static void share_strips(const job *j, int t, int threads)
{
    const ptrdiff_t first = j->strips * t / threads, last = j->strips * (t + 1) / threads;
    for (ptrdiff_t strip = first; strip < last; ++strip) {
        const ptrdiff_t channel = strip * j->strip;
        const ptrdiff_t left = j->channels - channel;
        place at = {0, channel, left < j->strip ? left : j->strip,
                    j->work + (size_t)t * CBN_WORK_BYTES};
        if (j->start != NULL) {
            j->start(j, at);
        }
        for (at.chunk = 0; j->reduce != NULL && at.chunk < j->chunks; ++at.chunk) {
            j->reduce(j, at);
        }
        if (j->finish != NULL) {
            j->finish(j, at);
        }
        for (at.chunk = j->chunks - 1; j->map != NULL && at.chunk >= 0; --at.chunk) {
            j->map(j, at);
        }
    }
}

static void run_share(const job *j, int t, int threads)
{
    (j->share_rows ? share_rows : share_strips)(j, t, threads);
}

#if defined(_OPENMP) && defined(__unix__)
#include <pthread.h>
#include <stdatomic.h>

/* libgomp's threads do not survive fork(), and a child that asks for them waits for ever
 * (GCC bug 60035). A child of a process that had them runs serially. */
static atomic_int had_threads, forked_with_threads;

static void after_fork_in_child(void)
{
    forked_with_threads = had_threads;
}

static int threads_allowed(void)
{
    if (!atomic_exchange(&had_threads, 1)) {
        pthread_atfork(NULL, NULL, after_fork_in_child);
    }
    return !forked_with_threads && !omp_in_parallel();
}
#elif defined(_OPENMP)
static int threads_allowed(void)
{
    return !omp_in_parallel();
}
#endif

/* One thread never enters the OpenMP runtime: it may be missing, broken by a fork, or unable to
 * create threads. A runtime that grants fewer threads than asked for changes nothing but time. */
static void run(const job *j)
{
#ifdef _OPENMP
    if (j->threads > 1 && threads_allowed()) {
#pragma omp parallel num_threads(j->threads)
        run_share(j, omp_get_thread_num(), omp_get_num_threads());
        return;
    }
#endif
    run_share(j, 0, 1);
}

/* --- steps -----------------------------------------------------------------------------------*/

static cbn_tile tile_of(const job *j, place at)
{
    const ptrdiff_t left = j->rows - at.chunk * j->chunk_rows;
    return (cbn_tile){left < j->chunk_rows ? left : j->chunk_rows, at.channels, at.work};
}

static cbn_input input_at(const job *j, cbn_input in, place at)
{
    in.data += at.chunk * j->chunk_rows * in.stride +
               at.channel * (ptrdiff_t)j->kernels->itemsize;
    return in;
}

static cbn_output output_at(const job *j, cbn_output out, place at)
{
    out.data += at.chunk * j->chunk_rows * out.stride +
                at.channel * (ptrdiff_t)j->kernels->itemsize;
    return out;
}

/* The k-th partial result of a chunk, from the place's first channel on. */
static double *partial_at(const job *j, ptrdiff_t chunk, int k, place at)
{
    return j->partial + (chunk * MOMENTS + k) * j->channels + at.channel;
}

static cbn_channels channels_at(const job *j, place at)
{
    return (cbn_channels){
        .mean = j->statistics.mean + at.channel,
        .mean_low = j->statistics.mean_low + at.channel,
        .invstd = j->statistics.invstd + at.channel,
        .scale = j->scale + at.channel,
        .along_xhat = j->along_xhat + at.channel,
        .along_one = j->along_one + at.channel,
    };
}

/* Merge the chunks' partial results into chunk 0 as a binary tree: the error grows with the
 * logarithm of their number, and the tree is the same for every thread count. */
static void merge_chunks(const job *j, place at, int moments)
{
    for (ptrdiff_t step = 1; step < j->chunks; step *= 2) {
        for (ptrdiff_t i = 0; i + step < j->chunks; i += 2 * step) {
            const ptrdiff_t start = i * j->chunk_rows, middle = start + step * j->chunk_rows;
            const ptrdiff_t after = middle + step * j->chunk_rows;
            const ptrdiff_t end = after < j->rows ? after : j->rows;
            double *const into[] = {partial_at(j, i, 0, at), partial_at(j, i, 1, at),
                                    partial_at(j, i, 2, at)};
            const double *const from[] = {partial_at(j, i + step, 0, at),
                                          partial_at(j, i + step, 1, at),
                                          partial_at(j, i + step, 2, at)};
            if (moments) {
                cbn_channels_merge_moments(into[0], into[1], into[2], from[0], from[1], from[2],
                                           middle - start, end - middle, at.channels);
            } else {
                cbn_channels_add(into[0], from[0], at.channels);
                cbn_channels_add(into[1], from[1], at.channels);
            }
        }
    }
}

static void scale_step(const job *j, place at)
{
    const double *const gamma = j->gamma == NULL ? NULL : j->gamma + at.channel;
    cbn_channels_scale(j->scale + at.channel, gamma, j->statistics.invstd + at.channel,
                       at.channels);
}

static void shift_step(const job *j, place at)
{
    const double *const beta = j->beta == NULL ? NULL : j->beta + at.channel;
    cbn_channels_copy(j->along_one + at.channel, beta, 0, at.channels);
}

static void invstd_step(const job *j, place at)
{
    cbn_channels_invstd(j->statistics.invstd + at.channel, j->statistics.var + at.channel, j->eps,
                        at.channels);
}

static void moments_tile(const job *j, place at)
{
    j->kernels->moments(partial_at(j, at.chunk, 0, at), partial_at(j, at.chunk, 1, at),
                        partial_at(j, at.chunk, 2, at), input_at(j, j->x, at), tile_of(j, at));
}

static void forward_finish(const job *j, place at)
{
    const cbn_statistics *const s = &j->statistics;
    merge_chunks(j, at, 1);
    cbn_channels_statistics(s->mean + at.channel, s->mean_low + at.channel, s->var + at.channel,
                            partial_at(j, 0, 0, at), partial_at(j, 0, 1, at),
                            partial_at(j, 0, 2, at), j->rows, at.channels);
    invstd_step(j, at);
    scale_step(j, at);
    shift_step(j, at);
}

static void normalize_tile(const job *j, place at)
{
    cbn_channels channels = channels_at(j, at);
    channels.along_xhat = channels.scale; /* every factor is looked at, so each must be one */
    j->kernels->normalize(output_at(j, j->out, at), input_at(j, j->x, at), tile_of(j, at),
                          &channels);
}

static void inference_start(const job *j, place at)
{
    invstd_step(j, at);
    scale_step(j, at);
    shift_step(j, at);
}

static void sums_tile(const job *j, place at)
{
    cbn_channels channels = channels_at(j, at);
    channels.scale = channels.along_xhat = channels.invstd;
    j->kernels->backward_sums(partial_at(j, at.chunk, 0, at), partial_at(j, at.chunk, 1, at),
                              input_at(j, j->dy, at), input_at(j, j->x, at), tile_of(j, at),
                              &channels);
}

static void sums_finish(const job *j, place at)
{
    merge_chunks(j, at, 0);
    cbn_channels_copy(j->dbeta + at.channel, partial_at(j, 0, 0, at), 0, at.channels);
    cbn_channels_copy(j->dgamma + at.channel, partial_at(j, 0, 1, at), 0, at.channels);
}

/* One row has no gradient; the rounding of scale would otherwise leave some. */
static void backward_finish(const job *j, place at)
{
    double *const scale = j->scale + at.channel;
    sums_finish(j, at);
    scale_step(j, at);
    if (j->rows == 1) {
        cbn_channels_copy(scale, NULL, 0, at.channels);
    }
    cbn_channels_project(j->along_xhat + at.channel, j->dgamma + at.channel, scale, j->rows,
                         at.channels);
    cbn_channels_project(j->along_one + at.channel, j->dbeta + at.channel, scale, j->rows,
                         at.channels);
}

static void dx_tile(const job *j, place at)
{
    const cbn_channels channels = channels_at(j, at);
    j->kernels->backward_dx(output_at(j, j->out, at), input_at(j, j->dy, at),
                            input_at(j, j->x, at), tile_of(j, at), &channels);
}

/* dx = dy * scale is normalize with a mean of zero. */
static void inference_backward_start(const job *j, place at)
{
    invstd_step(j, at);
    scale_step(j, at);
    cbn_channels_copy(j->along_one + at.channel, NULL, 0, at.channels);
}

static void inference_backward_tile(const job *j, place at)
{
    cbn_channels channels = channels_at(j, at);
    sums_tile(j, at);
    channels.mean = channels.mean_low = channels.along_one;
    channels.invstd = channels.along_xhat = channels.scale;
    j->kernels->normalize(output_at(j, j->out, at), input_at(j, j->dy, at), tile_of(j, at),
                          &channels);
}

/* --- operations ------------------------------------------------------------------------------*/

/* Checks what the operations share, lays out the scratch and runs the steps. */
static cbn_status run_job(job *j, const cbn_array *const arrays[], int count,
                          const cbn_resources *resources)
{
    const cbn_array *const first = arrays[0];
    if ((int)first->dtype < 0 || first->dtype >= CBN_DTYPE_COUNT) {
        return CBN_ERROR_DTYPE;
    }
    j->kernels = cbn_dispatch(first->dtype);
    if (j->kernels == NULL) {
        return CBN_ERROR_ISA_UNSUPPORTED;
    }
    for (int i = 0; i < count; ++i) {
        const cbn_status status = cbn_check_rows(arrays[i], j->kernels->itemsize);
        if (status != CBN_OK) {
            return status;
        }
        if (!cbn_same_form(arrays[i], first)) {
            return CBN_ERROR_SHAPE;
        }
    }
    if (first->outer < 1 || first->channels < 0) {
        return CBN_ERROR_SHAPE;
    }
    if (!(j->eps >= 0) || isinf(j->eps)) {
        return CBN_ERROR_EPS;
    }
    if (resources->threads < 1) {
        return CBN_ERROR_THREADS;
    }
    if (first->channels == 0) {
        return CBN_OK;
    }
    j->rows = first->outer;
    j->channels = first->channels;
    j->threads = useful_threads(j->rows, j->channels, resources->threads);
    if (resources->scratch == NULL ||
        resources->scratch_size < cbn_scratch_size(j->rows, j->channels, resources->threads)) {
        return CBN_ERROR_SCRATCH;
    }
    split(j);
    char *scratch = resources->scratch;
    j->partial = (double *)scratch;
    scratch += partial_size(j->rows, j->channels);
    j->scale = (double *)scratch;
    j->along_xhat = j->scale + j->channels;
    j->along_one = j->along_xhat + j->channels;
    scratch += coefficients_size(j->channels);
    j->work = scratch;
    run(j);
    return CBN_OK;
}

static cbn_input input(const cbn_array *array)
{
    return (cbn_input){array->data, array->outer_stride};
}

static cbn_output output(cbn_array *array)
{
    return (cbn_output){array->data, array->outer_stride};
}

cbn_status cbn_forward(cbn_array *y, const cbn_statistics *statistics, const cbn_array *x,
                       const double *gamma, const double *beta, double eps,
                       const cbn_resources *resources)
{
    job j = {.reduce = moments_tile,
             .finish = forward_finish,
             .map = normalize_tile,
             .out = output(y),
             .x = input(x),
             .gamma = gamma,
             .beta = beta,
             .eps = eps,
             .statistics = *statistics};
    return run_job(&j, (const cbn_array *const[]){x, y}, 2, resources);
}

cbn_status cbn_inference(cbn_array *y, const cbn_statistics *statistics, const cbn_array *x,
                         const double *gamma, const double *beta, double eps,
                         const cbn_resources *resources)
{
    job j = {.start = inference_start,
             .map = normalize_tile,
             .out = output(y),
             .x = input(x),
             .gamma = gamma,
             .beta = beta,
             .eps = eps,
             .statistics = *statistics};
    return run_job(&j, (const cbn_array *const[]){x, y}, 2, resources);
}

cbn_status cbn_backward(cbn_array *dx, double *dgamma, double *dbeta, const cbn_array *dy,
                        const cbn_array *x, const cbn_statistics *statistics, const double *gamma,
                        const cbn_resources *resources)
{
    job j = {.reduce = sums_tile,
             .finish = backward_finish,
             .map = dx_tile,
             .out = output(dx),
             .dy = input(dy),
             .x = input(x),
             .gamma = gamma,
             .statistics = *statistics,
             .dgamma = dgamma,
             .dbeta = dbeta};
    return run_job(&j, (const cbn_array *const[]){x, dy, dx}, 3, resources);
}

cbn_status cbn_inference_backward(cbn_array *dx, double *dgamma, double *dbeta,
                                  const cbn_statistics *statistics, const cbn_array *dy,
                                  const cbn_array *x, const double *gamma, double eps,
                                  const cbn_resources *resources)
{
    job j = {.start = inference_backward_start,
             .reduce = inference_backward_tile,
             .finish = sums_finish,
             .out = output(dx),
             .dy = input(dy),
             .x = input(x),
             .gamma = gamma,
             .eps = eps,
             .statistics = *statistics,
             .dgamma = dgamma,
             .dbeta = dbeta};
    return run_job(&j, (const cbn_array *const[]){x, dy, dx}, 3, resources);
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
