/* Where rows come from and where they go: at most CBN_GROUP_ROWS of them at a time. A row of a
 * direct array is used where it is. A row of any other array is copied to scratch first, or made
 * there and then brought to its place. */
#ifndef CBN_ROWS_H
#define CBN_ROWS_H

#include "loops.h"
#include "slots.h"

/* Columns of half types that are converted at a time, so that they stay in the first-level cache
 * [panels]. The rows of a panel lie PANEL_STRIDE bytes apart. */
/* same(256 -> 257, 1024 -> 1025): a panel may be of any width */
enum {
    PANEL = 256,
    PANEL_OF_A_ROW = 1024,
    PANEL_STRIDE = PANEL * sizeof(float) + CBN_LINE_BYTES,
    HALF_BYTES = 2
};

/* Rows and columns of a tile. */
typedef struct window {
    ptrdiff_t row, rows, column, cols;
} window;

CBN_INLINE int is_given(const cbn_rows *array)
{
    return array->access != NULL || array->data != NULL;
}

CBN_INLINE int is_direct(const cbn_rows *array)
{
    return array->access == NULL && array->half == NULL;
}

/* Whether its rows, or copies of them, lie evenly apart. */
CBN_INLINE int is_even(const cbn_rows *array) { return array->access == NULL; }

/* Bytes from a row, or the copy of one, to the next, if the rows are even. */
CBN_INLINE ptrdiff_t distance_of(const cbn_rows *array)
{
    return is_direct(array) ? array->stride : PANEL_STRIDE;
}

/* Whether its rows are converted a panel at a time, and not whole. */
CBN_INLINE int comes_in_panels(const cbn_rows *array) { return array->half != NULL; }

/* How many rows cost the least to copy: those that share cache lines come together. */
CBN_INLINE ptrdiff_t rows_together(const cbn_rows *array)
{
    return array->access != NULL && array->access->scattered ? CBN_GROUP_ROWS : 1;
}

/* Rows begin alike in their lines. */
/* same(): speed alone */
CBN_INLINE int begin_alike(const cbn_rows *array) { return array->stride % CBN_LINE_BYTES == 0; }

CBN_INLINE ptrdiff_t itemsize_of(const cbn_rows *array)
{
    return array->half != NULL ? HALF_BYTES : (ptrdiff_t)sizeof(element);
}

CBN_INLINE cbn_rows after_columns(cbn_rows array, ptrdiff_t count)
{
    if (array.access != NULL) {
        array.column += count;
    } else if (array.data != NULL) {
        array.data += count * itemsize_of(&array);
    }
    return array;
}

CBN_INLINE cbn_rows after_rows(cbn_rows array, ptrdiff_t count)
{
    const ptrdiff_t by = count * array.stride;
    if (array.access != NULL) {
        array.position += by;
    } else if (array.data != NULL) {
        array.data += by;
    }
    return array;
}

/* From so many columns on, whole lines gain more than the broken lines at both ends cost. */
#define CBN_LEAST_ALIGNED 384

/* Says where the rows of the tile lie, which are those of x. */
CBN_INLINE void place_tile(cbn_tile *tile, const cbn_rows *x)
{
    const char *const scratch = tile->scratch;
    const uintptr_t into_line = (uintptr_t)x->data % CBN_LINE_BYTES;
    tile->first_row = x->access != NULL ? scratch
                      : x->half != NULL ? scratch + into_line * sizeof(float) / HALF_BYTES
                                        : x->data;
    /* same(3 lines, != -> ==, 0 -> 1, < -> <=, || -> &&, / -> *, && -> ||): speed alone */
    const int aligned = is_direct(x) && begin_alike(x) && tile->cols >= CBN_LEAST_ALIGNED;
    tile->skew = aligned ? (ptrdiff_t)(into_line / sizeof(element)) : 0;
}

/* Columns of a panel from `column` on, up to the end of a line of the array. */
CBN_INLINE ptrdiff_t panel_cols(const cbn_rows *array, ptrdiff_t column, ptrdiff_t cols,
                                ptrdiff_t rows)
{
    const ptrdiff_t most = rows == 1 ? PANEL_OF_A_ROW : PANEL;
    const ptrdiff_t itemsize = itemsize_of(array);
    const uintptr_t row = (uintptr_t)array->data + (uintptr_t)(column * itemsize);
    const ptrdiff_t into_line = (ptrdiff_t)(row % CBN_LINE_BYTES) / itemsize;
    return cbn_least(most - into_line, cols - column);
}

/* Row r of the window of a direct array. */
CBN_INLINE char *direct_row(const cbn_rows *array, const window *w, ptrdiff_t r)
{
    return array->data + (w->row + r) * array->stride + w->column * (ptrdiff_t)sizeof(element);
}

CBN_INLINE char *panel_at(const cbn_tile *tile, int slot)
{
    char *const scratch = scratch_at(tile, slot);
#ifdef CBN_CHECK_SCRATCH
    const size_t end = CBN_LINE_BYTES + CBN_GROUP_ROWS * PANEL_STRIDE + 4096;
    if (slot + CBN_GROUP_ROWS > tile->slots || end > CBN_GROUP_ROWS * tile->slot_bytes) {
        __builtin_trap();
    }
#endif
    /* same(+ -> -): scratch may be used on both sides of its beginning */
    return scratch + (0 - (uintptr_t)scratch) % CBN_LINE_BYTES;
}

/* --- input ----------------------------------------------------------------------------------- */

CBN_INLINE void widen_panel(const element *rows[], const cbn_rows *in, const window *w,
                            const cbn_tile *tile, int slot)
{
    char *to = panel_at(tile, slot);
    const char *from = in->data + w->row * in->stride + w->column * HALF_BYTES;
    for (ptrdiff_t r = 0; r < w->rows; ++r, to += PANEL_STRIDE, from += in->stride) {
        in->half->load(to, from, HALF_BYTES, 0, w->cols);
        rows[r] = (const element *)(const void *)to;
    }
}

static void gather_rows(const element *rows[], const cbn_rows *in, const window *w,
                        const cbn_tile *tile, int slot)
{
    void *to[CBN_GROUP_ROWS];
    for (ptrdiff_t r = 0; r < w->rows; ++r) {
        rows[r] = to[r] = scratch_at(tile, slot + (int)r);
    }
    in->access->move(in->access, to, w->rows, in->position + w->row * in->stride, in->stride,
                     in->column + w->column, w->cols, 0);
}

static void read_rows(const element *rows[], const cbn_rows *in, const window *w,
                      const cbn_tile *tile, int slot)
{
    const cbn_access *const access = in->access;
    ptrdiff_t position = in->position + w->row * in->stride;
    for (ptrdiff_t r = 0; r < w->rows; ++r, position += in->stride) {
        void *row = access->locate(access, position, in->column + w->column, w->cols);
        if (row == NULL) {
            row = scratch_at(tile, slot + (int)r);
            access->read(access, row, position, in->column + w->column, w->cols);
        }
        rows[r] = row;
    }
}

CBN_INLINE void direct_rows(const element *rows[], const cbn_rows *in, const window *w)
{
    for (ptrdiff_t r = 0; r < w->rows; ++r) {
        rows[r] = (const element *)(const void *)direct_row(in, w, r);
    }
}

/* The rows of the window, where they are or as copies from `slot` on. */
CBN_INLINE void input_rows(const element *rows[], const cbn_rows *in, const window *w,
                           const cbn_tile *tile, int slot)
{
    if (is_direct(in)) {
        direct_rows(rows, in, w);
    } else if (in->half != NULL) {
        widen_panel(rows, in, w, tile, slot);
    } else if (in->access->scattered) {
        gather_rows(rows, in, w, tile, slot);
    } else {
        read_rows(rows, in, w, tile, slot);
    }
}

/* Row r of the tile, with all its columns. */
CBN_UNUSED static const element *whole_row(const cbn_rows *in, ptrdiff_t r, const cbn_tile *tile,
                                           int slot)
{
    const window w = {.row = r, .rows = 1, .cols = tile->cols};
    const element *row;
    if (in->half != NULL) {
        element *const copy = scratch_at(tile, slot);
        in->half->load(copy, in->data + r * in->stride, HALF_BYTES, 0, tile->cols);
        return copy;
    }
    input_rows(&row, in, &w, tile, slot);
    return row;
}

/* --- output ---------------------------------------------------------------------------------- */

/* Where to make the rows of the window; those that are not direct are made from `slot` on.
 * Returned: whether all are direct. */
static int output_rows(element *rows[], const cbn_rows *out, const window *w, const cbn_tile *tile,
                       int slot)
{
    const cbn_access *const access = out->access;
    int direct = out->half == NULL;
    char *const panel = direct ? NULL : panel_at(tile, slot);
    for (ptrdiff_t r = 0; r < w->rows; ++r) {
        void *row = NULL;
        if (is_direct(out)) {
            row = direct_row(out, w, r);
        } else if (out->half != NULL) {
            row = panel + r * PANEL_STRIDE;
        } else if (!access->scattered) {
            row = access->locate(access, out->position + (w->row + r) * out->stride,
                                 out->column + w->column, w->cols);
        }
        if (row == NULL) {
            row = scratch_at(tile, slot + (int)r);
            direct = 0;
        }
        rows[r] = row;
    }
    return direct;
}

CBN_INLINE void narrow_panel(const cbn_rows *out, element *const rows[], const window *w,
                             cbn_stores stores)
{
    char made[PANEL_OF_A_ROW * HALF_BYTES];
    char *to = out->data + w->row * out->stride + w->column * HALF_BYTES;
    for (ptrdiff_t r = 0; r < w->rows; ++r, to += out->stride) {
        const int past_caches = stores == CBN_PAST_CACHES;
        out->half->store(past_caches ? made : to, rows[r], HALF_BYTES, 0, w->cols);
        if (past_caches) {
            store_past_caches(to, made, (size_t)w->cols * HALF_BYTES);
        }
    }
}

static void scatter_rows(const cbn_rows *out, element *const rows[], const window *w)
{
    void *from[CBN_GROUP_ROWS];
    for (ptrdiff_t r = 0; r < w->rows; ++r) {
        from[r] = rows[r];
    }
    /* same(1 -> 2): any number but 0 is true */
    out->access->move(out->access, from, w->rows, out->position + w->row * out->stride, out->stride,
                      out->column + w->column, w->cols, 1);
}

static void write_rows(const cbn_rows *out, element *const rows[], const window *w,
                       const cbn_tile *tile, int slot)
{
    for (ptrdiff_t r = 0; r < w->rows; ++r) {
        if ((void *)rows[r] == scratch_at(tile, slot + (int)r)) {
            out->access->write(out->access, rows[r], out->position + (w->row + r) * out->stride,
                               out->column + w->column, w->cols);
        }
    }
}

/* Brings the rows that output_rows() gave, and that are made now, to their place. */
static void commit_rows(const cbn_rows *out, element *const rows[], const window *w,
                        const cbn_tile *tile, int slot)
{
    if (out->half != NULL) {
        narrow_panel(out, rows, w, tile->stores);
    } else if (out->access != NULL && out->access->scattered) {
        scatter_rows(out, rows, w);
    } else if (out->access != NULL) {
        write_rows(out, rows, w, tile, slot);
    }
}

#endif
