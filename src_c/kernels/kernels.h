/* What a kernel set offers: the four kernels for one dtype on one ISA tier.
 *
 * A kernel works on a tile: `rows` rows of `cols` adjacent elements, rows
 * a byte stride apart. Per-channel arrays are float64 and point at the tile's first channel.
 *
 * One answer: what a kernel returns for a channel depends on that channel's values and on `rows`,
 * never on `cols`, the strides, or the tier. Hence sums run over rows in a fixed order and
 * vectors run over channels.
 */
#ifndef CBN_KERNELS_H
#define CBN_KERNELS_H

#include "../cbn.h"
#include "../compiler.h"

/* Rows summed in the working type before they are folded into float64. 32 keeps the error of a
 * float32 sum at 2 to 4 units; 8 divides it. */
#define CBN_BLOCK_ROWS 32

#define CBN_WORK_ARRAYS 13

/* Where rows start and how many bytes apart they are. */
typedef struct cbn_input {
    const char *data;
    ptrdiff_t stride;
} cbn_input;

typedef struct cbn_output {
    char *data;
    ptrdiff_t stride;
} cbn_output;

typedef struct cbn_tile {
    ptrdiff_t rows, cols;
    void *work;        /* CBN_WORK_ARRAYS of slot_bytes each */
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
} cbn_channels;

typedef struct cbn_kernels {
    size_t itemsize;

    /* Centred sum of squares and mean = base + offset of each channel of the tile; base is near the
     * channel's values, so that offset is of the size of their spread and keeps its bits. */
    void (*moments)(double *base, double *offset, double *m2, cbn_input x, cbn_tile tile);

    /* y = (x - mean) * scale + along_one. */
    void (*normalize)(cbn_output y, cbn_input x, cbn_tile tile, const cbn_channels *channels);

    /* sum(dy) and sum(dy * xhat) of each channel of the tile; dx = dy * scale where dx has data. */
    void (*backward_sums)(double *sum_dy, double *sum_dy_xhat, cbn_output dx, cbn_input dy,
                          cbn_input x, cbn_tile tile, const cbn_channels *channels);

    /* dx = dy * scale + xhat * along_xhat + along_one. */
    void (*backward_dx)(cbn_output dx, cbn_input dy, cbn_input x, cbn_tile tile,
                        const cbn_channels *channels);
} cbn_kernels;

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
