/* What each operation reduces, which coefficients follow, what it maps. Equation numbers are those
 * of docs/math.md. How tiles reach threads is work.c's business, where their numbers lie
 * operation.c's.
 */
#ifndef CBN_STEPS_H
#define CBN_STEPS_H

#include "operation.h"

extern const cbn_steps cbn_moments_steps;
extern const cbn_steps cbn_forward_steps;
extern const cbn_steps cbn_inference_steps;
extern const cbn_steps cbn_backward_steps;
extern const cbn_steps cbn_backward_sums_steps;
extern const cbn_steps cbn_backward_apply_steps;
extern const cbn_steps cbn_gated_backward_steps;
extern const cbn_steps cbn_inference_backward_steps;
extern const cbn_steps cbn_jvp_steps;
extern const cbn_steps cbn_double_backward_steps;

#endif
