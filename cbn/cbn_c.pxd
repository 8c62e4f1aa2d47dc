# Mirror of src_c/cbn.h, nothing more.

cdef extern from "cbn.h" nogil:
    ctypedef enum cbn_status:
        CBN_OK

    ctypedef enum cbn_dtype:
        CBN_FLOAT32
        CBN_FLOAT64

    ctypedef struct cbn_array:
        void *data
        cbn_dtype dtype
        Py_ssize_t outer
        Py_ssize_t channels
        Py_ssize_t outer_stride

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

    const char *cbn_status_text(cbn_status status)
    cbn_status cbn_set_view(cbn_array *array, int ndim, const Py_ssize_t *shape,
                            const Py_ssize_t *strides, int axis)
    size_t cbn_scratch_size(Py_ssize_t rows, Py_ssize_t channels, int threads)
    size_t cbn_double_backward_scratch_size(Py_ssize_t rows, Py_ssize_t channels, int threads)

    void cbn_to_float64(double *to, const float *source, Py_ssize_t count)
    void cbn_to_float32(float *to, const double *source, Py_ssize_t count)
    int cbn_any_negative(const double *values, Py_ssize_t count)

    cbn_status cbn_forward(cbn_array *y, const cbn_statistics *statistics, const cbn_array *x,
                           const double *gamma, const double *beta, double eps,
                           const cbn_resources *resources)
    cbn_status cbn_inference(cbn_array *y, const cbn_statistics *statistics, const cbn_array *x,
                             const double *gamma, const double *beta, double eps,
                             const cbn_resources *resources)
    cbn_status cbn_backward(cbn_array *dx, double *dgamma, double *dbeta, const cbn_array *dy,
                            const cbn_array *x, const cbn_statistics *statistics,
                            const double *gamma, const cbn_resources *resources)
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
