#include "steps.h"

#include "cbn.h"
#include "channels.h"

static const cbn_rows no_rows = {.data = NULL};

static void invstd(const operation *op, const cbn_place *place)
{
    op->kernels->arithmetic->invstd(op->statistics.invstd + place->column,
                                    op->statistics.var + place->column, op->eps, place->columns);
}

static void scale(const operation *op, const cbn_place *place)
{
    cbn_channels_scale(coefficient(op, SCALE, place), or_null(op->gamma, place),
                       op->statistics.invstd + place->column, place->columns);
}

/* --- reductions ------------------------------------------------------------------------------ */

enum { BASE, OFFSET, M2, MOMENTS };
enum { SUM_DY_XHAT, SUM_DY, SUMS };

static void moments_of_piece(const operation *op, const cbn_piece *piece, double *const results[])
{
    op->kernels->moments(results[BASE], results[OFFSET], results[M2], rows_of(op, X, piece),
                         piece->tile);
}

static void merge_moments(const operation *op, double *const into[], double *const from[],
                          ptrdiff_t n1, ptrdiff_t n2, ptrdiff_t count)
{
    op->kernels->arithmetic->merge_moments(into[BASE], into[OFFSET], into[M2], from[BASE],
                                           from[OFFSET], from[M2], n1, n2, count);
}

/* Sums merge alike, however many there are. */
static void merge_sums(const operation *op, double *const into[], double *const from[],
                       ptrdiff_t n1, ptrdiff_t n2, ptrdiff_t count)
{
    (void)n1;
    (void)n2;
    for (int k = 0; k < op->recipe->reduction->partials; ++k) {
        cbn_channels_add(into[k], from[k], count);
    }
}

const cbn_reduction cbn_moments_reduction = {
    .partials = MOMENTS,
    .coefficients = COEFFICIENTS,
    .kernel = moments_of_piece,
    .merge = merge_moments,
};

static void sums_of_piece(const operation *op, const cbn_piece *piece, double *const results[])
{
    const cbn_channels channels = channels_at(op, &piece->place);
    op->kernels->backward_sums(results[SUM_DY_XHAT], results[SUM_DY], no_rows,
                               rows_of(op, DY, piece), rows_of(op, X, piece), piece->tile,
                               &channels);
}

static const cbn_reduction sums_reduction = {
    .partials = SUMS,
    .coefficients = COEFFICIENTS,
    .kernel = sums_of_piece,
    .merge = merge_sums,
};

/* --- training forward and inference ---------------------------------------------------------- */

static void shift(const operation *op, const cbn_place *place)
{
    if (op->beta == NULL) {
        cbn_channels_copy(coefficient(op, ALONG_ONE, place), NULL, 0, place->columns);
    } else {
        copy_to_lanes(op, ALONG_ONE, op->beta, place);
    }
}

static void normalize_coefficients(const operation *op, const cbn_place *place)
{
    scale(op, place);
    shift(op, place);
    copy_statistics_to_lanes(op, place);
    spread_to_lanes(op, place);
}

static void normalize_start(const void *operation_, const cbn_place *place)
{
    const operation *const op = operation_;
    invstd(op, place);
    normalize_coefficients(op, place);
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
static void retake_overflowed(const operation *op, const cbn_place *place)
{
    const cbn_statistics *const s = &op->statistics;
    for (ptrdiff_t j = place->column; j < place->column + place->columns; ++j) {
        if (s->var[j] - s->var[j] != 0) {
            const channel_of_x x = {op, j};
            cbn_channels_scaled_statistics(&s->mean[j], &s->mean_low[j], &s->var[j], &s->invstd[j],
                                           op->eps, channel_value, &x, op->plan.positions);
        }
    }
}

static void moments_finish(const void *operation_, const cbn_place *place)
{
    const operation *const op = operation_;
    const cbn_statistics *const s = &op->statistics;
    merge_partials(op, place);
    op->kernels->arithmetic->statistics(
        s->mean + place->column, s->mean_low + place->column, s->var + place->column,
        partial_at(op, 0, BASE, place), partial_at(op, 0, OFFSET, place),
        partial_at(op, 0, M2, place), op->plan.positions, place->columns);
    invstd(op, place);
    if (op->kernels->element == sizeof(double)) {
        retake_overflowed(op, place);
    }
}

static void forward_finish(const void *operation_, const cbn_place *place)
{
    moments_finish(operation_, place);
    normalize_coefficients(operation_, place);
}

static cbn_channels normalize_channels(const operation *op, const cbn_piece *piece)
{
    cbn_channels channels = channels_at(op, &piece->place);
    channels.scale = coefficient(op, SCALE, &piece->place);
    channels.along_one = op->beta == NULL ? coefficient(op, ALONG_ONE, &piece->place)
                                          : for_lanes(op, ALONG_ONE, op->beta, &piece->place);
    return channels;
}

static void normalize_place(const void *operation_, const cbn_place *place)
{
    const operation *const op = operation_;
    for (cbn_piece piece = {.index = 0}; next_piece(op, place, 1, &piece);) {
        const cbn_channels channels = normalize_channels(op, &piece);
        op->kernels->normalize(rows_of(op, OUT, &piece), rows_of(op, X, &piece),
                               rows_of(op, RESIDUAL, &piece), op->relu, piece.tile, &channels);
    }
}

static void sums_start(const void *operation_, const cbn_place *place)
{
    const operation *const op = operation_;
    copy_statistics_to_lanes(op, place);
    spread_to_lanes(op, place);
}

static void sums_finish(const void *operation_, const cbn_place *place)
{
    const operation *const op = operation_;
    merge_partials(op, place);
    cbn_channels_copy(op->dgamma + place->column, partial_at(op, 0, SUM_DY_XHAT, place), 0,
                      place->columns);
    cbn_channels_copy(op->dbeta + place->column, partial_at(op, 0, SUM_DY, place), 0,
                      place->columns);
}

/* One value has no gradient, which the rounding of scale would not quite give. */
static void backward_scale(const operation *op, const cbn_place *place)
{
    if (op->statistics.count == 1) {
        cbn_channels_copy(coefficient(op, SCALE, place), NULL, 0, place->columns);
    } else {
        scale(op, place);
    }
}

/* The Jacobian's map of these sums, plus gamma_dot along xhat and beta along one: (16), (30). */
static void jacobian_coefficients(const operation *op, const double *sum_xhat, const double *sum,
                                  const cbn_place *place)
{
    const double *const by_scale = coefficient(op, SCALE, place);
    op->kernels->arithmetic->project(coefficient(op, ALONG_XHAT, place), sum_xhat, by_scale,
                                     op->statistics.count, or_null(op->gamma_dot, place),
                                     place->columns);
    op->kernels->arithmetic->project(coefficient(op, ALONG_ONE, place), sum, by_scale,
                                     op->statistics.count, or_null(op->beta, place),
                                     place->columns);
    spread_to_lanes(op, place);
}

static void jvp_finish(const void *operation_, const cbn_place *place)
{
    const operation *const op = operation_;
    merge_partials(op, place);
    backward_scale(op, place);
    jacobian_coefficients(op, partial_at(op, 0, SUM_DY_XHAT, place),
                          partial_at(op, 0, SUM_DY, place), place);
}

static void backward_finish(const void *operation_, const cbn_place *place)
{
    const operation *const op = operation_;
    sums_finish(op, place);
    backward_scale(op, place);
    jacobian_coefficients(op, op->dgamma + place->column, op->dbeta + place->column, place);
}

static void apply_start(const void *operation_, const cbn_place *place)
{
    const operation *const op = operation_;
    copy_statistics_to_lanes(op, place);
    backward_scale(op, place);
    jacobian_coefficients(op, op->dgamma + place->column, op->dbeta + place->column, place);
}

static cbn_channels jacobian_channels(const operation *op, const cbn_piece *piece)
{
    cbn_channels channels = channels_at(op, &piece->place);
    channels.scale = coefficient(op, SCALE, &piece->place);
    channels.along_xhat = coefficient(op, ALONG_XHAT, &piece->place);
    channels.along_one = coefficient(op, ALONG_ONE, &piece->place);
    return channels;
}

static void dx_place(const void *operation_, const cbn_place *place)
{
    const operation *const op = operation_;
    for (cbn_piece piece = {.index = 0}; next_piece(op, place, 1, &piece);) {
        const cbn_channels channels = jacobian_channels(op, &piece);
        op->kernels->backward_dx(rows_of(op, OUT, &piece), rows_of(op, DY, &piece),
                                 rows_of(op, X, &piece), piece.tile, &channels);
    }
}

/* The affine map that forward took, for the sign of y. */
static void gated_start(const void *operation_, const cbn_place *place)
{
    normalize_coefficients(operation_, place);
}

/* Gated, and while that is in the cache its sums. */
static void gated_place(const void *operation_, const cbn_place *place)
{
    const operation *const op = operation_;
    for (cbn_piece piece = {.index = 0}; next_piece(op, place, 1, &piece);) {
        const cbn_channels channels = normalize_channels(op, &piece);
        const cbn_rows residual = rows_of(op, RESIDUAL, &piece);
        piece.tile.stores = CBN_ORDINARY;
        op->kernels->relu_backward(rows_of(op, DY, &piece), rows_of(op, GATED, &piece),
                                   rows_of(op, X, &piece), residual, piece.tile, &channels);
    }
    reduce_place(op, place);
}

/* beta belongs to the sign alone. */
static void gated_finish(const void *operation_, const cbn_place *place)
{
    operation without_beta = *(const operation *)operation_;
    without_beta.beta = NULL;
    backward_finish(&without_beta, place);
}

static void inference_backward_start(const void *operation_, const cbn_place *place)
{
    const operation *const op = operation_;
    invstd(op, place);
    scale(op, place);
    sums_start(op, place);
}

static int is_in_place(const operation *op)
{
    const void *const dx = op->operands[OUT]->data;
    return dx == op->operands[DY]->data || dx == op->operands[X]->data;
}

/* Whether dx is made after the sums and not along with them. Sums that float32 cannot hold are
 * taken twice, so that dx must not yet be written over dy or x. Past the caches dx comes later too,
 * while the place is still in one of them, unless the sums' kernel can store it past them, which
 * saves that pass [dx-with-sums]. */
static int dx_comes_after_sums(const operation *op)
{
    const ptrdiff_t stride = op->operands[OUT]->strides[0] * op->plan.lanes;
    const int direct = op->accesses == NULL && op->half == NULL;
    const int past_caches = direct && stride % CBN_LINE_BYTES == 0;
    return is_in_place(op) || (op->stores == CBN_PAST_CACHES && !past_caches);
}

static cbn_channels scale_channels(const operation *op, const cbn_piece *piece)
{
    cbn_channels channels = channels_at(op, &piece->place);
    channels.scale = coefficient(op, SCALE, &piece->place);
    return channels;
}

/* (42): dx = dy * scale, along with the sums. */
static void sums_and_dx_of_piece(const operation *op, const cbn_piece *piece,
                                 double *const results[])
{
    const cbn_channels channels = scale_channels(op, piece);
    const cbn_rows dx = dx_comes_after_sums(op) ? no_rows : rows_of(op, OUT, piece);
    op->kernels->backward_sums(results[SUM_DY_XHAT], results[SUM_DY], dx, rows_of(op, DY, piece),
                               rows_of(op, X, piece), piece->tile, &channels);
}

static const cbn_reduction sums_and_dx_reduction = {
    .partials = SUMS,
    .coefficients = COEFFICIENTS,
    .kernel = sums_and_dx_of_piece,
    .merge = merge_sums,
};

static void inference_backward_place(const void *operation_, const cbn_place *place)
{
    const operation *const op = operation_;
    cbn_piece piece = {.index = 0};
    reduce_place(op, place);
    while (dx_comes_after_sums(op) && next_piece(op, place, 1, &piece)) {
        const cbn_channels channels = scale_channels(op, &piece);
        op->kernels->scale(rows_of(op, OUT, &piece), rows_of(op, DY, &piece), piece.tile,
                           &channels);
    }
}

/* --- double backward ------------------------------------------------------------------------- */

enum { C_DY = COEFFICIENTS, C_DDX, C_XHAT, C_ONE, ZERO, ONE, DOUBLE_COEFFICIENTS };
enum { DY_XHAT, DY_ONE, DDX_XHAT, DDX_ONE, DY_DDX, DY_AGAIN, DOUBLE_SUMS };

_Static_assert((int)DOUBLE_SUMS <= (int)MOST_PARTIALS,
               "room for the partial results of an operation");

/* xhat of an array that is taken as it is. */
static cbn_channels identity_channels(const operation *op, const cbn_place *place)
{
    const double *const zero = coefficient(op, ZERO, place);
    const double *const one = coefficient(op, ONE, place);
    return (cbn_channels){.mean = zero,
                          .mean_low = zero,
                          .invstd = one,
                          .scale = one,
                          .along_xhat = one,
                          .along_one = zero};
}

static void double_start(const void *operation_, const cbn_place *place)
{
    const operation *const op = operation_;
    copy_statistics_to_lanes(op, place);
    cbn_channels_copy(coefficient(op, ZERO, place), NULL, 0, place->columns);
    cbn_channels_copy(coefficient(op, ONE, place), NULL, 1, place->columns);
    spread_to_lanes(op, place);
}

/* (51): the sums of dy and of ddx, each times xhat and alone, and of dy * ddx. The kernel gives
 * the sum of dy once more with the last one. */
static void double_sums_of_piece(const operation *op, const cbn_piece *piece, double *const sums[])
{
    const cbn_channels channels = channels_at(op, &piece->place);
    const cbn_channels identity = identity_channels(op, &piece->place);
    const cbn_rows x = rows_of(op, X, piece), dy = rows_of(op, DY, piece);
    const cbn_rows ddx = rows_of(op, DDX, piece);
    op->kernels->backward_sums(sums[DY_XHAT], sums[DY_ONE], no_rows, dy, x, piece->tile, &channels);
    op->kernels->backward_sums(sums[DDX_XHAT], sums[DDX_ONE], no_rows, ddx, x, piece->tile,
                               &channels);
    op->kernels->backward_sums(sums[DY_DDX], sums[DY_AGAIN], no_rows, dy, ddx, piece->tile,
                               &identity);
}

const cbn_reduction cbn_double_sums_reduction = {
    .partials = DOUBLE_SUMS,
    .coefficients = DOUBLE_COEFFICIENTS,
    .kernel = double_sums_of_piece,
    .merge = merge_sums,
};

static void double_finish(const void *operation_, const cbn_place *place)
{
    const operation *const op = operation_;
    merge_partials(op, place);
    backward_scale(op, place);
    jacobian_coefficients(op, partial_at(op, 0, DDX_XHAT, place), partial_at(op, 0, DDX_ONE, place),
                          place);
    const cbn_double_sums sums = {.dy_xhat = partial_at(op, 0, DY_XHAT, place),
                                  .dy = partial_at(op, 0, DY_ONE, place),
                                  .ddx_xhat = partial_at(op, 0, DDX_XHAT, place),
                                  .ddx = partial_at(op, 0, DDX_ONE, place),
                                  .dy_ddx = partial_at(op, 0, DY_DDX, place)};
    cbn_channels_double_backward(
        coefficient(op, C_DY, place), coefficient(op, C_DDX, place), coefficient(op, C_XHAT, place),
        coefficient(op, C_ONE, place), op->dgamma + place->column, &sums,
        coefficient(op, SCALE, place), op->statistics.invstd + place->column,
        or_null(op->gamma_dot, place), op->statistics.count, place->columns);
    spread_to_lanes(op, place);
}

/* g_x = (ddx * c_ddx + xhat * c_xhat + c_one), then + dy * c_dy as a second map whose xhat is g_x
 * itself; g_dy = (50). A block of rows at a time, so that the five arrays meet in the cache. */
static void double_map(const void *operation_, const cbn_place *place)
{
    const operation *const op = operation_;
    cbn_piece piece = {.index = 0};
    next_piece(op, place, 1, &piece);
    const cbn_channels to_g_dy = jacobian_channels(op, &piece);
    cbn_channels to_g_x = to_g_dy, add_dy = identity_channels(op, place);
    to_g_x.scale = coefficient(op, C_DDX, place);
    to_g_x.along_xhat = coefficient(op, C_XHAT, place);
    to_g_x.along_one = coefficient(op, C_ONE, place);
    add_dy.scale = coefficient(op, C_DY, place);
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

/* --- what an operation is made of ------------------------------------------------------------ */

const cbn_recipe cbn_moments_recipe = {&cbn_moments_reduction,
                                       {.reduce = reduce_place, .finish = moments_finish}};

const cbn_recipe cbn_forward_recipe = {
    &cbn_moments_reduction,
    {.reduce = reduce_place, .finish = forward_finish, .map = normalize_place}};

const cbn_recipe cbn_inference_recipe = {NULL, {.start = normalize_start, .map = normalize_place}};

const cbn_recipe cbn_backward_recipe = {
    &sums_reduction,
    {.start = sums_start, .reduce = reduce_place, .finish = backward_finish, .map = dx_place}};

const cbn_recipe cbn_backward_sums_recipe = {
    &sums_reduction, {.start = sums_start, .reduce = reduce_place, .finish = sums_finish}};

const cbn_recipe cbn_backward_apply_recipe = {NULL, {.start = apply_start, .map = dx_place}};

const cbn_recipe cbn_gated_backward_recipe = {
    &sums_reduction,
    {.start = gated_start, .reduce = gated_place, .finish = gated_finish, .map = dx_place}};

const cbn_recipe cbn_inference_backward_recipe = {
    &sums_and_dx_reduction,
    {.start = inference_backward_start, .reduce = inference_backward_place, .finish = sums_finish}};

const cbn_recipe cbn_jvp_recipe = {
    &sums_reduction,
    {.start = sums_start, .reduce = reduce_place, .finish = jvp_finish, .map = dx_place}};

const cbn_recipe cbn_double_backward_recipe = {
    &cbn_double_sums_reduction,
    {.start = double_start, .reduce = reduce_place, .finish = double_finish, .map = double_map}};
