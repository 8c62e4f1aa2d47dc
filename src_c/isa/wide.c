/* Float64 arithmetic on float32 rows, for the channels that float32 cannot hold. It is no tier: it
 * is compiled once, with the flags of the baseline, since such channels are rare and every tier
 * would give the same bytes. */
#include "../dtypes/f32_wide.h"

#include "../kernels/numbers.h"

#include "../kernels/kernels.h"

#include "../kernels/backward_sums.h"
#include "../kernels/map.h"

const cbn_wide_kernels cbn_wide = {
    .moments_blocks = moments_blocks,
    .backward_sums_range = backward_sums_range,
    .map_range = map_range,
};
