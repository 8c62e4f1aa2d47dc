#include "operation.h"

#include <math.h>
#include <stdint.h>

#include "channels.h"
#include "dispatch.h"
#include "layout.h"

/* Bytes of an array from which on its rows are read in order, and its stores go past the caches.
 * Neither changes a result. */
#define IN_ORDER_BYTES (8 << 20)
#define STREAM_BYTES (16 << 20)

cbn_input input_of(const cbn_array *array) { return (cbn_input){array->data, array->outer_stride}; }

cbn_output output_of(cbn_array *array) { return (cbn_output){array->data, array->outer_stride}; }

static int is_left_over(const operation *op, cbn_place at) { return at.chunk == op->work.chunks; }

cbn_tile tile_of(const operation *op, cbn_place at)
{
    const cbn_work *const w = &op->work;
    const ptrdiff_t first = at.chunk * w->chunk_rows;
    return (cbn_tile){.rows = is_left_over(op, at) ? w->left_over
                                                   : cbn_work_chunk_end(w, at.chunk) - first,
                      .cols = at.columns,
                      .work = at.work,
                      .slot_bytes = w->slot_bytes,
                      .in_order = op->in_order,
                      .stream = op->stream};
}

static ptrdiff_t byte_offset(const operation *op, ptrdiff_t stride, cbn_place at)
{
    const cbn_work *const w = &op->work;
    const ptrdiff_t row =
        is_left_over(op, at) ? w->rows - w->left_over : at.chunk * w->chunk_rows * w->lanes;
    return (row + at.column / w->channels) * stride +
           at.column % w->channels * (ptrdiff_t)op->kernels->itemsize;
}

static ptrdiff_t row_stride(const operation *op, ptrdiff_t stride, cbn_place at)
{
    return is_left_over(op, at) ? stride : stride * op->work.lanes;
}

cbn_input input_at(const operation *op, cbn_input in, cbn_place at)
{
    return (cbn_input){in.data + byte_offset(op, in.stride, at), row_stride(op, in.stride, at)};
}

cbn_output output_at(const operation *op, cbn_output out, cbn_place at)
{
    return (cbn_output){out.data + byte_offset(op, out.stride, at), row_stride(op, out.stride, at)};
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

cbn_channels channels_at(const operation *op, cbn_place at)
{
    const double *const invstd = coefficient(op, INVSTD, at);
    return (cbn_channels){.mean = coefficient(op, MEAN, at),
                          .mean_low = coefficient(op, MEAN_LOW, at),
                          .invstd = invstd,
                          .scale = invstd,
                          .along_xhat = invstd,
                          .along_one = invstd};
}

void take_statistics(const operation *op, cbn_place at)
{
    const cbn_statistics *const s = &op->statistics;
    cbn_channels_copy(coefficient(op, MEAN, at), s->mean + at.column, 0, at.columns);
    cbn_channels_copy(coefficient(op, MEAN_LOW, at), s->mean_low + at.column, 0, at.columns);
    cbn_channels_copy(coefficient(op, INVSTD, at), s->invstd + at.column, 0, at.columns);
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

/* Merge `count` columns of chunk `from` at a distance of `lanes_away` channels, n2 rows, into those
 * of chunk `to`, n1 rows. */
static void merge(const operation *op, ptrdiff_t to, ptrdiff_t from, ptrdiff_t lanes_away,
                  ptrdiff_t n1, ptrdiff_t n2, cbn_place at, ptrdiff_t count)
{
    cbn_place other = at;
    other.column += lanes_away * op->work.channels;
    if (op->partials == MOMENTS) {
        cbn_channels_merge_moments(partial_at(op, to, 0, at), partial_at(op, to, 1, at),
                                   partial_at(op, to, 2, at), partial_at(op, from, 0, other),
                                   partial_at(op, from, 1, other), partial_at(op, from, 2, other),
                                   n1, n2, count);
        return;
    }
    for (int k = 0; k < op->partials; ++k) {
        cbn_channels_add(partial_at(op, to, k, at), partial_at(op, from, k, other), count);
    }
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
            const ptrdiff_t middle = cbn_work_chunk_end(w, i + step - 1);
            merge(op, i, i + step, 0, middle - i * w->chunk_rows,
                  cbn_work_chunk_end(w, last) - middle, at, at.columns * w->lanes);
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
static void fit_to_arrays(operation *op, const cbn_array *const arrays[], int count)
{
    const ptrdiff_t itemsize = (ptrdiff_t)op->kernels->itemsize;
    const ptrdiff_t row_bytes = arrays[0]->channels * itemsize;
    for (int i = 0; i < count && op->work.lanes > 1; ++i) {
        if (arrays[i]->outer_stride != row_bytes) {
            cbn_work_separate_lanes(&op->work);
            return;
        }
    }
    if (arrays[0]->outer_stride * op->work.lanes % CBN_LINE_BYTES == 0) {
        cbn_work_align(&op->work,
                       (ptrdiff_t)((uintptr_t)arrays[0]->data % CBN_LINE_BYTES) / itemsize);
    }
}

cbn_status operation_run(operation *op, const cbn_steps *steps, const cbn_array *const arrays[],
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
        resources->scratch_size < operation_scratch_size(&op->work, op->partials)) {
        return CBN_ERROR_SCRATCH;
    }
    fit_to_arrays(op, arrays, count);
    const double bytes =
        (double)first->outer * (double)first->channels * (double)op->kernels->itemsize;
    op->in_order = bytes >= IN_ORDER_BYTES;
    op->stream = bytes >= STREAM_BYTES;
    op->work.scratch =
        (char *)resources->scratch + (size_t)(-(uintptr_t)resources->scratch % CBN_LINE_BYTES);
    op->partial = (double *)(op->work.scratch + cbn_work_scratch(&op->work));
    op->coefficients = op->partial + partial_size(&op->work, op->partials) / sizeof(double);
    cbn_work_run(&op->work, steps, op);
    return CBN_OK;
}
