/* Makes one ISA tier: every kernel for every dtype, and the table that dispatch.c looks up.
 * CBN_ISA is the tier's tag. */
#include "../cbn.h"
#include "common.h"

#include "../dtypes/f32_wide.h"
#include "affine.h"
#include "moments.h"
#include "normalize.h"
#include "backward_sums.h"
#include "backward_dx.h"
#include "../dtypes/end.h"

#include "../dtypes/f32.h"
#include "affine.h"
#include "moments.h"
#include "normalize.h"
#include "backward_sums.h"
#include "backward_dx.h"
#include "../dtypes/end.h"

#include "../dtypes/f64.h"
#include "affine.h"
#include "moments.h"
#include "normalize.h"
#include "backward_sums.h"
#include "backward_dx.h"
#include "../dtypes/end.h"

#define CBN_TEXT_(a) #a
#define CBN_TEXT(a) CBN_TEXT_(a)
#define CBN_KERNELS(dtype, element)                                                                \
    {sizeof(element), CBN_JOIN(moments, dtype, CBN_ISA), CBN_JOIN(normalize, dtype, CBN_ISA),      \
     CBN_JOIN(backward_sums, dtype, CBN_ISA), CBN_JOIN(backward_dx, dtype, CBN_ISA)}

#define CBN_TIER_(isa) cbn_tier_##isa
#define CBN_TIER(isa) CBN_TIER_(isa)
const cbn_tier CBN_TIER(CBN_ISA) = {
    CBN_TEXT(CBN_ISA),
    {[CBN_FLOAT32] = CBN_KERNELS(f32, float), [CBN_FLOAT64] = CBN_KERNELS(f64, double)},
};
