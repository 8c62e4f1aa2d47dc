/* The functions of cbn.h for other extension modules, which link no library: they are found in cbn
 * when it is imported. Include Python.h first, and call cbn_import() once in every file, when its
 * module is initialized; after that the functions have the names that cbn.h gives them.
 */
#ifndef CBN_API_H
#define CBN_API_H

#include "cbn.h"

/* Grows when a function or a type changes; functions are only ever added at the end. */
#define CBN_API_VERSION 1

typedef struct cbn_api {
    int version;
    size_t size; /* bytes of this struct */
    const char *(*status_text)(cbn_status status);
    cbn_status (*set_view)(cbn_array *array, int ndim, const ptrdiff_t *shape,
                           const ptrdiff_t *strides, int axis);
    size_t (*scratch_size)(const cbn_array *x, const cbn_selection *selection, int threads);
    size_t (*plain_scratch_size)(const cbn_array *x, int threads);
    size_t (*double_backward_scratch_size)(const cbn_array *x, int threads);
    void (*to_float64)(double *to, const float *from, ptrdiff_t count);
    void (*to_float32)(float *to, const double *from, ptrdiff_t count);
    int (*any_negative)(const double *values, ptrdiff_t count);
    cbn_status (*moments)(const cbn_statistics *statistics, const cbn_array *x, double eps,
                          const cbn_resources *resources);
    cbn_status (*forward)(cbn_array *y, const cbn_statistics *statistics, const cbn_array *x,
                          const double *gamma, const double *beta, double eps,
                          const cbn_activation *activation, const cbn_resources *resources);
    cbn_status (*inference)(cbn_array *y, const cbn_statistics *statistics, const cbn_array *x,
                            const double *gamma, const double *beta, double eps,
                            const cbn_activation *activation, const cbn_resources *resources);
    cbn_status (*backward)(cbn_array *dx, double *dgamma, double *dbeta, const cbn_array *dy,
                           const cbn_array *x, const cbn_statistics *statistics,
                           const double *gamma, const cbn_resources *resources);
    cbn_status (*backward_sums)(double *sum_dy_xhat, double *sum_dy, const cbn_array *dy,
                                const cbn_array *x, const cbn_statistics *statistics,
                                const cbn_resources *resources);
    cbn_status (*backward_apply)(cbn_array *dx, const cbn_array *dy, const cbn_array *x,
                                 const cbn_statistics *statistics, const double *gamma,
                                 double *sum_dy_xhat, double *sum_dy,
                                 const cbn_resources *resources);
    cbn_status (*gated_backward)(cbn_array *dx, cbn_array *gated, double *dgamma, double *dbeta,
                                 const cbn_array *dy, const cbn_array *x,
                                 const cbn_statistics *statistics, const double *gamma,
                                 const double *beta, const cbn_activation *activation,
                                 const cbn_resources *resources);
    cbn_status (*inference_backward)(cbn_array *dx, double *dgamma, double *dbeta,
                                     const cbn_statistics *statistics, const cbn_array *dy,
                                     const cbn_array *x, const double *gamma, double eps,
                                     const cbn_resources *resources);
    cbn_status (*jvp)(cbn_array *y_dot, const cbn_array *x_dot, const cbn_array *x,
                      const cbn_statistics *statistics, const double *gamma,
                      const double *gamma_dot, const double *beta_dot,
                      const cbn_resources *resources);
    cbn_status (*double_backward)(cbn_array *g_dy, cbn_array *g_x, double *g_gamma,
                                  const cbn_array *ddx, const cbn_array *dy, const cbn_array *x,
                                  const cbn_statistics *statistics, const double *gamma,
                                  const double *ddgamma, const double *ddbeta,
                                  const cbn_resources *resources);
    const char *(*isa_name)(int tier);
    int (*isa_supported)(int tier);
    cbn_status (*isa_choose)(void);
    const char *(*isa_chosen)(void);
    int (*openmp_version)(void);
    int (*openmp_max_threads)(void);
    void (*put)(void *to, ptrdiff_t stride, const void *from, size_t size, ptrdiff_t count);
    void (*merge_moments)(cbn_statistics *statistics, const cbn_statistics *other,
                          ptrdiff_t channels);
    void (*merge_sums)(double *sum, double *low, const double *other, const double *other_low,
                       ptrdiff_t count);
    cbn_status (*set_tensor_view)(cbn_array *array, int ndim, const ptrdiff_t *shape,
                                  const ptrdiff_t *strides, int axis);
    void (*average_float32)(float *running, const double *value, double factor, double momentum,
                            ptrdiff_t count);
    void (*average_float64)(double *running, const double *value, double factor, double momentum,
                            ptrdiff_t count);
} cbn_api;

#ifdef CBN_API_PROVIDER

static const cbn_api cbn_api_table = {
    CBN_API_VERSION,
    sizeof(cbn_api),
    cbn_status_text,
    cbn_set_view,
    cbn_scratch_size,
    cbn_plain_scratch_size,
    cbn_double_backward_scratch_size,
    cbn_to_float64,
    cbn_to_float32,
    cbn_any_negative,
    cbn_moments,
    cbn_forward,
    cbn_inference,
    cbn_backward,
    cbn_backward_sums,
    cbn_backward_apply,
    cbn_gated_backward,
    cbn_inference_backward,
    cbn_jvp,
    cbn_double_backward,
    cbn_isa_name,
    cbn_isa_supported,
    cbn_isa_choose,
    cbn_isa_chosen,
    cbn_openmp_version,
    cbn_openmp_max_threads,
    cbn_put,
    cbn_merge_moments,
    cbn_merge_sums,
    cbn_set_tensor_view,
    cbn_average_float32,
    cbn_average_float64,
};

#else

static const cbn_api *cbn_imported;

/* 0, or -1 with an exception set: ImportError if cbn is missing or of another version. */
static inline int cbn_import(void)
{
    const cbn_api *api = (const cbn_api *)PyCapsule_Import("cbn._core._C_API", 0);
    if (api == NULL)
        return -1;
    if (api->version != CBN_API_VERSION || api->size < sizeof(cbn_api)) {
        PyErr_Format(PyExc_ImportError,
                     "compiled for version %d (%zu bytes) of cbn's C API, the installed cbn has "
                     "version %d (%zu bytes)",
                     CBN_API_VERSION, sizeof(cbn_api), api->version, api->size);
        return -1;
    }
    cbn_imported = api;
    return 0;
}

#define cbn_status_text (cbn_imported->status_text)
#define cbn_set_view (cbn_imported->set_view)
#define cbn_scratch_size (cbn_imported->scratch_size)
#define cbn_plain_scratch_size (cbn_imported->plain_scratch_size)
#define cbn_double_backward_scratch_size (cbn_imported->double_backward_scratch_size)
#define cbn_to_float64 (cbn_imported->to_float64)
#define cbn_to_float32 (cbn_imported->to_float32)
#define cbn_any_negative (cbn_imported->any_negative)
#define cbn_moments (cbn_imported->moments)
#define cbn_forward (cbn_imported->forward)
#define cbn_inference (cbn_imported->inference)
#define cbn_backward (cbn_imported->backward)
#define cbn_backward_sums (cbn_imported->backward_sums)
#define cbn_backward_apply (cbn_imported->backward_apply)
#define cbn_gated_backward (cbn_imported->gated_backward)
#define cbn_inference_backward (cbn_imported->inference_backward)
#define cbn_jvp (cbn_imported->jvp)
#define cbn_double_backward (cbn_imported->double_backward)
#define cbn_isa_name (cbn_imported->isa_name)
#define cbn_isa_supported (cbn_imported->isa_supported)
#define cbn_isa_choose (cbn_imported->isa_choose)
#define cbn_isa_chosen (cbn_imported->isa_chosen)
#define cbn_openmp_version (cbn_imported->openmp_version)
#define cbn_openmp_max_threads (cbn_imported->openmp_max_threads)
#define cbn_put (cbn_imported->put)
#define cbn_merge_moments (cbn_imported->merge_moments)
#define cbn_merge_sums (cbn_imported->merge_sums)
#define cbn_set_tensor_view (cbn_imported->set_tensor_view)
#define cbn_average_float32 (cbn_imported->average_float32)
#define cbn_average_float64 (cbn_imported->average_float64)

#endif

#endif
