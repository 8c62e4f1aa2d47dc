/* Makes one ISA tier: every kernel for every dtype, and the table that dispatch.c looks up.
 * CBN_ISA is the tier's tag. */
#include "../cbn.h"
#include "common.h"
#include "elements.h"
#include "arithmetic.h"

#include "../dtypes/f32.h"
#include "affine.h"
#include "parts.h"
#include "moments.h"
#include "normalize.h"
#include "backward_sums.h"
#include "backward_dx.h"
#include "../dtypes/end.h"

#include "../dtypes/f32_half.h"
#include "affine.h"
#include "parts.h"
#include "moments.h"
#include "normalize.h"
#include "backward_sums.h"
#include "backward_dx.h"
#include "../dtypes/end.h"

#include "../dtypes/f64.h"
#include "affine.h"
#include "parts.h"
#include "moments.h"
#include "normalize.h"
#include "backward_sums.h"
#include "backward_dx.h"
#include "../dtypes/end.h"

#define CBN_TEXT_(a) #a
#define CBN_TEXT(a) CBN_TEXT_(a)
#define CBN_KERNELS(stored, bytes, dtype, type)                                                    \
    {bytes,                                                                                        \
     sizeof(type),                                                                                 \
     CBN_JOIN(load, stored, CBN_ISA),                                                              \
     CBN_JOIN(store, stored, CBN_ISA),                                                             \
     CBN_JOIN(moments, dtype, CBN_ISA),                                                            \
     CBN_JOIN(normalize, dtype, CBN_ISA),                                                          \
     CBN_JOIN(backward_sums, dtype, CBN_ISA),                                                      \
     CBN_JOIN(backward_dx, dtype, CBN_ISA),                                                        \
     &CBN_JOIN(channels, arithmetic, CBN_ISA)}

#define CBN_TIER_(isa) cbn_tier_##isa
#define CBN_TIER(isa) CBN_TIER_(isa)
const cbn_tier CBN_TIER(CBN_ISA) = {
    CBN_TEXT(CBN_ISA),
    {[CBN_FLOAT32] = CBN_KERNELS(f32, 4, f32, float),
     [CBN_FLOAT64] = CBN_KERNELS(f64, 8, f64, double),
     [CBN_FLOAT16] = CBN_KERNELS(f16, 2, f32_half, float),
     [CBN_BFLOAT16] = CBN_KERNELS(bf16, 2, f32_half, float)},
};
