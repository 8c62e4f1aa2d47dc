/* The loops over the columns of rows, and nothing else. What a loop does at a column is a constant,
 * so that the compiler makes one vector loop of both. */
#ifndef CBN_LOOPS_H
#define CBN_LOOPS_H

#include "../isa/stream.h"
#include "columns.h"

enum { LINE = CBN_LINE_BYTES / sizeof(element), BURST = 1024 / sizeof(element) };

/* Columns before the first whole line. */
CBN_INLINE ptrdiff_t head_of(ptrdiff_t cols, ptrdiff_t skew)
{
    /* same(- -> +, 0 -> 1): speed alone */
    return skew == 0 ? 0 : cbn_least(LINE - skew, cols);
}

/* Whole lines come by themselves, a loop of constant length each [lines]. The columns before and
 * after them share one loop, with vectors of half a line. */
CBN_INLINE void map_lines(const map_rows *rows, const map_shape *shape)
{
    const ptrdiff_t cols = rows->cols, head = head_of(cols, rows->skew);
    const ptrdiff_t tail = (cols - head) % LINE;
    for (ptrdiff_t line = head; line < cols - tail; line += LINE) {
        CBN_SIMD
        for (ptrdiff_t j = line; j < line + LINE; ++j) {
            map_column(rows, shape, rows->out, rows->out_stride, j, j);
        }
    }
    for (int end = 0; end < 2; ++end) {
        const ptrdiff_t from = end ? cols - tail : 0, before = end ? cols : head;
        CBN_SIMD_SHORT
        for (ptrdiff_t j = from; j < before; ++j) {
            map_column(rows, shape, rows->out, rows->out_stride, j, j);
        }
    }
}

/* One row that is stored past the caches, a line as soon as it is made [stream-lines]. */
CBN_INLINE void map_stream_lines(const map_rows *rows, const map_shape *shape)
{
    element *const row = rows->out;
    /* same(% -> /): speed alone */
    const size_t broken = (0 - (uintptr_t)row) % CBN_LINE_BYTES / sizeof(element);
    const ptrdiff_t cols = rows->cols, head = cbn_least((ptrdiff_t)broken, cols);
    const ptrdiff_t tail = (cols - head) % LINE;
    CBN_SIMD
    for (ptrdiff_t j = 0; j < head; ++j) {
        map_column(rows, shape, rows->out, rows->out_stride, j, j);
    }
    for (ptrdiff_t line = head; line < cols - tail; line += LINE) {
        element made[LINE];
        CBN_SIMD
        for (ptrdiff_t at = 0; at < LINE; ++at) {
            map_column(rows, shape, made, 0, at, line + at);
        }
        cbn_stream_line(row + line, made);
    }
    CBN_SIMD
    for (ptrdiff_t j = cols - tail; j < cols; ++j) {
        map_column(rows, shape, rows->out, rows->out_stride, j, j);
    }
}

/* Rows that are stored past the caches in bursts of 1 KiB a row. Lines that are streamed as soon as
 * they are made would wait for each other, since a load waits for an earlier store whose address
 * ends in the same 12 bits [stream-bursts]. */
CBN_INLINE void map_stream_bursts(const map_rows *rows, const map_shape *shape)
{
    element made[MAP_ROWS][BURST];
    /* same(0 -> 1): set before it is read */
    for (ptrdiff_t from = 0, end = 0; from < rows->cols; from = end) {
        const size_t into_line = (uintptr_t)(rows->out + from) % CBN_LINE_BYTES;
        const ptrdiff_t burst = BURST - (ptrdiff_t)(into_line / sizeof(element));
        end = cbn_least(from + burst, rows->cols);
        CBN_SIMD
        for (ptrdiff_t at = 0; at < end - from; ++at) {
            map_column(rows, shape, made[0], sizeof made[0], at, from + at);
        }
        for (int row = 0; row < shape->rows; ++row) {
            cbn_stream((char *)(out_row(rows, row) + from), (const char *)made[row],
                       (size_t)(end - from) * sizeof(element));
        }
    }
}

/* As map_lines, of rows that are summed. Where a line has too many numbers under way, all whole
 * lines are one loop [float64-sums]. */
CBN_INLINE void reduce_lines(const reduce_rows *rows, const reduce_shape *shape)
{
    const ptrdiff_t cols = rows->cols, head = head_of(cols, rows->skew);
    const ptrdiff_t tail = (cols - head) % LINE;
    const ptrdiff_t step = shape->by_lines ? LINE : cols - tail - head;
    for (ptrdiff_t line = head; line < cols - tail; line += step) {
        CBN_SIMD
        for (ptrdiff_t j = line; j < line + step; ++j) {
            shape->column(rows, shape->group, shape->which, j);
        }
    }
    for (int end = 0; end < 2; ++end) {
        const ptrdiff_t from = end ? cols - tail : 0, before = end ? cols : head;
        CBN_SIMD_SHORT
        for (ptrdiff_t j = from; j < before; ++j) {
            shape->column(rows, shape->group, shape->which, j);
        }
    }
}

/* Bytes that were made elsewhere. */
CBN_INLINE void store_past_caches(char *to, const char *from, size_t size)
{
    cbn_stream(to, from, size);
}

/* Other threads see what was stored before. */
CBN_INLINE void finish_stores(cbn_stores stores)
{
    if (stores == CBN_PAST_CACHES) {
        cbn_stream_end();
    }
}

/* --- all rows that are given ------------------------------------------------------------------ */

/* Member by member: a copy of the whole would wait for the stores that have just made it. */
CBN_INLINE map_rows copy_of(const map_rows *given)
{
    return (map_rows){
        .in = {given->in[0], given->in[1], given->in[2]},
        .out = given->out,
        .in_stride = {given->in_stride[0], given->in_stride[1], given->in_stride[2]},
        .out_stride = given->out_stride,
        .coefficient = {given->coefficient[0], given->coefficient[1], given->coefficient[2],
                        given->coefficient[3]},
        .cols = given->cols,
        .skew = given->skew,
    };
}

typedef void map_loop(const map_rows *rows, const map_shape *shape);

CBN_INLINE void map_all(const map_rows *given, map_loop *loop, map_shape shape)
{
    map_rows rows = copy_of(given);
    for (ptrdiff_t row = 0; row < given->rows; row += shape.rows) {
        if (shape.of == ONE_CHANNEL) {
            shape.one = coefficients_at(given, row);
        }
        loop(&rows, &shape);
        rows.out = out_row(&rows, shape.rows);
        if (shape.operands & X) {
            rows.in[CBN_X] = in_row(&rows, CBN_X, shape.rows);
        }
        if (shape.operands & DY) {
            rows.in[CBN_DY] = in_row(&rows, CBN_DY, shape.rows);
        }
        if (shape.operands & RESIDUAL) {
            rows.in[CBN_RESIDUAL] = in_row(&rows, CBN_RESIDUAL, shape.rows);
        }
        if (shape.of == ONE_CHANNEL) {
            rows.skew = (rows.skew + rows.cols) % LINE;
        }
    }
}

CBN_INLINE void reduce_all(const reduce_rows *rows, reduce_shape shape)
{
    for (shape.group = 0; shape.group < rows->groups; ++shape.group) {
        reduce_lines(rows, &shape);
    }
}

#endif
