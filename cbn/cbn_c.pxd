# Mirror of src_c/cbn.h, nothing more.

cdef extern from "cbn.h" nogil:
    ctypedef enum cbn_status:
        CBN_OK

    ctypedef enum cbn_dtype:
        CBN_FLOAT32
        CBN_FLOAT64
        CBN_FLOAT16
        CBN_BFLOAT16

    ctypedef struct cbn_array:
        void *data
        cbn_dtype dtype
        int swapped
        Py_ssize_t outer
        Py_ssize_t channels
        Py_ssize_t inner
        Py_ssize_t *strides

    ctypedef struct cbn_selection:
        const Py_ssize_t *positions
        Py_ssize_t count

    ctypedef struct cbn_activation:
        const cbn_array *residual
        int relu

    ctypedef struct cbn_statistics:
        double *mean
        double *mean_low
        double *var
        double *invstd
        double count

    ctypedef struct cbn_resources:
        int threads
        void *scratch
        size_t scratch_size
        cbn_selection selection

    const char *cbn_status_text(cbn_status status)
    cbn_status cbn_set_view(cbn_array *array, int ndim, const Py_ssize_t *shape,
                            const Py_ssize_t *strides, int axis)
    cbn_status cbn_set_tensor_view(cbn_array *array, int ndim, const Py_ssize_t *shape,
                                   const Py_ssize_t *strides, int axis)
    size_t cbn_scratch_size(const cbn_array *x, const cbn_selection *selection, int threads)
    size_t cbn_plain_scratch_size(const cbn_array *x, int threads)
    size_t cbn_double_backward_scratch_size(const cbn_array *x, int threads)

    void cbn_to_float64(double *to, const float *source, Py_ssize_t count)
    void cbn_to_float32(float *to, const double *source, Py_ssize_t count)
    void cbn_average_float32(float *running, const double *value, double factor, double momentum,
                             Py_ssize_t count)
    void cbn_average_float64(double *running, const double *value, double factor, double momentum,
                             Py_ssize_t count)
    int cbn_any_negative(const double *values, Py_ssize_t count)
    void cbn_put(void *to, Py_ssize_t stride, const void *source, size_t size, Py_ssize_t count)

    cbn_status cbn_moments(const cbn_statistics *statistics, const cbn_array *x, double eps,
                           const cbn_resources *resources)
    void cbn_merge_moments(cbn_statistics *statistics, const cbn_statistics *other,
                           Py_ssize_t channels)
    void cbn_merge_sums(double *sum, double *low, const double *other, const double *other_low,
                        Py_ssize_t count)
    cbn_status cbn_forward(cbn_array *y, const cbn_statistics *statistics, const cbn_array *x,
                           const double *gamma, const double *beta, double eps,
                           const cbn_activation *activation, const cbn_resources *resources)
    cbn_status cbn_inference(cbn_array *y, const cbn_statistics *statistics, const cbn_array *x,
                             const double *gamma, const double *beta, double eps,
                             const cbn_activation *activation, const cbn_resources *resources)
    cbn_status cbn_backward(cbn_array *dx, double *dgamma, double *dbeta, const cbn_array *dy,
                            const cbn_array *x, const cbn_statistics *statistics,
                            const double *gamma, const cbn_resources *resources)
    cbn_status cbn_gated_backward(cbn_array *dx, cbn_array *gated, double *dgamma, double *dbeta,
                                  const cbn_array *dy, const cbn_array *x,
                                  const cbn_statistics *statistics, const double *gamma,
                                  const double *beta, const cbn_activation *activation,
                                  const cbn_resources *resources)
    cbn_status cbn_backward_sums(double *sum_dy_xhat, double *sum_dy, const cbn_array *dy,
                                 const cbn_array *x, const cbn_statistics *statistics,
                                 const cbn_resources *resources)
    cbn_status cbn_backward_apply(cbn_array *dx, const cbn_array *dy, const cbn_array *x,
                                  const cbn_statistics *statistics, const double *gamma,
                                  double *sum_dy_xhat, double *sum_dy,
                                  const cbn_resources *resources)
    cbn_status cbn_inference_backward(cbn_array *dx, double *dgamma, double *dbeta,
                                      const cbn_statistics *statistics, const cbn_array *dy,
                                      const cbn_array *x, const double *gamma, double eps,
                                      const cbn_resources *resources)

    cbn_status cbn_jvp(cbn_array *y_dot, const cbn_array *x_dot, const cbn_array *x,
                       const cbn_statistics *statistics, const double *gamma,
                       const double *gamma_dot, const double *beta_dot,
                       const cbn_resources *resources)
    cbn_status cbn_double_backward(cbn_array *g_dy, cbn_array *g_x, double *g_gamma,
                                   const cbn_array *ddx, const cbn_array *dy, const cbn_array *x,
                                   const cbn_statistics *statistics, const double *gamma,
                                   const double *ddgamma, const double *ddbeta,
                                   const cbn_resources *resources)

    const char *cbn_isa_name(int tier)
    int cbn_isa_supported(int tier)
    cbn_status cbn_isa_choose()
    const char *cbn_isa_chosen()

    int cbn_openmp_version()
    int cbn_openmp_max_threads()
