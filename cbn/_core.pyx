"""Typed memoryviews to C views: one call down with the GIL released, the status to an exception.

Callers check every argument first (_check.py); a status other than CBN_OK raised here is a
mistake of the library. Statistics are one C-contiguous (4, D) float64 array with the rows mean,
mean_low, var, invstd.
"""
from cpython.mem cimport PyMem_RawFree, PyMem_RawMalloc

from cbn cimport cbn_c

ctypedef fused real:
    float
    double


cdef int acquire(cbn_c.cbn_resources *resources, size_t scratch_size, int threads) except -1:
    resources.threads = threads
    resources.scratch_size = scratch_size
    resources.scratch = PyMem_RawMalloc(resources.scratch_size)
    if resources.scratch == NULL:
        raise MemoryError(f"scratch of {resources.scratch_size} bytes")
    return 0


cdef int release(cbn_c.cbn_resources *resources, cbn_c.cbn_status status) except -1:
    PyMem_RawFree(resources.scratch)
    return raise_status(status)


cdef int raise_status(cbn_c.cbn_status status) except -1:
    if status != cbn_c.CBN_OK:
        raise RuntimeError("cbn: " + cbn_c.cbn_status_text(status).decode())
    return 0


cdef int array_of(cbn_c.cbn_array *array, const real[:, :] values) except -1:
    array.data = <void *> &values[0, 0]
    array.dtype = cbn_c.CBN_FLOAT32 if real is float else cbn_c.CBN_FLOAT64
    return raise_status(cbn_c.cbn_set_view(array, 2, &values.shape[0], &values.strides[0], 1))


cdef cbn_c.cbn_statistics statistics_of(const double[:, ::1] stats, double count) noexcept:
    cdef double *first = <double *> &stats[0, 0]
    cdef Py_ssize_t channels = stats.shape[1]
    return cbn_c.cbn_statistics(first, first + channels, first + 2 * channels,
                                first + 3 * channels, count)


cdef const double *pointer_or_null(const double[::1] values) noexcept:
    if values is None:
        return NULL
    return &values[0]


def forward(real[:, :] y not None, double[:, ::1] stats not None, const real[:, :] x not None,
            const double[::1] gamma, const double[::1] beta, double eps, int threads):
    cdef cbn_c.cbn_array y_array, x_array
    cdef cbn_c.cbn_statistics statistics = statistics_of(stats, 0)
    cdef const double *gamma_data = pointer_or_null(gamma)
    cdef const double *beta_data = pointer_or_null(beta)
    cdef cbn_c.cbn_resources resources
    cdef cbn_c.cbn_status status
    array_of(&y_array, y)
    array_of(&x_array, x)
    acquire(&resources, cbn_c.cbn_scratch_size(x.shape[0], x.shape[1], threads), threads)
    with nogil:
        status = cbn_c.cbn_forward(&y_array, &statistics, &x_array, gamma_data, beta_data, eps,
                                   &resources)
    release(&resources, status)


def inference(real[:, :] y not None, double[:, ::1] stats not None, const real[:, :] x not None,
              const double[::1] gamma, const double[::1] beta, double eps, int threads):
    cdef cbn_c.cbn_array y_array, x_array
    cdef cbn_c.cbn_statistics statistics = statistics_of(stats, 0)
    cdef const double *gamma_data = pointer_or_null(gamma)
    cdef const double *beta_data = pointer_or_null(beta)
    cdef cbn_c.cbn_resources resources
    cdef cbn_c.cbn_status status
    array_of(&y_array, y)
    array_of(&x_array, x)
    acquire(&resources, cbn_c.cbn_scratch_size(x.shape[0], x.shape[1], threads), threads)
    with nogil:
        status = cbn_c.cbn_inference(&y_array, &statistics, &x_array, gamma_data, beta_data, eps,
                                     &resources)
    release(&resources, status)


def backward(real[:, :] dx not None, double[::1] dgamma not None, double[::1] dbeta not None,
             const real[:, :] dy not None, const real[:, :] x not None,
             const double[:, ::1] stats not None, double count, const double[::1] gamma,
             int threads):
    cdef cbn_c.cbn_array dx_array, dy_array, x_array
    cdef cbn_c.cbn_statistics statistics = statistics_of(stats, count)
    cdef const double *gamma_data = pointer_or_null(gamma)
    cdef cbn_c.cbn_resources resources
    cdef cbn_c.cbn_status status
    array_of(&dx_array, dx)
    array_of(&dy_array, dy)
    array_of(&x_array, x)
    acquire(&resources, cbn_c.cbn_scratch_size(x.shape[0], x.shape[1], threads), threads)
    with nogil:
        status = cbn_c.cbn_backward(&dx_array, &dgamma[0], &dbeta[0], &dy_array, &x_array,
                                    &statistics, gamma_data, &resources)
    release(&resources, status)


def inference_backward(real[:, :] dx not None, double[::1] dgamma not None,
                       double[::1] dbeta not None, double[:, ::1] stats not None,
                       const real[:, :] dy not None, const real[:, :] x not None,
                       const double[::1] gamma, double eps, int threads):
    cdef cbn_c.cbn_array dx_array, dy_array, x_array
    cdef cbn_c.cbn_statistics statistics = statistics_of(stats, 0)
    cdef const double *gamma_data = pointer_or_null(gamma)
    cdef cbn_c.cbn_resources resources
    cdef cbn_c.cbn_status status
    array_of(&dx_array, dx)
    array_of(&dy_array, dy)
    array_of(&x_array, x)
    acquire(&resources, cbn_c.cbn_scratch_size(x.shape[0], x.shape[1], threads), threads)
    with nogil:
        status = cbn_c.cbn_inference_backward(&dx_array, &dgamma[0], &dbeta[0], &statistics,
                                              &dy_array, &x_array, gamma_data, eps, &resources)
    release(&resources, status)


def jvp(real[:, :] y_dot not None, const real[:, :] x_dot not None, const real[:, :] x not None,
        const double[:, ::1] stats not None, double count, const double[::1] gamma,
        const double[::1] gamma_dot, const double[::1] beta_dot, int threads):
    cdef cbn_c.cbn_array y_dot_array, x_dot_array, x_array
    cdef cbn_c.cbn_statistics statistics = statistics_of(stats, count)
    cdef const double *gamma_data = pointer_or_null(gamma)
    cdef const double *gamma_dot_data = pointer_or_null(gamma_dot)
    cdef const double *beta_dot_data = pointer_or_null(beta_dot)
    cdef cbn_c.cbn_resources resources
    cdef cbn_c.cbn_status status
    array_of(&y_dot_array, y_dot)
    array_of(&x_dot_array, x_dot)
    array_of(&x_array, x)
    acquire(&resources, cbn_c.cbn_scratch_size(x.shape[0], x.shape[1], threads), threads)
    with nogil:
        status = cbn_c.cbn_jvp(&y_dot_array, &x_dot_array, &x_array, &statistics, gamma_data,
                               gamma_dot_data, beta_dot_data, &resources)
    release(&resources, status)


def double_backward(real[:, :] g_dy not None, real[:, :] g_x not None,
                    double[::1] g_gamma not None, const real[:, :] ddx not None,
                    const real[:, :] dy not None, const real[:, :] x not None,
                    const double[:, ::1] stats not None, double count, const double[::1] gamma,
                    const double[::1] ddgamma, const double[::1] ddbeta, int threads):
    cdef cbn_c.cbn_array g_dy_array, g_x_array, ddx_array, dy_array, x_array
    cdef cbn_c.cbn_statistics statistics = statistics_of(stats, count)
    cdef const double *gamma_data = pointer_or_null(gamma)
    cdef const double *ddgamma_data = pointer_or_null(ddgamma)
    cdef const double *ddbeta_data = pointer_or_null(ddbeta)
    cdef cbn_c.cbn_resources resources
    cdef cbn_c.cbn_status status
    array_of(&g_dy_array, g_dy)
    array_of(&g_x_array, g_x)
    array_of(&ddx_array, ddx)
    array_of(&dy_array, dy)
    array_of(&x_array, x)
    acquire(&resources,
            cbn_c.cbn_double_backward_scratch_size(x.shape[0], x.shape[1], threads), threads)
    with nogil:
        status = cbn_c.cbn_double_backward(&g_dy_array, &g_x_array, &g_gamma[0], &ddx_array,
                                           &dy_array, &x_array, &statistics, gamma_data,
                                           ddgamma_data, ddbeta_data, &resources)
    release(&resources, status)


def choose_isa():
    """Choose the tier by CBN_ISA or the CPU; the status text, or None when all is well."""
    cdef cbn_c.cbn_status status = cbn_c.cbn_isa_choose()
    return None if status == cbn_c.CBN_OK else cbn_c.cbn_status_text(status).decode()


def chosen_isa():
    """The name of the chosen tier, None before choose_isa()."""
    cdef const char *name = cbn_c.cbn_isa_chosen()
    return None if name == NULL else name.decode()


def isa_tier(int index):
    """(name, supported by this CPU) of the index-th tier of this build, None past the last."""
    cdef const char *name = cbn_c.cbn_isa_name(index)
    return None if name == NULL else (name.decode(), bool(cbn_c.cbn_isa_supported(index)))


def openmp():
    """(_OPENMP of the build, omp_get_max_threads()); (0, 1) for a serial build."""
    return cbn_c.cbn_openmp_version(), cbn_c.cbn_openmp_max_threads()
