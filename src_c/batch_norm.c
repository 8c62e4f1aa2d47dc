/* The operations: which arrays and parameters each one has. */
#include "cbn.h"
#include "operation.h"
#include "steps.h"

size_t cbn_scratch_size(const cbn_array *x, const cbn_selection *selection, int threads)
{
    const int all = selection == NULL || selection->positions == NULL;
    const cbn_plan plan = cbn_plan_for(all ? x->outer * x->inner : selection->count, x->channels,
                                       all ? x->inner : 1, threads, 0);
    return operation_scratch_size(&plan, &cbn_moments_reduction);
}

size_t cbn_plain_scratch_size(const cbn_array *x, int threads)
{
    const cbn_plan plan = cbn_plan_for(x->outer, x->channels, 1, threads, 1);
    return operation_scratch_size(&plan, &cbn_moments_reduction);
}

size_t cbn_double_backward_scratch_size(const cbn_array *x, int threads)
{
    const cbn_plan plan = cbn_plan_for(x->outer, x->channels, 1, threads, 1);
    return operation_scratch_size(&plan, &cbn_double_sums_reduction);
}

cbn_status cbn_moments(const cbn_statistics *statistics, const cbn_array *x, double eps,
                       const cbn_resources *resources)
{
    operation op = {.operands = {[X] = x}, .eps = eps, .statistics = *statistics};
    return operation_run(&op, &cbn_moments_recipe, 0, resources);
}

cbn_status cbn_forward(cbn_array *y, const cbn_statistics *statistics, const cbn_array *x,
                       const double *gamma, const double *beta, double eps,
                       const cbn_activation *activation, const cbn_resources *resources)
{
    operation op = {.operands = {[X] = x, [OUT] = y, [RESIDUAL] = activation->residual},
                    .relu = activation->relu,
                    .gamma = gamma,
                    .beta = beta,
                    .eps = eps,
                    .statistics = *statistics};
    return operation_run(&op, &cbn_forward_recipe, 0, resources);
}

cbn_status cbn_inference(cbn_array *y, const cbn_statistics *statistics, const cbn_array *x,
                         const double *gamma, const double *beta, double eps,
                         const cbn_activation *activation, const cbn_resources *resources)
{
    operation op = {.operands = {[X] = x, [OUT] = y, [RESIDUAL] = activation->residual},
                    .relu = activation->relu,
                    .gamma = gamma,
                    .beta = beta,
                    .eps = eps,
                    .statistics = *statistics};
    return operation_run(&op, &cbn_inference_recipe, 0, resources);
}

cbn_status cbn_backward(cbn_array *dx, double *dgamma, double *dbeta, const cbn_array *dy,
                        const cbn_array *x, const cbn_statistics *statistics, const double *gamma,
                        const cbn_resources *resources)
{
    operation op = {.operands = {[X] = x, [DY] = dy, [OUT] = dx},
                    .gamma = gamma,
                    .statistics = *statistics,
                    .dgamma = dgamma,
                    .dbeta = dbeta};
    return operation_run(&op, &cbn_backward_recipe, 0, resources);
}

cbn_status cbn_backward_sums(double *sum_dy_xhat, double *sum_dy, const cbn_array *dy,
                             const cbn_array *x, const cbn_statistics *statistics,
                             const cbn_resources *resources)
{
    operation op = {.operands = {[X] = x, [DY] = dy},
                    .statistics = *statistics,
                    .dgamma = sum_dy_xhat,
                    .dbeta = sum_dy};
    return operation_run(&op, &cbn_backward_sums_recipe, 0, resources);
}

cbn_status cbn_backward_apply(cbn_array *dx, const cbn_array *dy, const cbn_array *x,
                              const cbn_statistics *statistics, const double *gamma,
                              double *sum_dy_xhat, double *sum_dy, const cbn_resources *resources)
{
    operation op = {.operands = {[X] = x, [DY] = dy, [OUT] = dx},
                    .gamma = gamma,
                    .statistics = *statistics,
                    .dgamma = sum_dy_xhat,
                    .dbeta = sum_dy};
    return operation_run(&op, &cbn_backward_apply_recipe, 0, resources);
}

cbn_status cbn_gated_backward(cbn_array *dx, cbn_array *gated, double *dgamma, double *dbeta,
                              const cbn_array *dy, const cbn_array *x,
                              const cbn_statistics *statistics, const double *gamma,
                              const double *beta, const cbn_activation *activation,
                              const cbn_resources *resources)
{
    operation op = {.operands = {[X] = x,
                                 [DY] = gated,
                                 [OUT] = dx,
                                 [GATED] = dy,
                                 [RESIDUAL] = activation->residual},
                    .relu = activation->relu,
                    .gamma = gamma,
                    .beta = beta,
                    .statistics = *statistics,
                    .dgamma = dgamma,
                    .dbeta = dbeta};
    return operation_run(&op, &cbn_gated_backward_recipe, 0, resources);
}

cbn_status cbn_inference_backward(cbn_array *dx, double *dgamma, double *dbeta,
                                  const cbn_statistics *statistics, const cbn_array *dy,
                                  const cbn_array *x, const double *gamma, double eps,
                                  const cbn_resources *resources)
{
    operation op = {.operands = {[X] = x, [DY] = dy, [OUT] = dx},
                    .gamma = gamma,
                    .eps = eps,
                    .statistics = *statistics,
                    .dgamma = dgamma,
                    .dbeta = dbeta};
    return operation_run(&op, &cbn_inference_backward_recipe, 0, resources);
}

cbn_status cbn_jvp(cbn_array *y_dot, const cbn_array *x_dot, const cbn_array *x,
                   const cbn_statistics *statistics, const double *gamma, const double *gamma_dot,
                   const double *beta_dot, const cbn_resources *resources)
{
    operation op = {.operands = {[X] = x, [DY] = x_dot, [OUT] = y_dot},
                    .gamma = gamma,
                    .gamma_dot = gamma_dot,
                    .beta = beta_dot,
                    .statistics = *statistics};
    return operation_run(&op, &cbn_jvp_recipe, 1, resources);
}

cbn_status cbn_double_backward(cbn_array *g_dy, cbn_array *g_x, double *g_gamma,
                               const cbn_array *ddx, const cbn_array *dy, const cbn_array *x,
                               const cbn_statistics *statistics, const double *gamma,
                               const double *ddgamma, const double *ddbeta,
                               const cbn_resources *resources)
{
    operation op = {.operands = {[X] = x, [DY] = dy, [OUT] = g_x, [DDX] = ddx, [G_DY] = g_dy},
                    .gamma = gamma,
                    .gamma_dot = ddgamma,
                    .beta = ddbeta,
                    .statistics = *statistics,
                    .dgamma = g_gamma};
    return operation_run(&op, &cbn_double_backward_recipe, 1, resources);
}
