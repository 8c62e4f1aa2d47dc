/* Shared by the kernel templates of one ISA tier. */
#ifndef CBN_COMMON_H
#define CBN_COMMON_H

#include <math.h>
#include <stdint.h>
#include <string.h>

#include "../compiler.h"
#include "kernels.h"

#define CBN_NAME(verb) CBN_JOIN(verb, CBN_DTYPE, CBN_ISA)

#define CBN_HALF_BYTES 2 /* of an element of a half type */
#define CBN_LINE ((ptrdiff_t)(CBN_LINE_BYTES / sizeof(CBN_ELEMENT)))

/* The loop over the columns of a tile, of which whole lines come by themselves: vectors that cross
 * lines took moments 1.2 and the maps 1.3 times as long, and a loop of any length instead of a
 * line's 1.1 to 1.2 times at 128 x 64. */
#define CBN_COLUMNS(tile, j, ...) CBN_COLUMNS_OF(1, tile, j, __VA_ARGS__)
#define CBN_COLUMNS_OF(by_lines, tile, j, ...)                                                     \
    {                                                                                              \
        const ptrdiff_t first_line = /* same(- -> +, 0 -> 1): speed alone */                       \
            CBN_HALVES || (tile).skew == 0 ? 0 : cbn_least(CBN_LINE - (tile).skew, (tile).cols);   \
        const ptrdiff_t rest = ((tile).cols - first_line) % CBN_LINE;                              \
        const ptrdiff_t step = (by_lines) ? CBN_LINE : (tile).cols - rest - first_line;            \
        for (ptrdiff_t line = first_line; line < (tile).cols - rest; line += step) {               \
            CBN_SIMD                                                                               \
            for (ptrdiff_t j = line; j < line + step; ++j)                                         \
                __VA_ARGS__                                                                        \
        }                                                                                          \
        for (int tail = 0; tail < 2; ++tail) {                                                     \
            const ptrdiff_t from = tail ? (tile).cols - rest : 0;                                  \
            const ptrdiff_t before = tail ? (tile).cols : first_line;                              \
            CBN_SIMD_SHORT                                                                         \
            for (ptrdiff_t j = from; j < before; ++j)                                              \
                __VA_ARGS__                                                                        \
        }                                                                                          \
    }

/* Scratch lies in its lines as the rows of the tile do in theirs, and its arrays and the rows at
 * different distances from a 4 KiB boundary: where the same column of all of them fell into one set
 * of the first-level cache, normalize took 0.65 cycles an element instead of 0.32. */
CBN_INLINE void *cbn_scratch(const cbn_tile *tile, int i)
{
    char *const slot = (char *)tile->work + (size_t)i * tile->slot_bytes;
    const uintptr_t rows = (uintptr_t)tile->rows_data / sizeof(double) * sizeof(double);
    /* same(1 -> 2): any place in a slot's 4 KiB */
    const uintptr_t wanted = rows + 448 * (uintptr_t)(i + 1);
#ifdef CBN_CHECK_SCRATCH
    if ((size_t)tile->cols * sizeof(double) + 4095 > tile->slot_bytes) {
        __builtin_trap();
    }
#endif
    return slot + (wanted - (uintptr_t)slot) % 4096;
}

/* same(< -> <=): either of two equal numbers is the least */
CBN_INLINE ptrdiff_t cbn_least(ptrdiff_t a, ptrdiff_t b) { return a < b ? a : b; }

#define CBN_LEAST_ALIGNED 384

/* Where the tile's rows lie: how many elements of its line are before the first one, 0 where the
 * rows' lines differ, and where the broken lines at both ends would cost more than whole ones gain.
 */
CBN_INLINE void cbn_tile_at(cbn_tile *tile, cbn_input rows, size_t itemsize)
{
    tile->rows_data = rows.half != NULL
                          /* same(% -> /): speed alone */
                          ? (char *)tile->work + (uintptr_t)rows.data % CBN_LINE_BYTES * 2
                          : rows.access == NULL ? rows.data : tile->work;
    /* same(4 lines, != -> ==, % -> /, 0 -> 1, < -> <=, || -> &&): speed alone */
    tile->skew = rows.half != NULL || rows.access != NULL || rows.stride % CBN_LINE_BYTES != 0 ||
                         tile->cols < CBN_LEAST_ALIGNED
                     ? 0
                     : (ptrdiff_t)((uintptr_t)rows.data % CBN_LINE_BYTES / itemsize);
}

/* The i-th scratch array of a tile, of any type up to the size of a double. */
#define CBN_SCRATCH(type, i) ((type *)cbn_scratch(&tile, i))

/* The row where it is, or a copy of it. */
CBN_APART_FROM_CALLER CBN_UNUSED static const char *cbn_accessed_row(const cbn_access *access,
                                                                     ptrdiff_t position,
                                                                     ptrdiff_t channel,
                                                                     ptrdiff_t cols, char *copy)
{
    const char *const row = access->locate(access, position, channel, cols);
    if (row != NULL) {
        return row;
    }
    access->read(access, copy, position, channel, cols);
    return copy;
}

/* Row r of an input; `slot` is scratch for it. Nothing here takes the address of an input or a
 * tile: it would keep them in memory and cost a fifth of the time of a row of 1024. */
CBN_INLINE const char *cbn_row(int halves, const cbn_input *in, ptrdiff_t r, const cbn_tile *tile,
                               int slot)
{
    if (halves && in->half != NULL) {
        char *const copy = cbn_scratch(tile, slot);
        in->half->load(copy, in->data + r * in->stride, CBN_HALF_BYTES, 0, tile->cols);
        return copy;
    }
    return in->access == NULL ? in->data + r * in->stride
           : in->gathered ? (const char *)cbn_scratch(tile, slot + in->gathered - 1)
                          : cbn_accessed_row(in->access, in->position + r * in->stride, in->channel,
                                             tile->cols, cbn_scratch(tile, slot));
}

#define CBN_APART(array) ((array).access != NULL && (array).access->apart)

/* The next rows of an array that lie apart: row r into scratch `slot` + r, or out of it. */
CBN_APART_FROM_CALLER CBN_UNUSED static void cbn_move_rows(const cbn_access *access,
                                                           ptrdiff_t position, ptrdiff_t step,
                                                           ptrdiff_t channel, ptrdiff_t rows,
                                                           cbn_tile tile, int slot, int out)
{
    void *made[CBN_GATHERED_ROWS];
    for (int r = 0; r < rows; ++r) {
        made[r] = cbn_scratch(&tile, slot + r);
    }
    access->move(access, made, rows, position, step, channel, tile.cols, out);
}

#define CBN_MOVE_ROWS(array, rows, slot, out)                                                      \
    cbn_move_rows((array).access, (array).position, (array).stride, (array).channel, rows, tile,   \
                  slot, out);

#define CBN_GATHER(in, rows, slot)                                                                 \
    if (CBN_APART(in)) {                                                                           \
        CBN_MOVE_ROWS(in, rows, slot, 0)                                                           \
        (in).gathered = 1;                                                                         \
    }

/* The same of those that are wanted by fours: every second time they are there. */
#define CBN_GATHER_FOUR(in, slot)                                                                  \
    if ((in).gathered == 1) {                                                                      \
        (in).gathered = 5;                                                                         \
    } else {                                                                                       \
        CBN_GATHER(in, cbn_least(tile.rows, CBN_GATHERED_ROWS), slot)                              \
    }

/* Row r of an input alone; if it is gathered, in scratch `slot` + r. */
CBN_INLINE cbn_input cbn_input_row(cbn_input in, ptrdiff_t r, const cbn_tile *tile, int slot)
{
    if (in.gathered) {
        return (cbn_input){.data = (const char *)cbn_scratch(tile, slot + (int)r)};
    }
    /* same(0 -> 1): what has an access has no data */
    in.data += in.access == NULL ? r * in.stride : 0;
    in.position += r * in.stride;
    return in;
}

#define CBN_ROW(in, r, slot) ((const CBN_ELEMENT *)cbn_row(CBN_HALVES, &(in), r, &tile, slot))

/* Row r of an output to store into, which may be scratch; then row 0 goes to its place. */
CBN_INLINE char *cbn_out_row(const cbn_output *out, ptrdiff_t r, const cbn_tile *tile, int slot)
{
    if (out->access == NULL) {
        return out->data + r * out->stride;
    }
    char *const row =
        out->access->locate(out->access, out->position + r * out->stride, out->channel, tile->cols);
    return row != NULL ? row : cbn_scratch(tile, slot);
}

CBN_INLINE int cbn_is_scratch(const cbn_output *out, const void *row, const cbn_tile *tile,
                              int slot)
{
    return out->access != NULL && row == cbn_scratch(tile, slot);
}

CBN_INLINE void cbn_row_made(const cbn_output *out, const void *row, const cbn_tile *tile, int slot)
{
    if (cbn_is_scratch(out, row, tile, slot)) {
        out->access->write(out->access, row, out->position, out->channel, tile->cols);
    }
}

/* Row r of an output alone; if rows lie apart, in scratch `slot` + r for CBN_SCATTER. */
CBN_INLINE cbn_output cbn_output_row(cbn_output out, ptrdiff_t r, const cbn_tile *tile, int slot)
{
    if (CBN_APART(out)) {
        return (cbn_output){.data = cbn_scratch(tile, slot + (int)r)};
    }
    /* same(0 -> 1): what has an access has no data */
    out.data += out.access == NULL ? r * out.stride : 0;
    out.position += r * out.stride;
    return out;
}

#define CBN_SCATTER(array, rows, slot)                                                             \
    if (CBN_APART(array)) {                                                                        \
        /* same(1 -> 2): any number but 0 is true */                                               \
        CBN_MOVE_ROWS(array, rows, slot, 1)                                                        \
    }

#define CBN_OUT_ROW(out, r, slot) ((CBN_ELEMENT *)cbn_out_row(&(out), r, &tile, slot))

/* Moves an input or output on by rows, or past its first `count` channels. */
#define CBN_ADVANCE(array, rows)                                                                   \
    {                                                                                              \
        const ptrdiff_t by = (rows) * (array).stride;                                              \
        if ((array).access != NULL) {                                                              \
            (array).position += by;                                                                \
        } else if ((array).data != NULL) {                                                         \
            (array).data += by;                                                                    \
        }                                                                                          \
    }
#define CBN_SKIP(array, count)                                                                     \
    {                                                                                              \
        if ((array).access != NULL) {                                                              \
            (array).channel += (count);                                                            \
        } else if ((array).data != NULL) {                                                         \
            const ptrdiff_t own = sizeof(CBN_ELEMENT);                                             \
            (array).data += (count) * ((array).half != NULL ? (ptrdiff_t)CBN_HALF_BYTES : own);    \
        }                                                                                          \
    }
#define CBN_GIVEN(array) ((array).access != NULL || (array).data != NULL)

/* How many rows a map may take at once. The coefficients of narrow rows stay in the first-level
 * cache, and one run of memory is what the prefetchers follow best: at 60 MB one row took 0.6 times
 * as long as four, of runs 0.85 to 1 times. Those of wide rows are loaded once for four: 0.7 times.
 * Near the core, two rows, or where a row is so short that to find it counts four (inference at
 * 32 x 64 to 128 x 64 0.88 to 0.93 times). */
CBN_INLINE int cbn_rows_at_once(const cbn_tile *tile, size_t itemsize)
{
    const size_t bytes = (size_t)tile->cols * itemsize;
    /* same(2 lines): how many rows at once is a matter of speed */
    const int narrow = (tile->run > 1 && tile->in_order) || bytes <= (tile->stream ? 2048 : 4096);
    return !narrow ? 4 : tile->in_order ? 1 : bytes <= 1024 ? 4 : 2;
}

/* Rows begin alike in their lines. */
/* same(): speed alone */
CBN_INLINE int cbn_rows_alike(ptrdiff_t stride) { return stride % CBN_LINE_BYTES == 0; }

/* Rows that can be stored past the caches a part at a time: no line belongs to two. */
CBN_INLINE int cbn_can_stream(const cbn_output *out)
{
    return out->access == NULL && out->half == NULL && cbn_rows_alike(out->stride);
}

/* A division is worth its branch here. */
CBN_INLINE ptrdiff_t cbn_channels_of(const cbn_tile *tile)
{
    return tile->run == 1 ? tile->cols : tile->cols / tile->run;
}

/* Runs of so many columns are taken one by one by maps, with the channel's coefficients in
 * registers: normalize takes 0.6 to 1 of the time, of 196 columns up to 1.1; dx, which has one
 * coefficient more, 0.8 to 0.95, of 49 columns up to 1.3. */
#define CBN_LONG_RUN 512
#define CBN_LONG_RUN_OF_DX 128

/* A number a channel for each of its columns, in place, from the last channel down: by lines, of
 * which the first may reach into the channels below, whose turn is yet to come, but not to where
 * their numbers wait. */
#define CBN_SPREAD_(type)                                                                          \
    CBN_APART_FROM_CALLER CBN_UNUSED static void cbn_spread_##type(                                \
        type *columns, ptrdiff_t channels, ptrdiff_t run)                                          \
    {                                                                                              \
        enum { LINE = CBN_LINE_BYTES / sizeof(type) };                                             \
        for (ptrdiff_t c = channels; c-- > 0;) {                                                   \
            const type value = columns[c];                                                         \
            type *end = columns + (c + 1) * run;                                                   \
            for (; end > columns + c * run && end - LINE >= columns + c; end -= LINE) {            \
                CBN_SIMD                                                                           \
                for (int j = 0; j < LINE; ++j) {                                                   \
                    end[j - LINE] = value;                                                         \
                }                                                                                  \
            }                                                                                      \
            while (end > columns + c * run) {                                                      \
                *--end = value;                                                                    \
            }                                                                                      \
        }                                                                                          \
    }
CBN_SPREAD_(float)
CBN_SPREAD_(double)
#define CBN_SPREAD(columns, tile)                                                                  \
    /* same(> -> >=): columns of a run of one are the channels */                                  \
    if ((tile).run > 1) {                                                                          \
        _Generic((columns), float *: cbn_spread_float, double *: cbn_spread_double)(               \
            columns, cbn_channels_of(&(tile)), (tile).run);                                        \
    }

/* Each channel's number becomes the sum of its columns: of many halves are added until few are left
 * for eight sums, which short runs are done with sooner (forward at 32 x 512 x 7 x 7 0.9 times as
 * long). */
CBN_APART_FROM_CALLER CBN_UNUSED static void cbn_add_columns(double *columns, ptrdiff_t channels,
                                                             ptrdiff_t run)
{
    enum { FEW = 64, SUMS = 8 };
    for (ptrdiff_t c = 0; c < channels; ++c) {
        double *const from = columns + c * run;
        double sum[SUMS] = {0};
        ptrdiff_t left = run, j = 0;
        for (; left > FEW; left -= left / 2) {
            const ptrdiff_t half = left / 2;
            CBN_SIMD
            for (ptrdiff_t k = 0; k < half; ++k) {
                from[k] += from[k + left - half];
            }
        }
        for (; j + SUMS <= left; j += SUMS) {
            CBN_SIMD
            for (int k = 0; k < SUMS; ++k) {
                sum[k] += from[j + k];
            }
        }
        for (int k = 0; j < left; ++j, ++k) {
            sum[k] += from[j];
        }
        columns[c] =
            ((sum[0] + sum[1]) + (sum[2] + sum[3])) + ((sum[4] + sum[5]) + (sum[6] + sum[7]));
    }
}
#define CBN_ADD_COLUMNS(columns, tile)                                                             \
    /* same(> -> >=): columns of a run of one are the channels */                                  \
    if ((tile).run > 1) {                                                                          \
        cbn_add_columns(columns, cbn_channels_of(&(tile)), (tile).run);                            \
    }

/* Columns j of a row of an output, stored past the caches, a line as soon as it is made: rows made
 * in scratch and streamed in bursts of 2 KiB took 1.2 times as long. __VA_ARGS__ stores column j as
 * element `at` of `to`. */
#define CBN_STREAM_ROW(row, cols, j, at, to, ...)                                                  \
    {                                                                                              \
        /* same(% -> /): speed alone */                                                            \
        const size_t broken = -(uintptr_t)(row) % CBN_LINE_BYTES / sizeof(CBN_ELEMENT);            \
        const ptrdiff_t head = cbn_least((ptrdiff_t)broken, cols);                                 \
        const ptrdiff_t tail = ((cols) - head) % CBN_LINE;                                         \
        CBN_SIMD                                                                                   \
        for (ptrdiff_t j = 0; j < head; ++j) {                                                     \
            CBN_ELEMENT *const to = row;                                                           \
            const ptrdiff_t at = j;                                                                \
            __VA_ARGS__                                                                            \
        }                                                                                          \
        for (ptrdiff_t line = head; line < (cols) - tail; line += CBN_LINE) {                      \
            CBN_ELEMENT to[CBN_LINE_BYTES / sizeof(CBN_ELEMENT)];                                  \
            CBN_SIMD                                                                               \
            for (ptrdiff_t at = 0; at < CBN_LINE; ++at) {                                          \
                const ptrdiff_t j = line + at;                                                     \
                __VA_ARGS__                                                                        \
            }                                                                                      \
            cbn_stream_line((row) + line, to);                                                     \
        }                                                                                          \
        CBN_SIMD                                                                                   \
        for (ptrdiff_t j = (cols) - tail; j < (cols); ++j) {                                       \
            CBN_ELEMENT *const to = row;                                                           \
            const ptrdiff_t at = j;                                                                \
            __VA_ARGS__                                                                            \
        }                                                                                          \
    }

/* The same for n <= 4 rows at once, in bursts of 1 KiB a row. Lines streamed as soon as they are
 * made wait for each other here: a load waits for an earlier store whose address ends in the same
 * 12 bits, and where the output lay a few lines behind the input that took up to 10 times as long.
 */
#define CBN_STREAM_ROWS(n, rows, cols, j, at, made, ...)                                           \
    {                                                                                              \
        CBN_ELEMENT made[4][CBN_BURST_BYTES / sizeof(CBN_ELEMENT)];                                \
        /* same(0 -> 1): set before it is read */                                                  \
        for (ptrdiff_t from = 0, end = 0; from < (cols); from = end) {                             \
            const size_t into_line = (uintptr_t)((rows)[0] + from) % CBN_LINE_BYTES;               \
            const size_t burst = (CBN_BURST_BYTES - into_line) / sizeof(CBN_ELEMENT);              \
            end = cbn_least(from + (ptrdiff_t)burst, cols);                                        \
            CBN_SIMD                                                                               \
            for (ptrdiff_t at = 0; at < end - from; ++at) {                                        \
                const ptrdiff_t j = from + at;                                                     \
                __VA_ARGS__                                                                        \
            }                                                                                      \
            for (int row = 0; row < (n); ++row) {                                                  \
                cbn_stream((char *)((rows)[row] + from), (const char *)made[row],                  \
                           (size_t)(end - from) * sizeof(CBN_ELEMENT));                            \
            }                                                                                      \
        }                                                                                          \
    }
#define CBN_BURST_BYTES 1024

/* sum + low += term, exact but for the rounding of low (Knuth). */
CBN_INLINE void cbn_two_sum(double *sum, double *low, double term)
{
    const double total = *sum + term;
    const double term_in_total = total - *sum;
    *low += (*sum - (total - term_in_total)) + (term - term_in_total);
    *sum = total;
}

/* Float32 arithmetic serves a channel whose mean and factors neither overflow nor lose bits to
 * underflow with any float32 of interest; up to 2^102 no x - mean of finite float32 overflows.
 * NaN counts as ordinary: it spoils its channel either way. */
CBN_INLINE int cbn_extreme_factor(double factor)
{
    const double size = fabs(factor);
    /* same(120 -> 121, < -> <=, > -> >=): both ways serve at the threshold */
    return (size > 0x1p100) | ((size < 0x1p-120) & (size > 0));
}

/* `with_xhat` if the kernel has along_xhat, which is invstd if not. */
CBN_INLINE int cbn_extreme(const cbn_channels *channels, ptrdiff_t j, int with_xhat)
{
    const double along_xhat = with_xhat ? channels->along_xhat[j] : 0;
    /* same(> -> >=): both ways serve at the threshold */
    return (fabs(channels->mean[j]) > 0x1p102) | (fabs(channels->along_one[j]) > 0x1p100) |
           cbn_extreme_factor(channels->scale[j]) | cbn_extreme_factor(along_xhat) |
           cbn_extreme_factor(along_xhat * channels->invstd[j]);
}

CBN_INLINE int cbn_any_extreme(const cbn_channels *channels, ptrdiff_t count, int with_xhat)
{
    int any = 0;
    for (ptrdiff_t j = 0; j < count; ++j) {
        any |= cbn_extreme(channels, j, with_xhat);
    }
    return any;
}

/* How many channels from the first on are extreme (then `wide` is 1), or not, throughout. To look
 * for any vectorises and settles nearly every call. */
CBN_UNUSED static ptrdiff_t cbn_alike(int *wide, const cbn_channels *channels, ptrdiff_t count)
{
    const int with_xhat = channels->along_xhat != channels->invstd;
    *wide = 0;
    if (!(with_xhat ? cbn_any_extreme(channels, count, 1) : cbn_any_extreme(channels, count, 0))) {
        return count;
    }
    *wide = cbn_extreme(channels, 0, with_xhat);
    ptrdiff_t j = 1;
    while (j < count && cbn_extreme(channels, j, with_xhat) == *wide) {
        ++j;
    }
    return j;
}

CBN_UNUSED static void cbn_skip(cbn_channels *channels, ptrdiff_t count)
{
    channels->mean += count;
    channels->mean_low += count;
    channels->invstd += count;
    channels->scale += count;
    channels->along_xhat += count;
    channels->along_one += count;
}

#endif
