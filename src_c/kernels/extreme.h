/* Channels that float32 cannot hold go to the wide kernels: a tile is taken in ranges of channels,
 * all of which are ordinary or all of which are extreme. */
#ifndef CBN_EXTREME_H
#define CBN_EXTREME_H

#include "backward_sums.h"
#include "map.h"

/* Float32 arithmetic serves a channel whose mean and factors neither overflow nor lose bits to
 * underflow with any float32 of interest; up to 2^102 no x - mean of finite float32 overflows. NaN
 * counts as ordinary, since it spoils its channel either way. */
CBN_INLINE int is_extreme_factor(double factor)
{
    const double size = fabs(factor);
    /* same(120 -> 121, < -> <=, > -> >=): both ways serve at the threshold */
    return (size > 0x1p100) | ((size < 0x1p-120) & (size > 0));
}

/* `with_xhat` if the kernel reads along_xhat, which is invstd if it does not. */
CBN_INLINE int is_extreme(const cbn_channels *channels, ptrdiff_t j, int with_xhat)
{
    const double along_xhat = with_xhat ? channels->along_xhat[j] : 0;
    /* same(> -> >=): both ways serve at the threshold */
    return (fabs(channels->mean[j]) > 0x1p102) | (fabs(channels->along_one[j]) > 0x1p100) |
           is_extreme_factor(channels->scale[j]) | is_extreme_factor(along_xhat) |
           is_extreme_factor(along_xhat * channels->invstd[j]);
}

CBN_INLINE int any_extreme(const cbn_channels *channels, ptrdiff_t count, int with_xhat)
{
    int any = 0;
    for (ptrdiff_t j = 0; j < count; ++j) {
        any |= is_extreme(channels, j, with_xhat);
    }
    return any;
}

/* How many channels from the first on are of its kind; `extreme` says of which. To look for any
 * vectorises and settles nearly every call. */
static ptrdiff_t range_of_a_kind(int *extreme, const cbn_channels *channels, ptrdiff_t count)
{
    const int with_xhat = channels->along_xhat != channels->invstd;
    *extreme = 0;
    if (!HAS_WIDE ||
        !(with_xhat ? any_extreme(channels, count, 1) : any_extreme(channels, count, 0))) {
        return count;
    }
    *extreme = is_extreme(channels, 0, with_xhat);
    ptrdiff_t j = 1;
    while (j < count && is_extreme(channels, j, with_xhat) == *extreme) {
        ++j;
    }
    return j;
}

static cbn_channels after_channels(cbn_channels channels, ptrdiff_t count)
{
    return (cbn_channels){.mean = channels.mean + count,
                          .mean_low = channels.mean_low + count,
                          .invstd = channels.invstd + count,
                          .scale = channels.scale + count,
                          .along_xhat = channels.along_xhat + count,
                          .along_one = channels.along_one + count};
}

/* --- maps ------------------------------------------------------------------------------------ */

static void map_tile(cbn_map map, cbn_rows out, const cbn_rows operands[CBN_OPERANDS],
                     cbn_tile tile, const cbn_channels *channels)
{
    const int first = map_kinds[map].operands & X ? CBN_X : CBN_DY;
    cbn_channels rest = *channels;
    cbn_rows in[CBN_OPERANDS] = {operands[CBN_X], operands[CBN_DY], operands[CBN_RESIDUAL]};
    for (ptrdiff_t left = channels_of_tile(&tile), count; left > 0; left -= count) {
        int extreme;
        count = range_of_a_kind(&extreme, &rest, left);
        tile.cols = count * tile.run;
        place_tile(&tile, &in[first]);
        (extreme ? cbn_wide.map_range : map_range)(map, out, in, tile, &rest);
        rest = after_channels(rest, count);
        out = after_columns(out, tile.cols);
        for (int operand = 0; operand < CBN_OPERANDS; ++operand) {
            in[operand] = after_columns(in[operand], tile.cols);
        }
    }
}

static void normalize(cbn_rows y, cbn_rows x, cbn_rows residual, int relu, cbn_tile tile,
                      const cbn_channels *channels)
{
    static const cbn_map maps[2][2] = {
        {CBN_NORMALIZE, CBN_NORMALIZE_RELU},
        {CBN_NORMALIZE_RESIDUAL, CBN_NORMALIZE_RESIDUAL_RELU},
    };
    const cbn_rows in[CBN_OPERANDS] = {[CBN_X] = x, [CBN_RESIDUAL] = residual};
    map_tile(maps[is_given(&residual)][relu != 0], y, in, tile, channels);
}

static void relu_backward(cbn_rows dx, cbn_rows dy, cbn_rows x, cbn_rows residual, cbn_tile tile,
                          const cbn_channels *channels)
{
    const cbn_rows in[CBN_OPERANDS] = {[CBN_X] = x, [CBN_DY] = dy, [CBN_RESIDUAL] = residual};
    map_tile(is_given(&residual) ? CBN_RELU_BACKWARD_RESIDUAL : CBN_RELU_BACKWARD, dx, in, tile,
             channels);
}

static void backward_dx(cbn_rows dx, cbn_rows dy, cbn_rows x, cbn_tile tile,
                        const cbn_channels *channels)
{
    const cbn_rows in[CBN_OPERANDS] = {[CBN_X] = x, [CBN_DY] = dy};
    map_tile(CBN_BACKWARD_DX, dx, in, tile, channels);
}

static void scale(cbn_rows dx, cbn_rows dy, cbn_tile tile, const cbn_channels *channels)
{
    const cbn_rows in[CBN_OPERANDS] = {[CBN_DY] = dy};
    map_tile(CBN_SCALE, dx, in, tile, channels);
}

/* --- sums ------------------------------------------------------------------------------------ */

/* Out of the range in which float32 sums keep their bits. No terms, no sum: zero is in it. */
CBN_INLINE int is_extreme_sum(double sum)
{
    const double size = fabs(sum);
    /* same(100 -> 101, <= -> <, >= -> >): bits are kept there */
    return !((size >= 0x1p-100) & (size <= 0x1p126)) & (size != 0);
}

CBN_INLINE int are_extreme_sums(double sum_dy_xhat, double sum_dy)
{
    return is_extreme_sum(sum_dy_xhat) | is_extreme_sum(sum_dy);
}

/* Those channels once more, one at a time, for they are rare. */
static void sum_extreme_again(double *sum_dy_xhat, double *sum_dy, cbn_rows dy, cbn_rows x,
                              cbn_tile tile, const cbn_channels *channels)
{
    const cbn_rows none = {.data = NULL};
    const ptrdiff_t count = channels_of_tile(&tile);
    /* same(0 -> 1): to look at every channel is a matter of speed */
    int any = 0;
    for (ptrdiff_t c = 0; c < count; ++c) {
        any |= are_extreme_sums(sum_dy_xhat[c], sum_dy[c]);
    }
    tile.cols = tile.run;
    for (ptrdiff_t c = 0; any && c < count; ++c) {
        if (are_extreme_sums(sum_dy_xhat[c], sum_dy[c])) {
            const cbn_channels channel = after_channels(*channels, c);
            cbn_wide.backward_sums_range(&sum_dy_xhat[c], &sum_dy[c], none,
                                         after_columns(dy, c * tile.cols),
                                         after_columns(x, c * tile.cols), tile, &channel);
        }
    }
}

static void backward_sums(double *sum_dy_xhat, double *sum_dy, cbn_rows dx, cbn_rows dy, cbn_rows x,
                          cbn_tile tile, const cbn_channels *channels)
{
    cbn_channels rest = *channels;
    for (ptrdiff_t left = channels_of_tile(&tile), count; left > 0; left -= count) {
        int extreme;
        count = range_of_a_kind(&extreme, &rest, left);
        tile.cols = count * tile.run;
        place_tile(&tile, &x);
        (extreme ? cbn_wide.backward_sums_range : backward_sums_range)(sum_dy_xhat, sum_dy, dx, dy,
                                                                       x, tile, &rest);
        if (HAS_WIDE && !extreme) {
            sum_extreme_again(sum_dy_xhat, sum_dy, dy, x, tile, &rest);
        }
        rest = after_channels(rest, count);
        sum_dy += count;
        sum_dy_xhat += count;
        dx = after_columns(dx, tile.cols);
        dy = after_columns(dy, tile.cols);
        x = after_columns(x, tile.cols);
    }
}

#endif
