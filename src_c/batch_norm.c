/* The operations: what each one reduces, which coefficients follow, what it maps. Equation numbers
 * are those of docs/math.md. How tiles reach threads is work.c's business. */
#include <math.h>

#include "cbn.h"
#include "channels.h"
#include "dispatch.h"
#include "layout.h"
#include "work.h"

/* Partial results of a tile, and coefficients that finished channels have, per channel. */
enum { MOMENTS = 3, SUMS = 2, DOUBLE_SUMS = 6 };
enum { SCALE, ALONG_XHAT, ALONG_ONE, COEFFICIENTS };
enum { C_DY = COEFFICIENTS, C_DDX, C_XHAT, C_ONE, ZERO, ONE, DOUBLE_COEFFICIENTS };

typedef struct operation {
    cbn_work work;
    const cbn_kernels *kernels;
    cbn_input x, dy, ddx;
    cbn_output out, g_dy;
    cbn_statistics statistics;
    const double *gamma, *beta; /* beta is also what a tangent adds along one */
    const double *gamma_dot;    /* what it adds along xhat */
    double *dgamma, *dbeta;
    double eps;
    int partials;
    double *partial;      /* chunks x partials x channels */
    double *coefficients; /* one of the enums above x channels */
} operation;

static cbn_tile tile_of(const operation *op, cbn_place at)
{
    const ptrdiff_t first = at.chunk * op->work.chunk_rows;
    return (cbn_tile){cbn_work_chunk_end(&op->work, at.chunk) - first, at.channels, at.work};
}

static ptrdiff_t byte_offset(const operation *op, ptrdiff_t stride, cbn_place at)
{
    return at.chunk * op->work.chunk_rows * stride + at.channel * (ptrdiff_t)op->kernels->itemsize;
}

static cbn_input input_at(const operation *op, cbn_input in, cbn_place at)
{
    return (cbn_input){in.data + byte_offset(op, in.stride, at), in.stride};
}

static cbn_output output_at(const operation *op, cbn_output out, cbn_place at)
{
    return (cbn_output){out.data + byte_offset(op, out.stride, at), out.stride};
}

static double *partial_at(const operation *op, ptrdiff_t chunk, int k, cbn_place at)
{
    return op->partial + (chunk * op->partials + k) * op->work.channels + at.channel;
}

static double *coefficient(const operation *op, int k, cbn_place at)
{
    return op->coefficients + k * op->work.channels + at.channel;
}

static const double *or_null(const double *values, cbn_place at)
{
    return values == NULL ? NULL : values + at.channel;
}

/* Every factor must be readable: kernels look at all of them for channels that need float64. Those
 * a kernel does not use are given as invstd. */
static cbn_channels channels_at(const operation *op, cbn_place at)
{
    const double *const invstd = op->statistics.invstd + at.channel;
    return (cbn_channels){.mean = op->statistics.mean + at.channel,
                          .mean_low = op->statistics.mean_low + at.channel,
                          .invstd = invstd,
                          .scale = invstd,
                          .along_xhat = invstd,
                          .along_one = coefficient(op, ALONG_ONE, at)};
}

/* Merge the chunks' partial results into chunk 0 as a binary tree: the error grows with the
 * logarithm of their number, and the tree is the same for every thread count. */
static void merge_chunks(const operation *op, cbn_place at)
{
    const cbn_work *const w = &op->work;
    for (ptrdiff_t step = 1; step < w->chunks; step *= 2) {
        for (ptrdiff_t i = 0; i + step < w->chunks; i += 2 * step) {
            if (op->partials == MOMENTS) {
                const ptrdiff_t last = i + 2 * step - 1;
                const ptrdiff_t middle = cbn_work_chunk_end(w, i + step - 1);
                const ptrdiff_t end =
                    cbn_work_chunk_end(w, last < w->chunks ? last : w->chunks - 1);
                cbn_channels_merge_moments(
                    partial_at(op, i, 0, at), partial_at(op, i, 1, at), partial_at(op, i, 2, at),
                    partial_at(op, i + step, 0, at), partial_at(op, i + step, 1, at),
                    partial_at(op, i + step, 2, at), middle - i * w->chunk_rows, end - middle,
                    at.channels);
            } else {
                for (int k = 0; k < op->partials; ++k) {
                    cbn_channels_add(partial_at(op, i, k, at), partial_at(op, i + step, k, at),
                                     at.channels);
                }
            }
        }
    }
}

static void invstd_and_scale(const operation *op, cbn_place at)
{
    double *const invstd = op->statistics.invstd + at.channel;
    cbn_channels_invstd(invstd, op->statistics.var + at.channel, op->eps, at.channels);
    cbn_channels_scale(coefficient(op, SCALE, at), or_null(op->gamma, at), invstd, at.channels);
}

static void moments_tile(const void *operation_, cbn_place at)
{
    const operation *const op = operation_;
    op->kernels->moments(partial_at(op, at.chunk, 0, at), partial_at(op, at.chunk, 1, at),
                         partial_at(op, at.chunk, 2, at), input_at(op, op->x, at), tile_of(op, at));
}

static void normalize_start(const void *operation_, cbn_place at)
{
    const operation *const op = operation_;
    invstd_and_scale(op, at);
    cbn_channels_copy(coefficient(op, ALONG_ONE, at), or_null(op->beta, at), 0, at.channels);
}

static void forward_finish(const void *operation_, cbn_place at)
{
    const operation *const op = operation_;
    const cbn_statistics *const s = &op->statistics;
    merge_chunks(op, at);
    cbn_channels_statistics(s->mean + at.channel, s->mean_low + at.channel, s->var + at.channel,
                            partial_at(op, 0, 0, at), partial_at(op, 0, 1, at),
                            partial_at(op, 0, 2, at), op->work.rows, at.channels);
    normalize_start(op, at);
}

static void normalize_tile(const void *operation_, cbn_place at)
{
    const operation *const op = operation_;
    cbn_channels channels = channels_at(op, at);
    channels.scale = coefficient(op, SCALE, at);
    op->kernels->normalize(output_at(op, op->out, at), input_at(op, op->x, at), tile_of(op, at),
                           &channels);
}

static void sums_tile(const void *operation_, cbn_place at)
{
    const operation *const op = operation_;
    const cbn_channels channels = channels_at(op, at);
    op->kernels->backward_sums(partial_at(op, at.chunk, 0, at), partial_at(op, at.chunk, 1, at),
                               input_at(op, op->dy, at), input_at(op, op->x, at), tile_of(op, at),
                               &channels);
}

static void sums_finish(const void *operation_, cbn_place at)
{
    const operation *const op = operation_;
    merge_chunks(op, at);
    cbn_channels_copy(op->dbeta + at.channel, partial_at(op, 0, 0, at), 0, at.channels);
    cbn_channels_copy(op->dgamma + at.channel, partial_at(op, 0, 1, at), 0, at.channels);
}

/* One value has no gradient, which the rounding of scale would not quite give. */
static void backward_scale(const operation *op, cbn_place at)
{
    double *const scale = coefficient(op, SCALE, at);
    if (op->statistics.count == 1) {
        cbn_channels_copy(scale, NULL, 0, at.channels);
    } else {
        cbn_channels_scale(scale, or_null(op->gamma, at), op->statistics.invstd + at.channel,
                           at.channels);
    }
}

/* The Jacobian's map of sums 0 and 1, plus gamma_dot along xhat and beta along one: (16), (30). */
static void jacobian_coefficients(const operation *op, const double *sum, const double *sum_xhat,
                                  cbn_place at)
{
    const double *const scale = coefficient(op, SCALE, at);
    cbn_channels_project(coefficient(op, ALONG_ONE, at), sum, scale, op->statistics.count,
                         or_null(op->beta, at), at.channels);
    cbn_channels_project(coefficient(op, ALONG_XHAT, at), sum_xhat, scale, op->statistics.count,
                         or_null(op->gamma_dot, at), at.channels);
}

static void jvp_finish(const void *operation_, cbn_place at)
{
    const operation *const op = operation_;
    merge_chunks(op, at);
    backward_scale(op, at);
    jacobian_coefficients(op, partial_at(op, 0, 0, at), partial_at(op, 0, 1, at), at);
}

static void backward_finish(const void *operation_, cbn_place at)
{
    const operation *const op = operation_;
    sums_finish(op, at);
    backward_scale(op, at);
    jacobian_coefficients(op, op->dbeta + at.channel, op->dgamma + at.channel, at);
}

static cbn_channels jacobian_channels(const operation *op, cbn_place at)
{
    cbn_channels channels = channels_at(op, at);
    channels.scale = coefficient(op, SCALE, at);
    channels.along_xhat = coefficient(op, ALONG_XHAT, at);
    return channels;
}

static void dx_tile(const void *operation_, cbn_place at)
{
    const operation *const op = operation_;
    const cbn_channels channels = jacobian_channels(op, at);
    op->kernels->backward_dx(output_at(op, op->out, at), input_at(op, op->dy, at),
                             input_at(op, op->x, at), tile_of(op, at), &channels);
}

static void inference_backward_start(const void *operation_, cbn_place at)
{
    const operation *const op = operation_;
    invstd_and_scale(op, at);
    cbn_channels_copy(coefficient(op, ALONG_ONE, at), NULL, 0, at.channels);
}

/* (42): dx = dy * scale is normalize with a mean of zero. */
static void inference_backward_tile(const void *operation_, cbn_place at)
{
    const operation *const op = operation_;
    cbn_channels channels = channels_at(op, at);
    sums_tile(op, at);
    channels.mean = channels.mean_low = channels.along_one;
    channels.scale = coefficient(op, SCALE, at);
    op->kernels->normalize(output_at(op, op->out, at), input_at(op, op->dy, at), tile_of(op, at),
                           &channels);
}

/* --- steps of double backward ----------------------------------------------------------------*/

/* xhat of an array that is taken as it is. */
static cbn_channels identity_channels(const operation *op, cbn_place at)
{
    const double *const zero = coefficient(op, ZERO, at);
    const double *const one = coefficient(op, ONE, at);
    return (cbn_channels){zero, zero, one, one, one, zero};
}

static void double_start(const void *operation_, cbn_place at)
{
    const operation *const op = operation_;
    cbn_channels_copy(coefficient(op, ZERO, at), NULL, 0, at.channels);
    cbn_channels_copy(coefficient(op, ONE, at), NULL, 1, at.channels);
}

/* (51): sum_dy, sum_dy_xhat, sum_ddx, sum_ddx_xhat, sum_dy once more, sum_dy_ddx. */
static void double_tile(const void *operation_, cbn_place at)
{
    const operation *const op = operation_;
    const cbn_channels channels = channels_at(op, at), identity = identity_channels(op, at);
    const cbn_input x = input_at(op, op->x, at), dy = input_at(op, op->dy, at);
    const cbn_input ddx = input_at(op, op->ddx, at);
    const cbn_tile tile = tile_of(op, at);
    double *sums[DOUBLE_SUMS];
    for (int k = 0; k < DOUBLE_SUMS; ++k) {
        sums[k] = partial_at(op, at.chunk, k, at);
    }
    op->kernels->backward_sums(sums[0], sums[1], dy, x, tile, &channels);
    op->kernels->backward_sums(sums[2], sums[3], ddx, x, tile, &channels);
    op->kernels->backward_sums(sums[4], sums[5], dy, ddx, tile, &identity);
}

static void double_finish(const void *operation_, cbn_place at)
{
    const operation *const op = operation_;
    merge_chunks(op, at);
    backward_scale(op, at);
    jacobian_coefficients(op, partial_at(op, 0, 2, at), partial_at(op, 0, 3, at), at);
    const cbn_double_sums sums = {partial_at(op, 0, 0, at), partial_at(op, 0, 1, at),
                                  partial_at(op, 0, 2, at), partial_at(op, 0, 3, at),
                                  partial_at(op, 0, 5, at)};
    cbn_channels_double_backward(coefficient(op, C_DY, at), coefficient(op, C_DDX, at),
                                 coefficient(op, C_XHAT, at), coefficient(op, C_ONE, at),
                                 op->dgamma + at.channel, &sums, coefficient(op, SCALE, at),
                                 op->statistics.invstd + at.channel, or_null(op->gamma_dot, at),
                                 op->statistics.count, at.channels);
}

/* g_x = (ddx * c_ddx + xhat * c_xhat + c_one), then + dy * c_dy as a second map whose xhat is g_x
 * itself; g_dy = (50). A block of rows at a time, so that the five arrays meet in the cache. */
static void double_map(const void *operation_, cbn_place at)
{
    const operation *const op = operation_;
    const cbn_channels to_g_dy = jacobian_channels(op, at);
    cbn_channels to_g_x = to_g_dy, add_dy = identity_channels(op, at);
    to_g_x.scale = coefficient(op, C_DDX, at);
    to_g_x.along_xhat = coefficient(op, C_XHAT, at);
    to_g_x.along_one = coefficient(op, C_ONE, at);
    add_dy.scale = coefficient(op, C_DY, at);
    cbn_input x = input_at(op, op->x, at), dy = input_at(op, op->dy, at);
    cbn_input ddx = input_at(op, op->ddx, at);
    cbn_output g_x = output_at(op, op->out, at), g_dy = output_at(op, op->g_dy, at);
    cbn_tile tile = tile_of(op, at);
    for (ptrdiff_t left = tile.rows; left > 0; left -= CBN_BLOCK_ROWS) {
        tile.rows = left < CBN_BLOCK_ROWS ? left : CBN_BLOCK_ROWS;
        op->kernels->backward_dx(g_x, ddx, x, tile, &to_g_x);
        op->kernels->backward_dx(g_x, dy, (cbn_input){g_x.data, g_x.stride}, tile, &add_dy);
        op->kernels->backward_dx(g_dy, ddx, x, tile, &to_g_dy);
        x.data += tile.rows * x.stride;
        dy.data += tile.rows * dy.stride;
        ddx.data += tile.rows * ddx.stride;
        g_x.data += tile.rows * g_x.stride;
        g_dy.data += tile.rows * g_dy.stride;
    }
}

static int coefficients_of(int partials)
{
    return partials == DOUBLE_SUMS ? DOUBLE_COEFFICIENTS : COEFFICIENTS;
}

static size_t scratch_size(const cbn_work *w, int partials)
{
    const ptrdiff_t per_channel = w->chunks * partials + coefficients_of(partials);
    return (size_t)(w->channels * per_channel) * sizeof(double) +
           (size_t)w->threads * CBN_WORK_BYTES;
}

size_t cbn_scratch_size(ptrdiff_t rows, ptrdiff_t channels, int threads)
{
    const cbn_work work = cbn_work_split(rows, channels, threads);
    return scratch_size(&work, MOMENTS);
}

size_t cbn_double_backward_scratch_size(ptrdiff_t rows, ptrdiff_t channels, int threads)
{
    const cbn_work work = cbn_work_split(rows, channels, threads);
    return scratch_size(&work, DOUBLE_SUMS);
}

/* Checks what the operations share, lays out the scratch and runs the steps. */
static cbn_status run(operation *op, const cbn_steps *steps, const cbn_array *const arrays[],
                      int count, const cbn_resources *resources)
{
    const cbn_array *const first = arrays[0];
    if ((int)first->dtype < 0 || first->dtype >= CBN_DTYPE_COUNT) {
        return CBN_ERROR_DTYPE;
    }
    op->kernels = cbn_dispatch(first->dtype);
    if (op->kernels == NULL) {
        return CBN_ERROR_ISA_UNSUPPORTED;
    }
    for (int i = 0; i < count; ++i) {
        const cbn_status status = cbn_check_rows(arrays[i], op->kernels->itemsize);
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
    if (!(op->eps >= 0) || isinf(op->eps)) {
        return CBN_ERROR_EPS;
    }
    if (resources->threads < 1) {
        return CBN_ERROR_THREADS;
    }
    if (first->channels == 0) {
        return CBN_OK;
    }
    op->work = cbn_work_split(first->outer, first->channels, resources->threads);
    if (resources->scratch == NULL ||
        resources->scratch_size < scratch_size(&op->work, op->partials)) {
        return CBN_ERROR_SCRATCH;
    }
    op->partial = resources->scratch;
    op->coefficients = op->partial + op->work.chunks * op->partials * op->work.channels;
    op->work.scratch =
        (char *)(op->coefficients + coefficients_of(op->partials) * op->work.channels);
    cbn_work_run(&op->work, steps, op);
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
    const cbn_steps steps = {
        .reduce = moments_tile, .finish = forward_finish, .map = normalize_tile};
    operation op = {.partials = MOMENTS,
                    .out = output(y),
                    .x = input(x),
                    .gamma = gamma,
                    .beta = beta,
                    .eps = eps,
                    .statistics = *statistics};
    return run(&op, &steps, (const cbn_array *const[]){x, y}, 2, resources);
}

cbn_status cbn_inference(cbn_array *y, const cbn_statistics *statistics, const cbn_array *x,
                         const double *gamma, const double *beta, double eps,
                         const cbn_resources *resources)
{
    const cbn_steps steps = {.start = normalize_start, .map = normalize_tile};
    operation op = {.out = output(y),
                    .x = input(x),
                    .gamma = gamma,
                    .beta = beta,
                    .eps = eps,
                    .statistics = *statistics};
    return run(&op, &steps, (const cbn_array *const[]){x, y}, 2, resources);
}

cbn_status cbn_backward(cbn_array *dx, double *dgamma, double *dbeta, const cbn_array *dy,
                        const cbn_array *x, const cbn_statistics *statistics, const double *gamma,
                        const cbn_resources *resources)
{
    const cbn_steps steps = {.reduce = sums_tile, .finish = backward_finish, .map = dx_tile};
    operation op = {.partials = SUMS,
                    .out = output(dx),
                    .dy = input(dy),
                    .x = input(x),
                    .gamma = gamma,
                    .statistics = *statistics,
                    .dgamma = dgamma,
                    .dbeta = dbeta};
    return run(&op, &steps, (const cbn_array *const[]){x, dy, dx}, 3, resources);
}

cbn_status cbn_inference_backward(cbn_array *dx, double *dgamma, double *dbeta,
                                  const cbn_statistics *statistics, const cbn_array *dy,
                                  const cbn_array *x, const double *gamma, double eps,
                                  const cbn_resources *resources)
{
    const cbn_steps steps = {.start = inference_backward_start,
                             .reduce = inference_backward_tile,
                             .finish = sums_finish};
    operation op = {.partials = SUMS,
                    .out = output(dx),
                    .dy = input(dy),
                    .x = input(x),
                    .gamma = gamma,
                    .eps = eps,
                    .statistics = *statistics,
                    .dgamma = dgamma,
                    .dbeta = dbeta};
    return run(&op, &steps, (const cbn_array *const[]){x, dy, dx}, 3, resources);
}

cbn_status cbn_jvp(cbn_array *y_dot, const cbn_array *x_dot, const cbn_array *x,
                   const cbn_statistics *statistics, const double *gamma, const double *gamma_dot,
                   const double *beta_dot, const cbn_resources *resources)
{
    const cbn_steps steps = {.reduce = sums_tile, .finish = jvp_finish, .map = dx_tile};
    operation op = {.partials = SUMS,
                    .out = output(y_dot),
                    .dy = input(x_dot),
                    .x = input(x),
                    .gamma = gamma,
                    .gamma_dot = gamma_dot,
                    .beta = beta_dot,
                    .statistics = *statistics};
    return run(&op, &steps, (const cbn_array *const[]){x, x_dot, y_dot}, 3, resources);
}

cbn_status cbn_double_backward(cbn_array *g_dy, cbn_array *g_x, double *g_gamma,
                               const cbn_array *ddx, const cbn_array *dy, const cbn_array *x,
                               const cbn_statistics *statistics, const double *gamma,
                               const double *ddgamma, const double *ddbeta,
                               const cbn_resources *resources)
{
    const cbn_steps steps = {
        .start = double_start, .reduce = double_tile, .finish = double_finish, .map = double_map};
    operation op = {.partials = DOUBLE_SUMS,
                    .out = output(g_x),
                    .g_dy = output(g_dy),
                    .ddx = input(ddx),
                    .dy = input(dy),
                    .x = input(x),
                    .gamma = gamma,
                    .gamma_dot = ddgamma,
                    .beta = ddbeta,
                    .statistics = *statistics,
                    .dgamma = g_gamma};
    return run(&op, &steps, (const cbn_array *const[]){x, dy, ddx, g_dy, g_x}, 5, resources);
}
