#include "operation.h"

#include <math.h>
#include <stdint.h>
#include <string.h>

#include "channels.h"
#include "dispatch.h"
#include "layout.h"

/* From so many bytes of all arrays on, rows are read in the order of memory [rows-at-once], and
 * stores go past the caches [far-bytes]. Neither changes a result. */
#define IN_ORDER_BYTES (16 << 20)
#define FAR_BYTES (24 << 20)

static int is_left_over(const operation *op, const cbn_place *place)
{
    return place->chunk == op->plan.chunks;
}

static void piece_of_rows(const operation *op, const cbn_place *place, cbn_piece *piece)
{
    const cbn_plan *const plan = &op->plan;
    const ptrdiff_t first = place->chunk * plan->chunk_rows;
    if (is_left_over(op, place)) {
        piece->position = plan->positions - plan->left_over;
        piece->step = 1;
        piece->tile.rows = plan->left_over;
    } else {
        const ptrdiff_t rows = cbn_plan_chunk_end(plan, place->chunk) - first;
        const int shares = place->shares > 0 ? place->shares : 1;
        const ptrdiff_t from = cbn_plan_share_begin(rows, place->share, shares);
        const ptrdiff_t end = cbn_plan_share_begin(rows, place->share + 1, shares);
        piece->position = (first + from) * plan->lanes;
        piece->step = plan->lanes;
        piece->tile.rows = end - from;
    }
    piece->place = *place;
    piece->column = place->column;
    piece->tile.cols = place->columns;
    piece->tile.run = 1;
}

static void piece_of_runs(const operation *op, const cbn_place *place, int map, cbn_piece *piece)
{
    const cbn_plan *const plan = &op->plan;
    const ptrdiff_t before = piece->index / 2 * plan->group, left = place->columns - before;
    const ptrdiff_t channel = place->column + before;
    const ptrdiff_t group = left < plan->group ? left : plan->group;
    const ptrdiff_t first = place->chunk * plan->chunk_rows;
    if (piece->index % 2 == 0) {
        piece->position = first * plan->run;
        piece->step = plan->run;
        piece->tile.rows = cbn_plan_chunk_end(plan, place->chunk) - first;
        piece->tile.cols = group * plan->run;
        piece->tile.run = plan->run;
    } else {
        const ptrdiff_t left_over = place->chunk + 1 == plan->chunks ? plan->run_left_over : 0;
        piece->position = plan->positions - left_over;
        piece->step = 1;
        piece->tile.rows = map ? left_over > 0 : left_over;
        piece->tile.cols = map ? left_over : 1;
        piece->tile.run = piece->tile.cols;
    }
    piece->place = *place;
    piece->place.column = channel;
    piece->place.columns = group;
    piece->column = channel * plan->run;
}

int next_piece(const operation *op, const cbn_place *place, int map, cbn_piece *piece)
{
    piece->tile = (cbn_tile){.scratch = place->scratch,
                             .slot_bytes = op->plan.slot_bytes,
                             .slots = op->plan.slots,
                             .in_order = op->in_order,
                             .stores = op->stores};
    const ptrdiff_t group = op->plan.group;
    const ptrdiff_t pieces = op->plan.run == 1 ? 1 : 2 * ((place->columns + group - 1) / group);
    while (piece->index < pieces) {
        if (op->plan.run == 1) {
            piece_of_rows(op, place, piece);
        } else {
            piece_of_runs(op, place, map, piece);
        }
        ++piece->index;
        if (piece->tile.rows > 0) {
            return 1;
        }
    }
    return 0;
}

cbn_rows rows_of(const operation *op, int which, const cbn_piece *piece)
{
    const cbn_array *const array = op->operands[which];
    if (array == NULL) {
        return (cbn_rows){.data = NULL};
    }
    const cbn_array_access *const a = op->accesses == NULL ? NULL : &op->accesses[which];
    if (a != NULL && op->plan.run > 1 && a->dense && a->native && array->dims == 2) {
        const ptrdiff_t stride = array->strides[0], image = piece->position / op->plan.run;
        const ptrdiff_t column = piece->column * (ptrdiff_t)op->kernels->itemsize;
        return (cbn_rows){.data = (char *)array->data + image * stride + column,
                          .stride = stride,
                          .half = op->half};
    }
    if (a != NULL) {
        return (cbn_rows){.access = &a->access,
                          .stride = piece->step,
                          .position = piece->position,
                          .column = piece->column};
    }
    const ptrdiff_t channels = op->plan.channels, stride = array->strides[0];
    const ptrdiff_t row = piece->position + piece->column / channels;
    const ptrdiff_t column = piece->column % channels * (ptrdiff_t)op->kernels->itemsize;
    return (cbn_rows){.data = (char *)array->data + row * stride + column,
                      .stride = stride * piece->step,
                      .half = op->half};
}

double value_of_x(const operation *op, ptrdiff_t position, ptrdiff_t channel)
{
    const cbn_array *const x = op->operands[X];
    double value;
    if (op->accesses == NULL) {
        memcpy(&value,
               (const char *)x->data + position * x->strides[0] + channel * x->channel_stride,
               sizeof value);
    } else {
        const cbn_access *const access = &op->accesses[X].access;
        access->read(access, &value, position, channel * op->plan.run, 1);
    }
    return value;
}

double *partial_at(const operation *op, ptrdiff_t chunk, int k, const cbn_place *place)
{
    return op->partial + (chunk * op->recipe->reduction->partials + k) * op->plan.columns +
           place->column;
}

double *coefficient(const operation *op, int k, const cbn_place *place)
{
    return op->coefficients + k * op->plan.columns + place->column;
}

const double *or_null(const double *values, const cbn_place *place)
{
    return values == NULL ? NULL : values + place->column;
}

void copy_to_lanes(const operation *op, int k, const double *values, const cbn_place *place)
{
    if (op->plan.lanes > 1) {
        cbn_channels_copy(coefficient(op, k, place), values + place->column, 0, place->columns);
    }
}

const double *for_lanes(const operation *op, int k, const double *values, const cbn_place *place)
{
    return op->plan.lanes > 1 ? coefficient(op, k, place) : values + place->column;
}

cbn_channels channels_at(const operation *op, const cbn_place *place)
{
    const cbn_statistics *const s = &op->statistics;
    const double *const invstd = for_lanes(op, INVSTD, s->invstd, place);
    return (cbn_channels){.mean = for_lanes(op, MEAN, s->mean, place),
                          .mean_low = for_lanes(op, MEAN_LOW, s->mean_low, place),
                          .invstd = invstd,
                          .scale = invstd,
                          .along_xhat = invstd,
                          .along_one = invstd};
}

void copy_statistics_to_lanes(const operation *op, const cbn_place *place)
{
    const cbn_statistics *const s = &op->statistics;
    copy_to_lanes(op, MEAN, s->mean, place);
    copy_to_lanes(op, MEAN_LOW, s->mean_low, place);
    copy_to_lanes(op, INVSTD, s->invstd, place);
}

/* Operations that reduce nothing have coefficients all the same. */
static int coefficients_of(const cbn_reduction *reduction)
{
    return reduction == NULL ? COEFFICIENTS : reduction->coefficients;
}

void spread_to_lanes(const operation *op, const cbn_place *place)
{
    const ptrdiff_t channels = op->plan.channels;
    for (int k = 0; k < coefficients_of(op->recipe->reduction); ++k) {
        double *const first = coefficient(op, k, place);
        for (ptrdiff_t lane = 1; lane < op->plan.lanes; ++lane) {
            cbn_channels_copy(first + lane * channels, first, 0, channels);
        }
    }
}

/* What is left over of runs is merged into what the whole ones gave. */
void reduce_place(const void *operation_, const cbn_place *place)
{
    const operation *const op = operation_;
    const cbn_reduction *const reduction = op->recipe->reduction;
    for (cbn_piece piece = {.index = 0}; next_piece(op, place, 0, &piece);) {
        double *partial[MOST_PARTIALS], *results[MOST_PARTIALS], left_over[MOST_PARTIALS];
        const int more = op->plan.run > 1 && piece.step == 1;
        for (int k = 0; k < reduction->partials; ++k) {
            partial[k] = partial_at(op, place->chunk, k, &piece.place);
            results[k] = more ? &left_over[k] : partial[k];
        }
        reduction->kernel(op, &piece, results);
        if (more) {
            const ptrdiff_t before = place->chunk * op->plan.chunk_rows * op->plan.run;
            reduction->merge(op, partial, results, piece.position - before, piece.tile.rows, 1);
        }
    }
}

/* Merges `count` columns of chunk `from`, `lanes_away` lanes further on and of n2 positions, into
 * those of chunk `to`, of n1 positions. */
static void merge(const operation *op, ptrdiff_t to, ptrdiff_t from, ptrdiff_t lanes_away,
                  ptrdiff_t n1, ptrdiff_t n2, const cbn_place *place, ptrdiff_t count)
{
    cbn_place other = *place;
    const cbn_reduction *const reduction = op->recipe->reduction;
    double *values[MOST_PARTIALS], *others[MOST_PARTIALS];
    other.column += lanes_away * op->plan.channels;
    for (int k = 0; k < reduction->partials; ++k) {
        values[k] = partial_at(op, to, k, place);
        others[k] = partial_at(op, from, k, &other);
    }
    reduction->merge(op, values, others, n1, n2, count);
}

/* Chunks as a binary tree, then lanes as one, then what is left over: the error grows with the
 * logarithm of their number, and the tree is the same for every thread count. */
void merge_partials(const operation *op, const cbn_place *place)
{
    const cbn_plan *const plan = &op->plan;
    for (ptrdiff_t step = 1; step < plan->chunks; step *= 2) {
        for (ptrdiff_t i = 0; i + step < plan->chunks; i += 2 * step) {
            const ptrdiff_t last =
                i + 2 * step - 1 < plan->chunks ? i + 2 * step - 1 : plan->chunks - 1;
            const ptrdiff_t middle = cbn_plan_positions_before_end(plan, i + step - 1);
            merge(op, i, i + step, 0, middle - i * plan->chunk_rows * plan->run,
                  cbn_plan_positions_before_end(plan, last) - middle, place,
                  place->columns * plan->lanes);
        }
    }
    for (ptrdiff_t lanes = plan->lanes / 2; lanes > 0; lanes /= 2) {
        const ptrdiff_t n = plan->rows * (plan->lanes / (2 * lanes));
        merge(op, 0, 0, lanes, n, n, place, lanes * plan->channels);
    }
    if (plan->left_over > 0) {
        merge(op, 0, plan->chunks, 0, plan->rows * plan->lanes, plan->left_over, place,
              plan->channels);
    }
}

static size_t partial_size(const cbn_plan *plan, const cbn_reduction *reduction)
{
    const ptrdiff_t chunks = plan->chunks + (plan->left_over > 0);
    const ptrdiff_t partials = reduction == NULL ? 0 : reduction->partials;
    return (size_t)(chunks * partials * plan->columns) * sizeof(double);
}

size_t operation_scratch_size(const cbn_plan *plan, const cbn_reduction *reduction)
{
    const ptrdiff_t coefficients = coefficients_of(reduction) * plan->columns;
    return cbn_plan_scratch(plan) + partial_size(plan, reduction) +
           (size_t)coefficients * sizeof(double) + CBN_LINE_BYTES;
}

/* --- validate, plan, bind, run --------------------------------------------------------------- */

static ptrdiff_t positions_of(const operation *op, const cbn_selection *selection)
{
    return selection->positions == NULL ? cbn_positions(op->operands[X]) : selection->count;
}

/* Whether the rows of some operand are not adjacent channels, or not one stride apart. */
static int needs_access(const operation *op, const cbn_selection *selection)
{
    int needs = selection->positions != NULL;
    for (int i = 0; i < OPERANDS; ++i) {
        const cbn_array *const array = op->operands[i];
        needs =
            needs || (array != NULL && !cbn_has_adjacent_channels(array, op->kernels->itemsize));
    }
    return needs;
}

static cbn_status choose_kernels(operation *op)
{
    const cbn_dtype dtype = op->operands[X]->dtype;
    if ((int)dtype < 0 || dtype >= CBN_DTYPE_COUNT) {
        return CBN_ERROR_DTYPE;
    }
    op->kernels = cbn_dispatch(dtype);
    if (op->kernels == NULL) {
        return CBN_ERROR_ISA_UNSUPPORTED;
    }
    op->half = op->kernels->element == op->kernels->itemsize ? NULL : op->kernels;
    return CBN_OK;
}

static cbn_status validate(const operation *op, int plain, const cbn_resources *resources)
{
    const cbn_array *const x = op->operands[X];
    for (int i = 0; i < OPERANDS; ++i) {
        if (op->operands[i] != NULL && !cbn_same_form(op->operands[i], x)) {
            return CBN_ERROR_SHAPE;
        }
    }
    if (plain && (op->half != NULL || op->accesses != NULL)) {
        return CBN_ERROR_LAYOUT;
    }
    if (positions_of(op, &resources->selection) < 1 || x->channels < 0) {
        return CBN_ERROR_SHAPE;
    }
    if (!(op->eps >= 0) || isinf(op->eps)) {
        return CBN_ERROR_EPS;
    }
    return resources->threads < 1 ? CBN_ERROR_THREADS : CBN_OK;
}

/* Lets strips begin where the lines of the rows do, if every row begins alike in its lines. Lanes
 * stay side by side only where the rows of all operands touch. */
static void fit_to_arrays(operation *op)
{
    const ptrdiff_t itemsize = (ptrdiff_t)op->kernels->itemsize;
    const cbn_array *const x = op->operands[X];
    for (int i = 0; i < OPERANDS && op->plan.lanes > 1; ++i) {
        const cbn_array *const array = op->operands[i];
        if (array != NULL && array->strides[0] != x->channels * itemsize) {
            cbn_plan_separate_lanes(&op->plan);
            return;
        }
    }
    if (op->half == NULL && x->strides[0] * op->plan.lanes % CBN_LINE_BYTES == 0) {
        cbn_plan_align(&op->plan, (ptrdiff_t)((uintptr_t)x->data % CBN_LINE_BYTES) / itemsize);
    }
}

/* Bytes of all arrays; one that is written in place counts once. */
static double memory_of(const operation *op, ptrdiff_t positions)
{
    const cbn_array *const x = op->operands[X], *const out = op->operands[OUT];
    int arrays = 0;
    for (int i = 0; i < OPERANDS; ++i) {
        const cbn_array *const array = op->operands[i];
        arrays += array != NULL && (i == OUT || out == NULL || array->data != out->data);
    }
    return arrays * (double)positions * (double)x->channels * (double)op->kernels->itemsize;
}

static void make_plan(operation *op, const cbn_resources *resources)
{
    const cbn_selection *const selection = &resources->selection;
    const cbn_array *const x = op->operands[X];
    const ptrdiff_t positions = positions_of(op, selection);
    const double bytes = memory_of(op, positions);
    op->plan = cbn_plan_for(positions, x->channels, selection->positions == NULL ? x->inner : 1,
                            resources->threads, op->accesses == NULL && op->half == NULL);
    if (op->accesses == NULL) {
        fit_to_arrays(op);
    }
    op->in_order = bytes >= IN_ORDER_BYTES;
    op->stores = bytes >= FAR_BYTES ? CBN_PAST_CACHES : CBN_ORDINARY;
}

/* Says where everything lies: elements of the operands, partial results and coefficients. */
static char *bind(operation *op, cbn_array_access accesses[OPERANDS],
                  const cbn_resources *resources)
{
    const cbn_selection *const selection = &resources->selection;
    char *const scratch =
        (char *)resources->scratch + (size_t)(-(uintptr_t)resources->scratch % CBN_LINE_BYTES);
    for (int i = 0; op->accesses != NULL && i < OPERANDS; ++i) {
        if (op->operands[i] != NULL) {
            accesses[i] =
                cbn_access_to(op->operands[i], op->kernels, selection->positions, op->plan.run);
        }
    }
    op->partial = (double *)(void *)(scratch + cbn_plan_scratch(&op->plan));
    op->coefficients =
        op->partial + partial_size(&op->plan, op->recipe->reduction) / sizeof(double);
    return scratch;
}

cbn_status operation_run(operation *op, const cbn_recipe *recipe, int plain,
                         const cbn_resources *resources)
{
    cbn_array_access accesses[OPERANDS];
    cbn_status status = choose_kernels(op);
    if (status == CBN_OK) {
        op->recipe = recipe;
        op->accesses = needs_access(op, &resources->selection) ? accesses : NULL;
        status = validate(op, plain, resources);
    }
    if (status != CBN_OK || op->operands[X]->channels == 0) {
        return status;
    }
    make_plan(op, resources);
    if (resources->scratch == NULL ||
        resources->scratch_size < operation_scratch_size(&op->plan, recipe->reduction)) {
        return CBN_ERROR_SCRATCH;
    }
    char *const scratch = bind(op, accesses, resources);
    cbn_team_work(&op->plan, scratch, &recipe->steps, op);
    return CBN_OK;
}
