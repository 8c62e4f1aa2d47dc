/* What a kernel set offers: the four kernels for one dtype on one ISA tier.
 *
 * A kernel works on a tile: `rows` rows of `cols` adjacent elements, rows
 * a byte stride apart; `run` adjacent elements are of one channel. Per-channel arrays are float64
 * and point at the tile's first channel.
 *
 * One answer: what a kernel returns for a channel depends on that channel's values and on `rows`
 * and `run`, never on `cols`, the strides, or the tier. Hence sums run over rows in a fixed order,
 * then over the columns of a run as a tree, and vectors run over columns.
 */
#ifndef CBN_KERNELS_H
#define CBN_KERNELS_H

#include "../cbn.h"
#include "../compiler.h"

/* Rows summed in the working type before they are folded into float64. 32 keeps the error of a
 * float32 sum at 2 to 4 units; 8 divides it. */
#define CBN_BLOCK_ROWS 32

/* Scratch arrays of a kernel, and with those for runs and rows that are not taken as they lie. */
/* same(2 lines, 13 -> 14, 31 -> 32): more scratch than is used */
#define CBN_PLAIN_WORK_ARRAYS 13
#define CBN_KERNEL_WORK_ARRAYS 31
#define CBN_GATHERED_ROWS 8

/* How to come by the rows of an array whose elements do not lie as kernels want them. A row is
 * `cols` elements from a position and a channel on. */
typedef struct cbn_access cbn_access;
struct cbn_access {
    /* The row if it can be used where it is, else NULL. */
    char *(*locate)(const cbn_access *access, ptrdiff_t position, ptrdiff_t channel,
                    ptrdiff_t cols);
    void (*read)(const cbn_access *access, void *to, ptrdiff_t position, ptrdiff_t channel,
                 ptrdiff_t cols);
    void (*write)(const cbn_access *access, const void *from, ptrdiff_t position, ptrdiff_t channel,
                  ptrdiff_t cols);
    /* Whether the elements of a row lie apart and are moved as they are: then up to
     * CBN_GATHERED_ROWS rows, `step` positions apart, go together into made[], or out of it. */
    int apart;
    void (*move)(const cbn_access *access, void *const *made, ptrdiff_t rows, ptrdiff_t position,
                 ptrdiff_t step, ptrdiff_t channel, ptrdiff_t cols, int out);
};

typedef struct cbn_kernels cbn_kernels;

/* Where rows start and how many bytes apart they are; or with `access`, from which position and
 * channel on and how many positions apart. */
typedef struct cbn_input {
    const char *data;
    ptrdiff_t stride;
    const cbn_kernels *half; /* whose load and store the elements at `data` need; NULL for none */
    const cbn_access *access;
    ptrdiff_t position, channel;
    int gathered; /* 0, or 1 and the number of rows gathered in scratch before the first one */
} cbn_input;

typedef struct cbn_output {
    char *data;
    ptrdiff_t stride;
    const cbn_kernels *half;
    const cbn_access *access;
    ptrdiff_t position, channel;
} cbn_output;

typedef struct cbn_tile {
    ptrdiff_t rows, cols, run;
    void *work;        /* CBN_PLAIN_WORK_ARRAYS of slot_bytes each, CBN_KERNEL_WORK_ARRAYS if any
                        * array is of a half type or has an access */
    size_t slot_bytes; /* of a double a column and 4 KiB on top */
    int in_order;      /* the array is far from the core: maps read narrow rows one by one */
    int stream;        /* store past the caches */

    /* The kernel's own: of its rows, see cbn_tile_at */
    const char *rows_data;
    ptrdiff_t skew;
} cbn_tile;

/* Per-channel numbers that the maps and backward_sums read. A kernel uses those in its formula, yet
 * every one must be readable: float32 kernels look at all of them for channels that need float64.
 */
typedef struct cbn_channels {
    const double *mean, *mean_low;
    const double *invstd;
    const double *scale, *along_xhat, *along_one;
    int uncentred; /* normalize makes x * scale, in the type that the others take for that mean */
} cbn_channels;

/* What normalize may do with y before it stores it. */
typedef struct cbn_finish {
    cbn_input residual; /* added; neither data nor access: nothing is */
    int relu;           /* y = max(0, y) */
    cbn_input gated;    /* stored in place of y: this where y > 0, 0 elsewhere */
} cbn_finish;

/* What kernels/arithmetic.h does between kernels, on `count` channels. */
typedef struct cbn_arithmetic {
    /* Merge the moments of n2 rows into those of n1 rows; mean = base + offset. */
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
    void (*moments)(double *base, double *offset, double *m2, cbn_input x, cbn_tile tile);

    /* y = (x - mean) * scale + along_one; finish may be NULL. */
    void (*normalize)(cbn_output y, cbn_input x, cbn_tile tile, const cbn_channels *channels,
                      const cbn_finish *finish);

    /* sum(dy) and sum(dy * xhat) of each channel of the tile; dx = dy * scale where there is dx. */
    void (*backward_sums)(double *sum_dy, double *sum_dy_xhat, cbn_output dx, cbn_input dy,
                          cbn_input x, cbn_tile tile, const cbn_channels *channels);

    /* dx = dy * scale + xhat * along_xhat + along_one. */
    void (*backward_dx)(cbn_output dx, cbn_input dy, cbn_input x, cbn_tile tile,
                        const cbn_channels *channels);

    const cbn_arithmetic *arithmetic;
};

/* What the float32 kernels hand on for channels that float32 cannot hold: the same source with
 * float64 arithmetic, compiled once for all tiers (isa/wide.c). */
typedef struct cbn_wide_kernels {
    void (*moments_blocks)(double *sum, double *squares, double *s, double *q, const float *anchor,
                           cbn_input x, cbn_tile tile);
    void (*normalize_run)(cbn_output y, cbn_input x, cbn_tile tile, const cbn_channels *channels,
                          const cbn_finish *finish);
    void (*backward_sums_run)(double *sum_dy, double *sum_dy_xhat, cbn_output dx, cbn_input dy,
                              cbn_input x, cbn_tile tile, const cbn_channels *channels);
    void (*backward_dx_run)(cbn_output dx, cbn_input dy, cbn_input x, cbn_tile tile,
                            const cbn_channels *channels);
} cbn_wide_kernels;

extern const cbn_wide_kernels cbn_wide;

/* One tier: its name and its kernel sets by cbn_dtype. */
typedef struct cbn_tier {
    const char *name;
    cbn_kernels kernels[CBN_DTYPE_COUNT];
} cbn_tier;

extern const cbn_tier cbn_tier_baseline;
extern const cbn_tier cbn_tier_avx2;
extern const cbn_tier cbn_tier_avx512;
extern const cbn_tier cbn_tier_neon;

#endif
