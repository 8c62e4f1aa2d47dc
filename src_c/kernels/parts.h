/* Rows of half types are widened, and made, a part at a time that stays in the first-level cache:
 * at most CBN_PART columns of each, up to the end of a line. Other rows are one part. */
#ifndef CBN_PART
/* same(256 -> 257): a part may be of any size */
#define CBN_PART 256
#define CBN_PART_STRIDE ((ptrdiff_t)sizeof(float) * CBN_PART + CBN_LINE_BYTES)

CBN_INLINE char *cbn_part_scratch(const cbn_tile *tile, int slot)
{
    char *const scratch = cbn_scratch(tile, slot);
    /* same(+ -> -): scratch may be used on both sides of its beginning */
    return scratch + -(uintptr_t)scratch % CBN_LINE_BYTES;
}

CBN_UNUSED static void cbn_widen_rows(const cbn_kernels *half, char *to, const char *from,
                                      ptrdiff_t stride, ptrdiff_t rows, ptrdiff_t cols)
{
    for (ptrdiff_t r = 0; r < rows; ++r) {
        half->load(to + r * CBN_PART_STRIDE, from + r * stride, CBN_HALF_BYTES, 0, cols);
    }
}

CBN_UNUSED static void cbn_narrow_rows(const cbn_kernels *half, char *to, ptrdiff_t stride,
                                       const char *from, ptrdiff_t rows, ptrdiff_t cols, int stream)
{
    char made[CBN_PART * CBN_HALF_BYTES];
    for (ptrdiff_t r = 0; r < rows; ++r) {
        char *const row = to + r * stride;
        half->store(stream ? made : row, from + r * CBN_PART_STRIDE, CBN_HALF_BYTES, 0, cols);
        if (stream) {
            cbn_stream(row, made, (size_t)cols * CBN_HALF_BYTES);
        }
    }
}
#endif

/* The loop over the parts of a tile, whose `cols` become those of a part from column j on; `lines`
 * is where parts end with a line, of elements of so many bytes. */
#define CBN_PARTS_OF(bytes, parts, tile, j, lines, ...)                                            \
    {                                                                                              \
        const ptrdiff_t all = (tile).cols;                                                         \
        ptrdiff_t j = 0;                                                                           \
        do {                                                                                       \
            const size_t into_line = (uintptr_t)(lines) % CBN_LINE_BYTES / (bytes);                \
            const ptrdiff_t most = CBN_PART - (ptrdiff_t)into_line;                                \
            (tile).cols = (parts) ? cbn_least(most, all - j) : all - j;                            \
            __VA_ARGS__                                                                            \
            j += (tile).cols;                                                                      \
        } while ((parts) && j < all);                                                              \
    }

/* Those of half types; what has an access is one part, since every part would have to look for its
 * place. */
#define CBN_PARTS(tile, j, half, lines, ...)                                                       \
    CBN_PARTS_OF(CBN_HALF_BYTES, CBN_HALVES && (half), tile, j, lines, __VA_ARGS__)

/* The first rows of a part as kernels take them: the input itself, or from scratch `slot` on. */
CBN_INLINE cbn_input CBN_NAME(widened)(cbn_input in, ptrdiff_t rows, const cbn_tile *tile, int slot)
{
    if (CBN_HALVES && in.half != NULL) {
        char *const to = cbn_part_scratch(tile, slot);
        cbn_widen_rows(in.half, to, in.data, in.stride, rows, tile->cols);
        in.data = to;
        in.stride = CBN_PART_STRIDE;
    }
    in.half = NULL;
    return in;
}

/* Where to make the rows of a part, and what makes an output of them. */
CBN_INLINE cbn_output CBN_NAME(unmade)(cbn_output out, const cbn_tile *tile, int slot)
{
    if (CBN_HALVES && out.half != NULL) {
        out.data = cbn_part_scratch(tile, slot);
        out.stride = CBN_PART_STRIDE;
    }
    out.half = NULL;
    return out;
}

CBN_INLINE void CBN_NAME(narrow)(cbn_output out, cbn_output made, ptrdiff_t rows,
                                 const cbn_tile *tile)
{
    if (CBN_HALVES && out.half != NULL) {
        cbn_narrow_rows(out.half, out.data, out.stride, made.data, rows, tile->cols, tile->stream);
    }
}
