/* What each operation reduces, which coefficients follow, and what it maps. Equation numbers are
 * those of docs/math.md. team.c takes places to threads, operation.c knows where numbers lie. */
#ifndef CBN_STEPS_H
#define CBN_STEPS_H

#include "operation.h"

/* The reductions with the most partial results, for the size of scratch. */
extern const cbn_reduction cbn_moments_reduction, cbn_double_sums_reduction;

extern const cbn_recipe cbn_moments_recipe;
extern const cbn_recipe cbn_forward_recipe;
extern const cbn_recipe cbn_inference_recipe;
extern const cbn_recipe cbn_backward_recipe;
extern const cbn_recipe cbn_backward_sums_recipe;
extern const cbn_recipe cbn_backward_apply_recipe;
extern const cbn_recipe cbn_gated_backward_recipe;
extern const cbn_recipe cbn_inference_backward_recipe;
extern const cbn_recipe cbn_jvp_recipe;
extern const cbn_recipe cbn_double_backward_recipe;

#endif
