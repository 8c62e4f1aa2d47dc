#include "steps.h"

#include "cbn.h"
#include "channels.h"

static void invstd(const operation *op, cbn_place at)
{
    op->kernels->arithmetic->invstd(op->statistics.invstd + at.column,
                                    op->statistics.var + at.column, op->eps, at.columns);
}

static void scale(const operation *op, cbn_place at)
{
    cbn_channels_scale(coefficient(op, SCALE, at), or_null(op->gamma, at),
                       op->statistics.invstd + at.column, at.columns);
}

static void moments_piece(const operation *op, const cbn_piece *piece, double *const results[])
{
    op->kernels->moments(results[0], results[1], results[2], rows_of(op, X, piece), piece->tile);
}

static void moments_tile(const void *operation_, cbn_place at)
{
    reduce_place(operation_, at, moments_piece);
}

static void shift(const operation *op, cbn_place at)
{
    if (op->beta == NULL) {
        cbn_channels_copy(coefficient(op, ALONG_ONE, at), NULL, 0, at.columns);
    } else {
        take(op, ALONG_ONE, op->beta, at);
    }
}

static void normalize_coefficients(const operation *op, cbn_place at)
{
    scale(op, at);
    shift(op, at);
    take_statistics(op, at);
    spread_to_lanes(op, at);
}

static void normalize_start(const void *operation_, cbn_place at)
{
    const operation *const op = operation_;
    invstd(op, at);
    normalize_coefficients(op, at);
}

typedef struct channel_of_x {
    const operation *op;
    ptrdiff_t channel;
} channel_of_x;

static double channel_value(const void *x, ptrdiff_t row)
{
    const channel_of_x *const of = x;
    return value_of_x(of->op, row, of->channel);
}

/* float64 has no wider type to turn to, as float32 kernels do. */
static void retake_overflowed(const operation *op, cbn_place at)
{
    const cbn_statistics *const s = &op->statistics;
    for (ptrdiff_t j = at.column; j < at.column + at.columns; ++j) {
        if (s->var[j] - s->var[j] != 0) {
            const channel_of_x x = {op, j};
            cbn_channels_scaled_statistics(&s->mean[j], &s->mean_low[j], &s->var[j], &s->invstd[j],
                                           op->eps, channel_value, &x, op->work.rows);
        }
    }
}

static void moments_finish(const void *operation_, cbn_place at)
{
    const operation *const op = operation_;
    const cbn_statistics *const s = &op->statistics;
    merge_partials(op, at);
    op->kernels->arithmetic->statistics(
        s->mean + at.column, s->mean_low + at.column, s->var + at.column, partial_at(op, 0, 0, at),
        partial_at(op, 0, 1, at), partial_at(op, 0, 2, at), op->work.rows, at.columns);
    invstd(op, at);
    if (op->kernels->element == sizeof(double)) {
        retake_overflowed(op, at);
    }
}

static void forward_finish(const void *operation_, cbn_place at)
{
    moments_finish(operation_, at);
    normalize_coefficients(operation_, at);
}

static cbn_channels normalize_channels(const operation *op, const cbn_piece *piece)
{
    cbn_channels channels = channels_at(op, piece->at);
    channels.scale = coefficient(op, SCALE, piece->at);
    channels.along_one = op->beta == NULL ? coefficient(op, ALONG_ONE, piece->at)
                                          : taken(op, ALONG_ONE, op->beta, piece->at);
    return channels;
}

static void normalize_tile(const void *operation_, cbn_place at)
{
    const operation *const op = operation_;
    for (cbn_piece piece = {.parts = 0}; next_piece(op, at, 1, &piece);) {
        const cbn_channels channels = normalize_channels(op, &piece);
        op->kernels->normalize(rows_of(op, OUT, &piece), rows_of(op, X, &piece),
                               rows_of(op, RESIDUAL, &piece), op->relu, piece.tile, &channels);
    }
}

static void sums_start(const void *operation_, cbn_place at)
{
    const operation *const op = operation_;
    take_statistics(op, at);
    spread_to_lanes(op, at);
}

static void sums_piece(const operation *op, const cbn_piece *piece, double *const results[])
{
    cbn_channels channels = channels_at(op, piece->at);
    op->kernels->backward_sums(results[0], results[1], (cbn_rows){.data = NULL},
                               rows_of(op, DY, piece), rows_of(op, X, piece), piece->tile,
                               &channels);
}

static void sums_tile(const void *operation_, cbn_place at)
{
    reduce_place(operation_, at, sums_piece);
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
    op->kernels->arithmetic->project(coefficient(op, ALONG_ONE, at), sum, by_scale,
                                     op->statistics.count, or_null(op->beta, at), at.columns);
    op->kernels->arithmetic->project(coefficient(op, ALONG_XHAT, at), sum_xhat, by_scale,
                                     op->statistics.count, or_null(op->gamma_dot, at), at.columns);
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

static void apply_start(const void *operation_, cbn_place at)
{
    const operation *const op = operation_;
    take_statistics(op, at);
    backward_scale(op, at);
    jacobian_coefficients(op, op->dbeta + at.column, op->dgamma + at.column, at);
}

static cbn_channels jacobian_channels(const operation *op, const cbn_piece *piece)
{
    cbn_channels channels = channels_at(op, piece->at);
    channels.scale = coefficient(op, SCALE, piece->at);
    channels.along_xhat = coefficient(op, ALONG_XHAT, piece->at);
    channels.along_one = coefficient(op, ALONG_ONE, piece->at);
    return channels;
}

static void dx_tile(const void *operation_, cbn_place at)
{
    const operation *const op = operation_;
    for (cbn_piece piece = {.parts = 0}; next_piece(op, at, 1, &piece);) {
        const cbn_channels channels = jacobian_channels(op, &piece);
        op->kernels->backward_dx(rows_of(op, OUT, &piece), rows_of(op, DY, &piece),
                                 rows_of(op, X, &piece), piece.tile, &channels);
    }
}

/* The affine map that forward took, for the sign of y. */
static void gated_start(const void *operation_, cbn_place at)
{
    normalize_coefficients(operation_, at);
}

/* Gated, and while that is in the cache its sums. */
static void gated_tile(const void *operation_, cbn_place at)
{
    const operation *const op = operation_;
    for (cbn_piece piece = {.parts = 0}; next_piece(op, at, 1, &piece);) {
        const cbn_channels channels = normalize_channels(op, &piece);
        const cbn_rows residual = rows_of(op, RESIDUAL, &piece);
        piece.tile.stores = CBN_ORDINARY;
        op->kernels->relu_backward(rows_of(op, DY, &piece), rows_of(op, GATED, &piece),
                                   rows_of(op, X, &piece), residual, piece.tile, &channels);
    }
    reduce_place(op, at, sums_piece);
}

/* beta belongs to the sign alone. */
static void gated_finish(const void *operation_, cbn_place at)
{
    operation without_beta = *(const operation *)operation_;
    without_beta.beta = NULL;
    backward_finish(&without_beta, at);
}

static void inference_backward_start(const void *operation_, cbn_place at)
{
    const operation *const op = operation_;
    invstd(op, at);
    scale(op, at);
    sums_start(op, at);
}

static int in_place(const operation *op)
{
    const void *const dx = op->operands[OUT]->data;
    return dx == op->operands[DY]->data || dx == op->operands[X]->data;
}

/* Sums that float32 cannot hold are taken twice, so that dx over dy or x itself must come after
 * them; and so it is faster past the caches, while the tile is in one of them, unless dx can be
 * stored past them along with the sums. */
static int apart(const operation *op)
{
    const ptrdiff_t stride = op->operands[OUT]->strides[0] * op->work.lanes;
    const int streamed = op->plain && op->half == NULL && stride % CBN_LINE_BYTES == 0;
    return in_place(op) || (op->stores == CBN_PAST_CACHES && !streamed);
}

/* (42): dx = dy * scale, along with the sums. */
static void inference_backward_piece(const operation *op, const cbn_piece *piece,
                                     double *const results[])
{
    const cbn_rows none = {.data = NULL};
    cbn_channels channels = channels_at(op, piece->at);
    channels.scale = coefficient(op, SCALE, piece->at);
    op->kernels->backward_sums(results[0], results[1], apart(op) ? none : rows_of(op, OUT, piece),
                               rows_of(op, DY, piece), rows_of(op, X, piece), piece->tile,
                               &channels);
}

static void inference_backward_tile(const void *operation_, cbn_place at)
{
    const operation *const op = operation_;
    reduce_place(op, at, inference_backward_piece);
    for (cbn_piece piece = {.parts = 0}; apart(op) && next_piece(op, at, 1, &piece);) {
        cbn_channels channels = channels_at(op, piece.at);
        channels.scale = coefficient(op, SCALE, piece.at);
        op->kernels->scale(rows_of(op, OUT, &piece), rows_of(op, DY, &piece), piece.tile,
                           &channels);
    }
}

/* --- steps of double backward ----------------------------------------------------------------*/

/* xhat of an array that is taken as it is. */
static cbn_channels identity_channels(const operation *op, cbn_place at)
{
    const double *const zero = coefficient(op, ZERO, at);
    const double *const one = coefficient(op, ONE, at);
    return (cbn_channels){.mean = zero,
                          .mean_low = zero,
                          .invstd = one,
                          .scale = one,
                          .along_xhat = one,
                          .along_one = zero};
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
static void double_piece(const operation *op, const cbn_piece *piece, double *const sums[])
{
    const cbn_channels channels = channels_at(op, piece->at);
    const cbn_channels identity = identity_channels(op, piece->at);
    const cbn_rows x = rows_of(op, X, piece), dy = rows_of(op, DY, piece);
    const cbn_rows ddx = rows_of(op, DDX, piece);
    const cbn_rows none = {.data = NULL};
    op->kernels->backward_sums(sums[0], sums[1], none, dy, x, piece->tile, &channels);
    op->kernels->backward_sums(sums[2], sums[3], none, ddx, x, piece->tile, &channels);
    op->kernels->backward_sums(sums[4], sums[5], none, dy, ddx, piece->tile, &identity);
}

static void double_tile(const void *operation_, cbn_place at)
{
    reduce_place(operation_, at, double_piece);
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
    cbn_piece piece = {.parts = 0};
    next_piece(op, at, 1, &piece);
    const cbn_channels to_g_dy = jacobian_channels(op, &piece);
    cbn_channels to_g_x = to_g_dy, add_dy = identity_channels(op, at);
    to_g_x.scale = coefficient(op, C_DDX, at);
    to_g_x.along_xhat = coefficient(op, C_XHAT, at);
    to_g_x.along_one = coefficient(op, C_ONE, at);
    add_dy.scale = coefficient(op, C_DY, at);
    cbn_rows x = rows_of(op, X, &piece), dy = rows_of(op, DY, &piece);
    cbn_rows ddx = rows_of(op, DDX, &piece);
    cbn_rows g_x = rows_of(op, OUT, &piece), g_dy = rows_of(op, G_DY, &piece);
    cbn_tile tile = piece.tile;
    tile.stores = CBN_ORDINARY;
    for (ptrdiff_t left = tile.rows; left > 0; left -= CBN_BLOCK_ROWS) {
        tile.rows = left < CBN_BLOCK_ROWS ? left : CBN_BLOCK_ROWS;
        op->kernels->backward_dx(g_x, ddx, x, tile, &to_g_x);
        op->kernels->backward_dx(g_x, dy, (cbn_rows){.data = g_x.data, .stride = g_x.stride}, tile,
                                 &add_dy);
        op->kernels->backward_dx(g_dy, ddx, x, tile, &to_g_dy);
        x.data += tile.rows * x.stride;
        dy.data += tile.rows * dy.stride;
        ddx.data += tile.rows * ddx.stride;
        g_x.data += tile.rows * g_x.stride;
        g_dy.data += tile.rows * g_dy.stride;
    }
}

/* --- what an operation is made of ------------------------------------------------------------*/

const cbn_steps cbn_moments_steps = {.reduce = moments_tile, .finish = moments_finish};

const cbn_steps cbn_forward_steps = {
    .reduce = moments_tile, .finish = forward_finish, .map = normalize_tile};

const cbn_steps cbn_inference_steps = {.start = normalize_start, .map = normalize_tile};

const cbn_steps cbn_backward_steps = {
    .start = sums_start, .reduce = sums_tile, .finish = backward_finish, .map = dx_tile};

const cbn_steps cbn_backward_sums_steps = {
    .start = sums_start, .reduce = sums_tile, .finish = sums_finish};

const cbn_steps cbn_backward_apply_steps = {.start = apply_start, .map = dx_tile};

const cbn_steps cbn_gated_backward_steps = {
    .start = gated_start, .reduce = gated_tile, .finish = gated_finish, .map = dx_tile};

const cbn_steps cbn_inference_backward_steps = {
    .start = inference_backward_start, .reduce = inference_backward_tile, .finish = sums_finish};

const cbn_steps cbn_jvp_steps = {
    .start = sums_start, .reduce = sums_tile, .finish = jvp_finish, .map = dx_tile};

const cbn_steps cbn_double_backward_steps = {
    .start = double_start, .reduce = double_tile, .finish = double_finish, .map = double_map};
