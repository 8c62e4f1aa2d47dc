/* What a kernel set offers: the kernels for one dtype on one tier.
 *
 * A kernel works on a tile: `rows` rows of `cols` columns, of which `run` adjacent ones belong to
 * one channel. Arrays of one number a channel are float64 and point at the tile's first channel.
 *
 * One answer: what a kernel returns for a channel depends on that channel's values and on `rows`
 * and `run`, never on `cols`, the strides or the tier. Hence sums run over rows in a fixed order,
 * then over the columns of a run as a tree, and vectors run over columns.
 */
#ifndef CBN_KERNELS_H
#define CBN_KERNELS_H

#include "../cbn.h"
#include "../compiler.h"

/* Rows of a block of float64 (kernels/reduce.h). Rows of a chunk come in multiples of it. */
#define CBN_BLOCK_ROWS 32

/* Rows of an input that a provider hands out at a time, at most. */
#define CBN_GROUP_ROWS 8

/* Scratch slots of a tile: of one whose arrays are direct (kernels/rows.h), and of any
 * other one. kernels/slots.h says what each is for. */
#define CBN_DIRECT_SLOTS 11
#define CBN_SLOTS 36

/* How to read and write rows of an array with other strides, byte order or dtype. A row is `cols`
 * elements from a position and a column on. */
typedef struct cbn_access cbn_access;
struct cbn_access {
    /* The row if kernels can use it where it is, else NULL. */
    char *(*locate)(const cbn_access *access, ptrdiff_t position, ptrdiff_t column, ptrdiff_t cols);
    void (*read)(const cbn_access *access, void *to, ptrdiff_t position, ptrdiff_t column,
                 ptrdiff_t cols);
    void (*write)(const cbn_access *access, const void *from, ptrdiff_t position, ptrdiff_t column,
                  ptrdiff_t cols);
    /* If the elements of a row are scattered and need no conversion, up to CBN_GROUP_ROWS rows that
     * are `step` positions apart are gathered together into rows[], or scattered from there. */
    int scattered;
    void (*move)(const cbn_access *access, void *const *rows, ptrdiff_t count, ptrdiff_t position,
                 ptrdiff_t step, ptrdiff_t column, ptrdiff_t cols, int scatter);
};

typedef struct cbn_kernels cbn_kernels;

/* The rows of an array: from `data` on, `stride` bytes from row to row; or with an access, from
 * `position` and `column` on, `stride` positions from row to row. An array that is not there has
 * neither data nor access. */
typedef struct cbn_rows {
    char *data;
    ptrdiff_t stride;
    const cbn_kernels *half; /* for elements of a half type at `data`: its load and store */
    const cbn_access *access;
    ptrdiff_t position, column;
} cbn_rows;

/* Ordinary stores, or stores past the caches, which pay for arrays that are larger than these. */
typedef enum cbn_stores { CBN_ORDINARY, CBN_PAST_CACHES } cbn_stores;

typedef struct cbn_tile {
    ptrdiff_t rows, cols, run;
    void *scratch;     /* `slots` of slot_bytes each */
    size_t slot_bytes; /* of a double a column and 4 KiB on top */
    int slots;
    int in_order; /* the array is far from the core: maps read narrow rows one by one */
    cbn_stores stores;

    /* Set by cbn_tile_at: where the first row begins, and how many elements of its cache line lie
     * before it. */
    const char *first_row;
    ptrdiff_t skew;
} cbn_tile;

/* Numbers of each channel. A kernel uses those in its formula, yet every one must be readable:
 * float32 kernels look at all of them for channels that need float64. */
typedef struct cbn_channels {
    const double *mean, *mean_low;
    const double *invstd;
    const double *scale, *along_xhat, *along_one;
} cbn_channels;

/* What kernels/arithmetic.h does between kernels, on `count` channels. */
typedef struct cbn_arithmetic {
    /* Merges the moments of n2 rows into those of n1 rows; mean = base + offset. */
    void (*merge_moments)(double *base, double *offset, double *m2, const double *base2,
                          const double *offset2, const double *m2_2, ptrdiff_t n1, ptrdiff_t n2,
                          ptrdiff_t count);

    /* mean + mean_low = base + offset exactly, var = m2 / rows. */
    void (*statistics)(double *mean, double *mean_low, double *var, const double *base,
                       const double *offset, const double *m2, ptrdiff_t rows, ptrdiff_t count);

    /* invstd = 1 / sqrt(var + eps), 0 where var + eps == 0; invstd may be var. */
    void (*invstd)(double *invstd, const double *var, double eps, ptrdiff_t count);

    /* along = plus - scale * sum / n: what the sum contributes to every row, docs/math.md (16) and
     * (30). plus NULL means zeros; an infinite n, that of fixed statistics, gives plus alone. */
    void (*project)(double *along, const double *sum, const double *scale, double n,
                    const double *plus, ptrdiff_t count);
} cbn_arithmetic;

struct cbn_kernels {
    size_t itemsize; /* of an element in memory */
    size_t element;  /* of an element as the kernels below take it */

    /* n elements that are a stride apart, from memory and to it. */
    void (*load)(void *to, const char *from, ptrdiff_t stride, int swapped, ptrdiff_t n);
    void (*store)(char *to, const void *from, ptrdiff_t stride, int swapped, ptrdiff_t n);

    /* Centred sum of squares and mean = base + offset of each channel of the tile; base is near the
     * channel's values, so that offset is of the size of their spread and keeps its bits. */
    void (*moments)(double *base, double *offset, double *m2, cbn_rows x, cbn_tile tile);

    /* y = (x - mean) * scale + along_one, plus the residual if there is one, max(0, y) if relu. */
    void (*normalize)(cbn_rows y, cbn_rows x, cbn_rows residual, int relu, cbn_tile tile,
                      const cbn_channels *channels);

    /* dx = dy where the y of the map above is positive, 0 elsewhere. */
    void (*relu_backward)(cbn_rows dx, cbn_rows dy, cbn_rows x, cbn_rows residual, cbn_tile tile,
                          const cbn_channels *channels);

    /* sum(dy * xhat) and sum(dy) of each channel of the tile; where there is dx, also
     * dx = dy * scale. */
    void (*backward_sums)(double *sum_dy_xhat, double *sum_dy, cbn_rows dx, cbn_rows dy, cbn_rows x,
                          cbn_tile tile, const cbn_channels *channels);

    /* dx = dy * scale + xhat * along_xhat + along_one. */
    void (*backward_dx)(cbn_rows dx, cbn_rows dy, cbn_rows x, cbn_tile tile,
                        const cbn_channels *channels);

    /* dx = dy * scale. */
    void (*scale)(cbn_rows dx, cbn_rows dy, cbn_tile tile, const cbn_channels *channels);

    const cbn_arithmetic *arithmetic;
};

/* The maps from rows to rows, by their formulas in kernels/formulas. */
typedef enum cbn_map {
    CBN_NORMALIZE,
    CBN_NORMALIZE_RELU,
    CBN_NORMALIZE_RESIDUAL,
    CBN_NORMALIZE_RESIDUAL_RELU,
    CBN_RELU_BACKWARD,
    CBN_RELU_BACKWARD_RESIDUAL,
    CBN_BACKWARD_DX,
    CBN_SCALE,
    CBN_MAPS
} cbn_map;

/* The arrays that a map reads; those that its formula does not name are not there. */
typedef enum cbn_operand { CBN_X, CBN_DY, CBN_RESIDUAL, CBN_OPERANDS } cbn_operand;

/* What the float32 kernels hand on for channels that float32 cannot hold: the same sources with
 * float64 arithmetic, compiled once for all tiers (isa/wide.c). */
typedef struct cbn_wide_kernels {
    void (*moments_blocks)(double *const sum[2], const float *anchor, const cbn_rows *x,
                           const cbn_tile *tile);
    void (*backward_sums_range)(double *sum_dy_xhat, double *sum_dy, cbn_rows dx, cbn_rows dy,
                                cbn_rows x, cbn_tile tile, const cbn_channels *channels);
    void (*map_range)(cbn_map map, cbn_rows out, const cbn_rows in[CBN_OPERANDS], cbn_tile tile,
                      const cbn_channels *channels);
} cbn_wide_kernels;

extern const cbn_wide_kernels cbn_wide;

/* The sets of a tier, which isa/TIER_f32.c and isa/TIER_f64.c make. */
#define CBN_DECLARE_TIER(tier)                                                                     \
    extern const cbn_kernels cbn_float32_##tier, cbn_float16_##tier, cbn_bfloat16_##tier;          \
    extern const cbn_kernels cbn_float64_##tier;                                                   \
    extern const cbn_arithmetic cbn_arithmetic_##tier;
CBN_DECLARE_TIER(baseline)
CBN_DECLARE_TIER(avx2)
CBN_DECLARE_TIER(avx512)
CBN_DECLARE_TIER(neon)

#endif
