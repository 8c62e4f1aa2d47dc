#include "operation.h"

#include <math.h>
#include <stdint.h>
#include <string.h>

#include "channels.h"
#include "dispatch.h"
#include "layout.h"

/* Bytes of all arrays from which on rows are read in order, and stores go past the caches. Neither
 * changes a result. */
#define IN_ORDER_BYTES (16 << 20)
#define FAR_BYTES (24 << 20)

static int is_left_over(const operation *op, cbn_place at) { return at.chunk == op->work.chunks; }

static void piece_of_rows(const operation *op, cbn_place at, cbn_piece *piece)
{
    const cbn_work *const w = &op->work;
    const ptrdiff_t first = at.chunk * w->chunk_rows;
    if (is_left_over(op, at)) {
        piece->position = w->rows - w->left_over;
        piece->step = 1;
        piece->tile.rows = w->left_over;
    } else {
        const ptrdiff_t rows = cbn_work_chunk_end(w, at.chunk) - first;
        const ptrdiff_t from = at.parts > 0 ? rows * at.part / at.parts : 0;
        const ptrdiff_t end = at.parts > 0 ? rows * (at.part + 1) / at.parts : rows;
        piece->position = (first + from) * w->lanes;
        piece->step = w->lanes;
        piece->tile.rows = end - from;
    }
    piece->at = at;
    piece->column = at.column;
    piece->tile.cols = at.columns;
    piece->tile.run = 1;
}

static void piece_of_runs(const operation *op, cbn_place at, int map, cbn_piece *piece)
{
    const cbn_work *const w = &op->work;
    const ptrdiff_t before = piece->parts / 2 * w->group, left = at.columns - before;
    const ptrdiff_t channel = at.column + before, group = left < w->group ? left : w->group;
    const ptrdiff_t first = at.chunk * w->chunk_rows;
    if (piece->parts % 2 == 0) {
        piece->position = first * w->run;
        piece->step = w->run;
        piece->tile.rows = cbn_work_chunk_end(w, at.chunk) - first;
        piece->tile.cols = group * w->run;
        piece->tile.run = w->run;
    } else {
        const ptrdiff_t left_over = at.chunk + 1 == w->chunks ? w->run_left_over : 0;
        piece->position = w->rows - left_over;
        piece->step = 1;
        piece->tile.rows = map ? left_over > 0 : left_over;
        piece->tile.cols = map ? left_over : 1;
        piece->tile.run = piece->tile.cols;
    }
    piece->at = (cbn_place){at.chunk, channel, group, at.work, 0, 0};
    piece->column = channel * w->run;
}

int next_piece(const operation *op, cbn_place at, int map, cbn_piece *piece)
{
    piece->tile = (cbn_tile){.scratch = at.work,
                             .slot_bytes = op->work.slot_bytes,
                             .slots = op->work.slots,
                             .in_order = op->in_order,
                             .stores = op->stores};
    const ptrdiff_t group = op->work.group;
    const ptrdiff_t parts = op->work.run == 1 ? 1 : 2 * ((at.columns + group - 1) / group);
    while (piece->parts < parts) {
        if (op->work.run == 1) {
            piece_of_rows(op, at, piece);
        } else {
            piece_of_runs(op, at, map, piece);
        }
        ++piece->parts;
        if (piece->tile.rows > 0) {
            return 1;
        }
    }
    return 0;
}

/* Also of an operand that there is not. */
cbn_rows rows_of(const operation *op, int which, const cbn_piece *piece)
{
    const cbn_array *const array = op->operands[which];
    if (array == NULL) {
        return (cbn_rows){.data = NULL};
    }
    const cbn_array_access *const a = op->plain ? NULL : &op->accesses[which];
    if (a != NULL && op->work.run > 1 && a->dense && a->native && array->dims == 2) {
        const ptrdiff_t stride = array->strides[0], image = piece->position / op->work.run;
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
    const ptrdiff_t channels = op->work.channels, stride = array->strides[0];
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
    if (op->plain) {
        memcpy(&value,
               (const char *)x->data + position * x->strides[0] + channel * x->channel_stride,
               sizeof value);
    } else {
        const cbn_access *const access = &op->accesses[X].access;
        access->read(access, &value, position, channel * op->work.run, 1);
    }
    return value;
}

double *partial_at(const operation *op, ptrdiff_t chunk, int k, cbn_place at)
{
    return op->partial + (chunk * op->partials + k) * op->work.columns + at.column;
}

double *coefficient(const operation *op, int k, cbn_place at)
{
    return op->coefficients + k * op->work.columns + at.column;
}

const double *or_null(const double *values, cbn_place at)
{
    return values == NULL ? NULL : values + at.column;
}

void take(const operation *op, int k, const double *values, cbn_place at)
{
    if (op->work.lanes > 1) {
        cbn_channels_copy(coefficient(op, k, at), values + at.column, 0, at.columns);
    }
}

const double *taken(const operation *op, int k, const double *values, cbn_place at)
{
    return op->work.lanes > 1 ? coefficient(op, k, at) : values + at.column;
}

cbn_channels channels_at(const operation *op, cbn_place at)
{
    const cbn_statistics *const s = &op->statistics;
    const double *const invstd = taken(op, INVSTD, s->invstd, at);
    return (cbn_channels){.mean = taken(op, MEAN, s->mean, at),
                          .mean_low = taken(op, MEAN_LOW, s->mean_low, at),
                          .invstd = invstd,
                          .scale = invstd,
                          .along_xhat = invstd,
                          .along_one = invstd};
}

void take_statistics(const operation *op, cbn_place at)
{
    const cbn_statistics *const s = &op->statistics;
    take(op, MEAN, s->mean, at);
    take(op, MEAN_LOW, s->mean_low, at);
    take(op, INVSTD, s->invstd, at);
}

static int coefficients_of(int partials)
{
    return partials == DOUBLE_SUMS ? DOUBLE_COEFFICIENTS : COEFFICIENTS;
}

void spread_to_lanes(const operation *op, cbn_place at)
{
    const ptrdiff_t channels = op->work.channels;
    for (int k = 0; k < coefficients_of(op->partials); ++k) {
        double *const first = coefficient(op, k, at);
        for (ptrdiff_t lane = 1; lane < op->work.lanes; ++lane) {
            cbn_channels_copy(first + lane * channels, first, 0, channels);
        }
    }
}

static void merge_values(const operation *op, double *const to[], double *const from[],
                         ptrdiff_t n1, ptrdiff_t n2, ptrdiff_t count)
{
    if (op->partials == MOMENTS) {
        op->kernels->arithmetic->merge_moments(to[0], to[1], to[2], from[0], from[1], from[2], n1,
                                               n2, count);
        return;
    }
    for (int k = 0; k < op->partials; ++k) {
        cbn_channels_add(to[k], from[k], count);
    }
}

/* What is left over of runs is merged into what the whole ones gave. */
void reduce_place(const operation *op, cbn_place at, cbn_reduction kernel)
{
    for (cbn_piece piece = {.parts = 0}; next_piece(op, at, 0, &piece);) {
        double *partial[DOUBLE_SUMS], *results[DOUBLE_SUMS], left_over[DOUBLE_SUMS];
        const int more = op->work.run > 1 && piece.step == 1;
        for (int k = 0; k < op->partials; ++k) {
            partial[k] = partial_at(op, at.chunk, k, piece.at);
            results[k] = more ? &left_over[k] : partial[k];
        }
        kernel(op, &piece, results);
        if (more) {
            const ptrdiff_t first = at.chunk * op->work.chunk_rows * op->work.run;
            merge_values(op, partial, results, piece.position - first, piece.tile.rows, 1);
        }
    }
}

/* Merge `count` columns of chunk `from` at a distance of `lanes_away` channels, n2 rows, into those
 * of chunk `to`, n1 rows. */
static void merge(const operation *op, ptrdiff_t to, ptrdiff_t from, ptrdiff_t lanes_away,
                  ptrdiff_t n1, ptrdiff_t n2, cbn_place at, ptrdiff_t count)
{
    cbn_place other = at;
    double *values[DOUBLE_SUMS], *others[DOUBLE_SUMS];
    other.column += lanes_away * op->work.channels;
    for (int k = 0; k < op->partials; ++k) {
        values[k] = partial_at(op, to, k, at);
        others[k] = partial_at(op, from, k, other);
    }
    merge_values(op, values, others, n1, n2, count);
}

/* Chunks as a binary tree, then lanes as one, then what is left over: the error grows with the
 * logarithm of their number, and the tree is the same for every thread count. */
void merge_partials(const operation *op, cbn_place at)
{
    const cbn_work *const w = &op->work;
    const ptrdiff_t lane_rows = w->rows / w->lanes;
    for (ptrdiff_t step = 1; step < w->chunks; step *= 2) {
        for (ptrdiff_t i = 0; i + step < w->chunks; i += 2 * step) {
            const ptrdiff_t last = i + 2 * step - 1 < w->chunks ? i + 2 * step - 1 : w->chunks - 1;
            const ptrdiff_t middle = cbn_work_positions_before_end(w, i + step - 1);
            merge(op, i, i + step, 0, middle - i * w->chunk_rows * w->run,
                  cbn_work_positions_before_end(w, last) - middle, at, at.columns * w->lanes);
        }
    }
    for (ptrdiff_t lanes = w->lanes / 2; lanes > 0; lanes /= 2) {
        const ptrdiff_t n = lane_rows * (w->lanes / (2 * lanes));
        merge(op, 0, 0, lanes, n, n, at, lanes * w->channels);
    }
    if (w->left_over > 0) {
        merge(op, 0, w->chunks, 0, lane_rows * w->lanes, w->left_over, at, w->channels);
    }
}

static size_t partial_size(const cbn_work *w, int partials)
{
    const ptrdiff_t chunks = w->chunks + (w->left_over > 0);
    return (size_t)(chunks * partials * w->columns) * sizeof(double);
}

static size_t coefficients_size(const cbn_work *w, int partials)
{
    return (size_t)(coefficients_of(partials) * w->columns) * sizeof(double);
}

size_t operation_scratch_size(const cbn_work *w, int partials)
{
    return cbn_work_scratch(w) + partial_size(w, partials) + coefficients_size(w, partials) +
           CBN_LINE_BYTES;
}

/* Lines of rows can be respected where every row begins alike, lanes only where rows touch. */
static void fit_to_arrays(operation *op)
{
    const ptrdiff_t itemsize = (ptrdiff_t)op->kernels->itemsize;
    const cbn_array *const x = op->operands[X];
    for (int i = 0; i < OPERANDS && op->work.lanes > 1; ++i) {
        const cbn_array *const array = op->operands[i];
        if (array != NULL && array->strides[0] != x->channels * itemsize) {
            cbn_work_separate_lanes(&op->work);
            return;
        }
    }
    if (op->half == NULL && x->strides[0] * op->work.lanes % CBN_LINE_BYTES == 0) {
        cbn_work_align(&op->work, (ptrdiff_t)((uintptr_t)x->data % CBN_LINE_BYTES) / itemsize);
    }
}

/* Bytes of all arrays; one that is written in place counts once. */
static double memory_of(const operation *op, ptrdiff_t rows)
{
    const cbn_array *const x = op->operands[X], *const out = op->operands[OUT];
    int arrays = 0;
    for (int i = 0; i < OPERANDS; ++i) {
        const cbn_array *const array = op->operands[i];
        arrays += array != NULL && (i == OUT || out == NULL || array->data != out->data);
    }
    return arrays * (double)rows * (double)x->channels * (double)op->kernels->itemsize;
}

cbn_status operation_run(operation *op, const cbn_steps *steps, int plain,
                         const cbn_resources *resources)
{
    const cbn_array *const x = op->operands[X];
    const cbn_selection selection = resources->selection;
    if ((int)x->dtype < 0 || x->dtype >= CBN_DTYPE_COUNT) {
        return CBN_ERROR_DTYPE;
    }
    op->kernels = cbn_dispatch(x->dtype);
    if (op->kernels == NULL) {
        return CBN_ERROR_ISA_UNSUPPORTED;
    }
    op->half = op->kernels->element == op->kernels->itemsize ? NULL : op->kernels;
    op->plain = selection.positions == NULL;
    for (int i = 0; i < OPERANDS; ++i) {
        const cbn_array *const array = op->operands[i];
        if (array != NULL && !cbn_same_form(array, x)) {
            return CBN_ERROR_SHAPE;
        }
        op->plain = op->plain && (array == NULL || cbn_is_plain_rows(array, op->kernels->itemsize));
    }
    if (plain && (!op->plain || op->half != NULL)) {
        return CBN_ERROR_LAYOUT;
    }
    const ptrdiff_t rows = selection.positions == NULL ? cbn_positions(x) : selection.count;
    if (rows < 1 || x->channels < 0) {
        return CBN_ERROR_SHAPE;
    }
    if (!(op->eps >= 0) || isinf(op->eps)) {
        return CBN_ERROR_EPS;
    }
    if (resources->threads < 1) {
        return CBN_ERROR_THREADS;
    }
    if (x->channels == 0) {
        return CBN_OK;
    }
    op->work = cbn_work_split(rows, x->channels, selection.positions == NULL ? x->inner : 1,
                              resources->threads, op->plain && op->half == NULL);
    if (resources->scratch == NULL ||
        resources->scratch_size < operation_scratch_size(&op->work, op->partials)) {
        return CBN_ERROR_SCRATCH;
    }
    if (op->plain) {
        fit_to_arrays(op);
    }
    cbn_array_access accesses[OPERANDS];
    op->accesses = accesses;
    for (int i = 0; i < OPERANDS && !op->plain; ++i) {
        if (op->operands[i] != NULL) {
            accesses[i] =
                cbn_access_to(op->operands[i], op->kernels, selection.positions, op->work.run);
        }
    }
    const double bytes = memory_of(op, rows);
    op->in_order = bytes >= IN_ORDER_BYTES;
    op->stores = bytes >= FAR_BYTES ? CBN_PAST_CACHES : CBN_ORDINARY;
    op->work.scratch =
        (char *)resources->scratch + (size_t)(-(uintptr_t)resources->scratch % CBN_LINE_BYTES);
    op->partial = (double *)(void *)(op->work.scratch + cbn_work_scratch(&op->work));
    op->coefficients = op->partial + partial_size(&op->work, op->partials) / sizeof(double);
    cbn_work_run(&op->work, steps, op);
    return CBN_OK;
}
