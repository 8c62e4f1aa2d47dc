/* The operations: what each one reduces, which coefficients follow, what it maps. Equation numbers
 * are those of docs/math.md. How tiles reach threads is work.c's business, where their numbers lie
 * operation.c's. */
#include "cbn.h"
#include "channels.h"
#include "operation.h"

static const cbn_output no_output = {NULL, 0};

static void invstd(const operation *op, cbn_place at)
{
    cbn_channels_invstd(op->statistics.invstd + at.column, op->statistics.var + at.column, op->eps,
                        at.columns);
}

static void scale(const operation *op, cbn_place at)
{
    cbn_channels_scale(coefficient(op, SCALE, at), or_null(op->gamma, at),
                       op->statistics.invstd + at.column, at.columns);
}

static void moments_tile(const void *operation_, cbn_place at)
{
    const operation *const op = operation_;
    op->kernels->moments(partial_at(op, at.chunk, 0, at), partial_at(op, at.chunk, 1, at),
                         partial_at(op, at.chunk, 2, at), input_at(op, op->x, at), tile_of(op, at));
}

static void normalize_coefficients(const operation *op, cbn_place at)
{
    scale(op, at);
    cbn_channels_copy(coefficient(op, ALONG_ONE, at), or_null(op->beta, at), 0, at.columns);
    take_statistics(op, at);
    spread_to_lanes(op, at);
}

static void normalize_start(const void *operation_, cbn_place at)
{
    const operation *const op = operation_;
    invstd(op, at);
    normalize_coefficients(op, at);
}

/* float64 has no wider type to turn to, as float32 kernels do. */
static void retake_overflowed(const operation *op, cbn_place at)
{
    const cbn_statistics *const s = &op->statistics;
    for (ptrdiff_t j = at.column; j < at.column + at.columns; ++j) {
        if (s->var[j] - s->var[j] != 0) {
            cbn_channels_scaled_statistics(&s->mean[j], &s->mean_low[j], &s->var[j], &s->invstd[j],
                                           op->eps, op->x.data + j * (ptrdiff_t)sizeof(double),
                                           op->x.stride, op->work.rows);
        }
    }
}

static void forward_finish(const void *operation_, cbn_place at)
{
    const operation *const op = operation_;
    const cbn_statistics *const s = &op->statistics;
    merge_partials(op, at);
    cbn_channels_statistics(s->mean + at.column, s->mean_low + at.column, s->var + at.column,
                            partial_at(op, 0, 0, at), partial_at(op, 0, 1, at),
                            partial_at(op, 0, 2, at), op->work.rows, at.columns);
    invstd(op, at);
    if (op->kernels->itemsize == sizeof(double)) {
        retake_overflowed(op, at);
    }
    normalize_coefficients(op, at);
}

static void normalize_tile(const void *operation_, cbn_place at)
{
    const operation *const op = operation_;
    cbn_channels channels = channels_at(op, at);
    channels.scale = coefficient(op, SCALE, at);
    channels.along_one = coefficient(op, ALONG_ONE, at);
    op->kernels->normalize(output_at(op, op->out, at), input_at(op, op->x, at), tile_of(op, at),
                           &channels);
}

static void sums_start(const void *operation_, cbn_place at)
{
    const operation *const op = operation_;
    take_statistics(op, at);
    spread_to_lanes(op, at);
}

static void sums_tile(const void *operation_, cbn_place at)
{
    const operation *const op = operation_;
    const cbn_channels channels = channels_at(op, at);
    op->kernels->backward_sums(partial_at(op, at.chunk, 0, at), partial_at(op, at.chunk, 1, at),
                               no_output, input_at(op, op->dy, at), input_at(op, op->x, at),
                               tile_of(op, at), &channels);
}

static void sums_finish(const void *operation_, cbn_place at)
{
    const operation *const op = operation_;
    merge_partials(op, at);
    cbn_channels_copy(op->dbeta + at.column, partial_at(op, 0, 0, at), 0, at.columns);
    cbn_channels_copy(op->dgamma + at.column, partial_at(op, 0, 1, at), 0, at.columns);
}

/* One value has no gradient, which the rounding of scale would not quite give. */
static void backward_scale(const operation *op, cbn_place at)
{
    if (op->statistics.count == 1) {
        cbn_channels_copy(coefficient(op, SCALE, at), NULL, 0, at.columns);
    } else {
        scale(op, at);
    }
}

/* The Jacobian's map of sums 0 and 1, plus gamma_dot along xhat and beta along one: (16), (30). */
static void jacobian_coefficients(const operation *op, const double *sum, const double *sum_xhat,
                                  cbn_place at)
{
    const double *const by_scale = coefficient(op, SCALE, at);
    cbn_channels_project(coefficient(op, ALONG_ONE, at), sum, by_scale, op->statistics.count,
                         or_null(op->beta, at), at.columns);
    cbn_channels_project(coefficient(op, ALONG_XHAT, at), sum_xhat, by_scale, op->statistics.count,
                         or_null(op->gamma_dot, at), at.columns);
    spread_to_lanes(op, at);
}

static void jvp_finish(const void *operation_, cbn_place at)
{
    const operation *const op = operation_;
    merge_partials(op, at);
    backward_scale(op, at);
    jacobian_coefficients(op, partial_at(op, 0, 0, at), partial_at(op, 0, 1, at), at);
}

static void backward_finish(const void *operation_, cbn_place at)
{
    const operation *const op = operation_;
    sums_finish(op, at);
    backward_scale(op, at);
    jacobian_coefficients(op, op->dbeta + at.column, op->dgamma + at.column, at);
}

static cbn_channels jacobian_channels(const operation *op, cbn_place at)
{
    cbn_channels channels = channels_at(op, at);
    channels.scale = coefficient(op, SCALE, at);
    channels.along_xhat = coefficient(op, ALONG_XHAT, at);
    channels.along_one = coefficient(op, ALONG_ONE, at);
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
    invstd(op, at);
    scale(op, at);
    cbn_channels_copy(coefficient(op, ALONG_ONE, at), NULL, 0, at.columns);
    sums_start(op, at);
}

/* (42): dx = dy * scale, along with the sums. Over dy or x itself it is normalize with a mean of
 * zero, after them: sums that float32 cannot hold are taken twice. */
static void inference_backward_tile(const void *operation_, cbn_place at)
{
    const operation *const op = operation_;
    const cbn_output dx = output_at(op, op->out, at);
    const cbn_input dy = input_at(op, op->dy, at);
    const int in_place = op->out.data == op->dy.data || op->out.data == op->x.data;
    cbn_channels channels = channels_at(op, at);
    channels.scale = coefficient(op, SCALE, at);
    op->kernels->backward_sums(partial_at(op, at.chunk, 0, at), partial_at(op, at.chunk, 1, at),
                               in_place ? no_output : dx, dy, input_at(op, op->x, at),
                               tile_of(op, at), &channels);
    if (in_place) {
        channels.mean = channels.mean_low = channels.along_one = coefficient(op, ALONG_ONE, at);
        op->kernels->normalize(dx, dy, tile_of(op, at), &channels);
    }
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
    take_statistics(op, at);
    cbn_channels_copy(coefficient(op, ZERO, at), NULL, 0, at.columns);
    cbn_channels_copy(coefficient(op, ONE, at), NULL, 1, at.columns);
    spread_to_lanes(op, at);
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
    op->kernels->backward_sums(sums[0], sums[1], no_output, dy, x, tile, &channels);
    op->kernels->backward_sums(sums[2], sums[3], no_output, ddx, x, tile, &channels);
    op->kernels->backward_sums(sums[4], sums[5], no_output, dy, ddx, tile, &identity);
}

static void double_finish(const void *operation_, cbn_place at)
{
    const operation *const op = operation_;
    merge_partials(op, at);
    backward_scale(op, at);
    jacobian_coefficients(op, partial_at(op, 0, 2, at), partial_at(op, 0, 3, at), at);
    const cbn_double_sums sums = {partial_at(op, 0, 0, at), partial_at(op, 0, 1, at),
                                  partial_at(op, 0, 2, at), partial_at(op, 0, 3, at),
                                  partial_at(op, 0, 5, at)};
    cbn_channels_double_backward(coefficient(op, C_DY, at), coefficient(op, C_DDX, at),
                                 coefficient(op, C_XHAT, at), coefficient(op, C_ONE, at),
                                 op->dgamma + at.column, &sums, coefficient(op, SCALE, at),
                                 op->statistics.invstd + at.column, or_null(op->gamma_dot, at),
                                 op->statistics.count, at.columns);
    spread_to_lanes(op, at);
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
    tile.stream = 0;
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

size_t cbn_scratch_size(ptrdiff_t rows, ptrdiff_t channels, int threads)
{
    const cbn_work work = cbn_work_split(rows, channels, threads);
    return operation_scratch_size(&work, MOMENTS);
}

size_t cbn_double_backward_scratch_size(ptrdiff_t rows, ptrdiff_t channels, int threads)
{
    const cbn_work work = cbn_work_split(rows, channels, threads);
    return operation_scratch_size(&work, DOUBLE_SUMS);
}

cbn_status cbn_forward(cbn_array *y, const cbn_statistics *statistics, const cbn_array *x,
                       const double *gamma, const double *beta, double eps,
                       const cbn_resources *resources)
{
    const cbn_steps steps = {
        .reduce = moments_tile, .finish = forward_finish, .map = normalize_tile};
    operation op = {.partials = MOMENTS,
                    .out = output_of(y),
                    .x = input_of(x),
                    .gamma = gamma,
                    .beta = beta,
                    .eps = eps,
                    .statistics = *statistics};
    return operation_run(&op, &steps, (const cbn_array *const[]){x, y}, 2, resources);
}

cbn_status cbn_inference(cbn_array *y, const cbn_statistics *statistics, const cbn_array *x,
                         const double *gamma, const double *beta, double eps,
                         const cbn_resources *resources)
{
    const cbn_steps steps = {.start = normalize_start, .map = normalize_tile};
    operation op = {.out = output_of(y),
                    .x = input_of(x),
                    .gamma = gamma,
                    .beta = beta,
                    .eps = eps,
                    .statistics = *statistics};
    return operation_run(&op, &steps, (const cbn_array *const[]){x, y}, 2, resources);
}

cbn_status cbn_backward(cbn_array *dx, double *dgamma, double *dbeta, const cbn_array *dy,
                        const cbn_array *x, const cbn_statistics *statistics, const double *gamma,
                        const cbn_resources *resources)
{
    const cbn_steps steps = {
        .start = sums_start, .reduce = sums_tile, .finish = backward_finish, .map = dx_tile};
    operation op = {.partials = SUMS,
                    .out = output_of(dx),
                    .dy = input_of(dy),
                    .x = input_of(x),
                    .gamma = gamma,
                    .statistics = *statistics,
                    .dgamma = dgamma,
                    .dbeta = dbeta};
    return operation_run(&op, &steps, (const cbn_array *const[]){x, dy, dx}, 3, resources);
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
                    .out = output_of(dx),
                    .dy = input_of(dy),
                    .x = input_of(x),
                    .gamma = gamma,
                    .eps = eps,
                    .statistics = *statistics,
                    .dgamma = dgamma,
                    .dbeta = dbeta};
    return operation_run(&op, &steps, (const cbn_array *const[]){x, dy, dx}, 3, resources);
}

cbn_status cbn_jvp(cbn_array *y_dot, const cbn_array *x_dot, const cbn_array *x,
                   const cbn_statistics *statistics, const double *gamma, const double *gamma_dot,
                   const double *beta_dot, const cbn_resources *resources)
{
    const cbn_steps steps = {
        .start = sums_start, .reduce = sums_tile, .finish = jvp_finish, .map = dx_tile};
    operation op = {.partials = SUMS,
                    .out = output_of(y_dot),
                    .dy = input_of(x_dot),
                    .x = input_of(x),
                    .gamma = gamma,
                    .gamma_dot = gamma_dot,
                    .beta = beta_dot,
                    .statistics = *statistics};
    return operation_run(&op, &steps, (const cbn_array *const[]){x, x_dot, y_dot}, 3, resources);
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
                    .out = output_of(g_x),
                    .g_dy = output_of(g_dy),
                    .ddx = input_of(ddx),
                    .dy = input_of(dy),
                    .x = input_of(x),
                    .gamma = gamma,
                    .gamma_dot = ddgamma,
                    .beta = ddbeta,
                    .statistics = *statistics,
                    .dgamma = g_gamma};
    return operation_run(&op, &steps, (const cbn_array *const[]){x, dy, ddx, g_dy, g_x}, 5,
                         resources);
}
