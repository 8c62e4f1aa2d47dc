/* Float64 arithmetic on float32 rows, for the channels that float32 cannot hold. No tier: it is
 * compiled once, with the flags of the baseline, since such channels are rare and every tier would
 * give the same bytes. */
#define CBN_ISA wide
#include "convert.h"
#include "stream.h"

#include "../kernels/common.h"
#include "../dtypes/f32_wide.h"
#include "../kernels/affine.h"
#include "../kernels/parts.h"
#include "../kernels/moments.h"
#include "../kernels/normalize.h"
#include "../kernels/backward_sums.h"
#include "../kernels/backward_dx.h"

const cbn_wide_kernels cbn_wide = {
    CBN_NAME(moments_blocks),
    CBN_NAME(normalize_run),
    CBN_NAME(backward_sums_run),
    CBN_NAME(backward_dx_run),
};
