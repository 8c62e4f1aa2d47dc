"""NumPy arrays to C views: one call down with the GIL released, the status to an exception.

Callers check every argument first (_check.py); a status other than CBN_OK raised here is a
mistake of the library. Arrays may have any strides; dtype and shape are the caller's to agree on.
Statistics are one C-contiguous (4, D) float64 array with the rows mean, mean_low, var, invstd.
`positions` are the positions that take part, all of them with None.
"""
cimport cython
cimport numpy as cnp
from cpython.bytes cimport PyBytes_AS_STRING
from cpython.float cimport PyFloat_AS_DOUBLE
from cpython.mem cimport PyMem_RawFree, PyMem_RawMalloc
from cpython.object cimport PyObject, PyTypeObject
from cpython.pycapsule cimport PyCapsule_New
from libc.math cimport INFINITY
from libc.string cimport memcpy, memset

from cbn cimport cbn_c

cnp.import_array()


cdef extern from *:
    """
    #define CBN_API_PROVIDER
    #include "cbn_api.h"
    """
    const void *cbn_api_table "&cbn_api_table"


# What cbn_import() of cbn_api.h looks for.
_C_API = PyCapsule_New(<void *> cbn_api_table, "cbn._core._C_API", NULL)


@cython.embedsignature(False)  # its own is not what inspect.signature() knows how to read
cdef class CacheFields:
    """CacheFields(x, stats, gamma64, gamma, beta, eps, axis, count, options)
--

What a BatchNormCache holds: set by Python, this took 0.5 us of a small call's 4.
"""
    cdef readonly object x, gamma, eps, axis, count
    cdef readonly object _shape, _stats, _gamma_dtype, _beta_dtype, _options
    cdef object gamma64  # None where it is row 4 of the statistics

    def __init__(self, x, stats, gamma64, gamma, beta, eps, axis, count, options):
        self.set(x, x.shape, stats, gamma64, gamma, None if gamma is None else gamma.dtype,
                 None if beta is None else beta.dtype, eps, axis, count, options)

    cdef void set(self, x, shape, stats, gamma64, gamma, gamma_dtype, beta_dtype, eps, axis, count,
                  options):
        self.x = x
        self.gamma = gamma
        self.eps = eps
        self.axis = axis
        self.count = count
        self._shape = shape
        self._stats = stats  # read-only, for mean *= 0.9 would be silent
        self.gamma64 = gamma64
        self._gamma_dtype = gamma_dtype
        self._beta_dtype = beta_dtype
        self._options = options

    @property
    def _gamma(self):
        if self.gamma64 is None and self.gamma is not None:
            self.gamma64 = self._stats[4]
        return self.gamma64


cdef int acquire(cbn_c.cbn_resources *resources, size_t scratch_size, int threads,
                 size_t more = 0) except -1:
    """Scratch, and `more` bytes behind it."""
    resources.threads = threads
    resources.selection.positions = NULL
    resources.selection.count = 0
    resources.scratch_size = scratch_size
    resources.scratch = PyMem_RawMalloc(resources.scratch_size + more)
    if resources.scratch == NULL:
        raise MemoryError(f"scratch of {resources.scratch_size} bytes")
    return 0


cdef int acquire_some(cbn_c.cbn_resources *resources, const cbn_c.cbn_array *x,
                      const Py_ssize_t[::1] positions, int threads) except -1:
    """Resources for the general functions and a selection of positions."""
    cdef cbn_c.cbn_selection selection = cbn_c.cbn_selection(NULL, 0)
    if positions is not None:
        selection = cbn_c.cbn_selection(&positions[0], positions.shape[0])
    acquire(resources, cbn_c.cbn_scratch_size(x, &selection, threads), threads)
    resources.selection = selection
    return 0


cdef int release(cbn_c.cbn_resources *resources, cbn_c.cbn_status status) except -1:
    PyMem_RawFree(resources.scratch)
    return raise_status(status)


cdef int raise_status(cbn_c.cbn_status status) except -1:
    if status != cbn_c.CBN_OK:
        raise RuntimeError("cbn: " + cbn_c.cbn_status_text(status).decode())
    return 0


cdef int array_of(cbn_c.cbn_array *view, cnp.ndarray array, int axis) except -1:
    """The view of an array; a bfloat16 one is known by its dtype's name."""
    cdef int number = cnp.PyArray_TYPE(array)
    view.data = cnp.PyArray_DATA(array)
    view.swapped = not cnp.PyArray_ISNOTSWAPPED(array)
    if number == cnp.NPY_FLOAT:
        view.dtype = cbn_c.CBN_FLOAT32
    elif number == cnp.NPY_DOUBLE:
        view.dtype = cbn_c.CBN_FLOAT64
    elif number == cnp.NPY_FLOAT16:
        view.dtype = cbn_c.CBN_FLOAT16
    elif array.dtype.name == "bfloat16":
        view.dtype = cbn_c.CBN_BFLOAT16
    else:
        raise RuntimeError(f"cbn: no kernels for {array.dtype}")
    return raise_status(cbn_c.cbn_set_view(
        view, cnp.PyArray_NDIM(array), <Py_ssize_t *> cnp.PyArray_DIMS(array),
        <Py_ssize_t *> cnp.PyArray_STRIDES(array), axis))


cdef int activation_of(cbn_c.cbn_activation *activation, cbn_c.cbn_array *view, residual,
                       int axis, bint relu) except -1:
    activation.relu = relu
    activation.residual = NULL
    if residual is not None:
        array_of(view, residual, axis)
        activation.residual = view
    return 0


cdef cbn_c.cbn_statistics statistics_of(const double[:, ::1] stats, double count) noexcept:
    cdef double *first = <double *> &stats[0, 0]
    cdef Py_ssize_t channels = stats.shape[1]
    return cbn_c.cbn_statistics(first, first + channels, first + 2 * channels,
                                first + 3 * channels, count)


cdef const double *pointer_or_null(const double[::1] values) noexcept:
    if values is None:
        return NULL
    return &values[0]


def moments(double[:, ::1] stats not None, x, int axis, double eps,
            const Py_ssize_t[::1] positions, int threads):
    cdef cbn_c.cbn_array x_array
    cdef cbn_c.cbn_statistics statistics = statistics_of(stats, 0)
    cdef cbn_c.cbn_resources resources
    cdef cbn_c.cbn_status status
    array_of(&x_array, x, axis)
    acquire_some(&resources, &x_array, positions, threads)
    with nogil:
        status = cbn_c.cbn_moments(&statistics, &x_array, eps, &resources)
    release(&resources, status)


def merge_moments(double[:, ::1] stats not None, double count,
                  const double[:, ::1] other not None, double other_count):
    """The other statistics, also of at least 3 rows and 1 channel, into `stats`."""
    cdef cbn_c.cbn_statistics first = statistics_of(stats, count)
    cdef cbn_c.cbn_statistics second = statistics_of(other, other_count)
    cbn_c.cbn_merge_moments(&first, &second, stats.shape[1])


def merge_sums(double[::1] total not None, double[::1] low not None,
               const double[::1] other not None, const double[::1] other_low not None):
    """The other sums into `total`, and what that leaves out into `low`; at least 1 of them."""
    cbn_c.cbn_merge_sums(&total[0], &low[0], &other[0], &other_low[0], total.shape[0])


def forward(y, double[:, ::1] stats not None, x, int axis, const double[::1] gamma,
            const double[::1] beta, double eps, residual, bint relu,
            const Py_ssize_t[::1] positions, int threads):
    cdef cbn_c.cbn_array y_array, x_array, residual_array
    cdef cbn_c.cbn_activation activation
    cdef cbn_c.cbn_statistics statistics = statistics_of(stats, 0)
    cdef const double *gamma_data = pointer_or_null(gamma)
    cdef const double *beta_data = pointer_or_null(beta)
    cdef cbn_c.cbn_resources resources
    cdef cbn_c.cbn_status status
    array_of(&y_array, y, axis)
    array_of(&x_array, x, axis)
    activation_of(&activation, &residual_array, residual, axis, relu)
    acquire_some(&resources, &x_array, positions, threads)
    with nogil:
        status = cbn_c.cbn_forward(&y_array, &statistics, &x_array, gamma_data, beta_data, eps,
                                   &activation, &resources)
    release(&resources, status)


def inference(y, double[:, ::1] stats not None, x, int axis, const double[::1] gamma,
              const double[::1] beta, double eps, residual, bint relu,
              const Py_ssize_t[::1] positions, int threads):
    cdef cbn_c.cbn_array y_array, x_array, residual_array
    cdef cbn_c.cbn_activation activation
    cdef cbn_c.cbn_statistics statistics = statistics_of(stats, 0)
    cdef const double *gamma_data = pointer_or_null(gamma)
    cdef const double *beta_data = pointer_or_null(beta)
    cdef cbn_c.cbn_resources resources
    cdef cbn_c.cbn_status status
    array_of(&y_array, y, axis)
    array_of(&x_array, x, axis)
    activation_of(&activation, &residual_array, residual, axis, relu)
    acquire_some(&resources, &x_array, positions, threads)
    with nogil:
        status = cbn_c.cbn_inference(&y_array, &statistics, &x_array, gamma_data, beta_data, eps,
                                     &activation, &resources)
    release(&resources, status)


def backward(dx, double[::1] dgamma not None, double[::1] dbeta not None, dy, x, int axis,
             const double[:, ::1] stats not None, double count, const double[::1] gamma,
             const Py_ssize_t[::1] positions, int threads):
    cdef cbn_c.cbn_array dx_array, dy_array, x_array
    cdef cbn_c.cbn_statistics statistics = statistics_of(stats, count)
    cdef const double *gamma_data = pointer_or_null(gamma)
    cdef cbn_c.cbn_resources resources
    cdef cbn_c.cbn_status status
    array_of(&dx_array, dx, axis)
    array_of(&dy_array, dy, axis)
    array_of(&x_array, x, axis)
    acquire_some(&resources, &x_array, positions, threads)
    with nogil:
        status = cbn_c.cbn_backward(&dx_array, &dgamma[0], &dbeta[0], &dy_array, &x_array,
                                    &statistics, gamma_data, &resources)
    release(&resources, status)


def gated_backward(dx, gated, double[::1] dgamma not None, double[::1] dbeta not None, dy, x,
                   int axis, const double[:, ::1] stats not None, double count,
                   const double[::1] gamma, const double[::1] beta, residual, bint relu,
                   const Py_ssize_t[::1] positions, int threads):
    cdef cbn_c.cbn_array dx_array, gated_array, dy_array, x_array, residual_array
    cdef cbn_c.cbn_activation activation
    cdef cbn_c.cbn_statistics statistics = statistics_of(stats, count)
    cdef const double *gamma_data = pointer_or_null(gamma)
    cdef const double *beta_data = pointer_or_null(beta)
    cdef cbn_c.cbn_resources resources
    cdef cbn_c.cbn_status status
    array_of(&dx_array, dx, axis)
    array_of(&gated_array, gated, axis)
    array_of(&dy_array, dy, axis)
    array_of(&x_array, x, axis)
    activation_of(&activation, &residual_array, residual, axis, relu)
    acquire_some(&resources, &x_array, positions, threads)
    with nogil:
        status = cbn_c.cbn_gated_backward(&dx_array, &gated_array, &dgamma[0], &dbeta[0],
                                          &dy_array, &x_array, &statistics, gamma_data, beta_data,
                                          &activation, &resources)
    release(&resources, status)


def backward_sums(double[::1] sum_dy_xhat not None, double[::1] sum_dy not None, dy, x, int axis,
                  const double[:, ::1] stats not None, const Py_ssize_t[::1] positions,
                  int threads):
    cdef cbn_c.cbn_array dy_array, x_array
    cdef cbn_c.cbn_statistics statistics = statistics_of(stats, 0)
    cdef cbn_c.cbn_resources resources
    cdef cbn_c.cbn_status status
    array_of(&dy_array, dy, axis)
    array_of(&x_array, x, axis)
    acquire_some(&resources, &x_array, positions, threads)
    with nogil:
        status = cbn_c.cbn_backward_sums(&sum_dy_xhat[0], &sum_dy[0], &dy_array, &x_array,
                                         &statistics, &resources)
    release(&resources, status)


def backward_apply(dx, dy, x, int axis, const double[:, ::1] stats not None, double count,
                   const double[::1] gamma, double[::1] sum_dy_xhat not None,
                   double[::1] sum_dy not None, const Py_ssize_t[::1] positions, int threads):
    cdef cbn_c.cbn_array dx_array, dy_array, x_array
    cdef cbn_c.cbn_statistics statistics = statistics_of(stats, count)
    cdef const double *gamma_data = pointer_or_null(gamma)
    cdef cbn_c.cbn_resources resources
    cdef cbn_c.cbn_status status
    array_of(&dx_array, dx, axis)
    array_of(&dy_array, dy, axis)
    array_of(&x_array, x, axis)
    acquire_some(&resources, &x_array, positions, threads)
    with nogil:
        status = cbn_c.cbn_backward_apply(&dx_array, &dy_array, &x_array, &statistics, gamma_data,
                                          &sum_dy_xhat[0], &sum_dy[0], &resources)
    release(&resources, status)


def inference_backward(dx, double[::1] dgamma not None, double[::1] dbeta not None,
                       double[:, ::1] stats not None, dy, x, int axis,
                       const double[::1] gamma, double eps, int threads):
    cdef cbn_c.cbn_array dx_array, dy_array, x_array
    cdef cbn_c.cbn_statistics statistics = statistics_of(stats, 0)
    cdef const double *gamma_data = pointer_or_null(gamma)
    cdef cbn_c.cbn_resources resources
    cdef cbn_c.cbn_status status
    array_of(&dx_array, dx, axis)
    array_of(&dy_array, dy, axis)
    array_of(&x_array, x, axis)
    acquire_some(&resources, &x_array, None, threads)
    with nogil:
        status = cbn_c.cbn_inference_backward(&dx_array, &dgamma[0], &dbeta[0], &statistics,
                                              &dy_array, &x_array, gamma_data, eps, &resources)
    release(&resources, status)


def jvp(y_dot, x_dot, x, const double[:, ::1] stats not None, double count,
        const double[::1] gamma, const double[::1] gamma_dot, const double[::1] beta_dot,
        int threads):
    """Of (N, D) rows as the kernels take them."""
    cdef cbn_c.cbn_array y_dot_array, x_dot_array, x_array
    cdef cbn_c.cbn_statistics statistics = statistics_of(stats, count)
    cdef const double *gamma_data = pointer_or_null(gamma)
    cdef const double *gamma_dot_data = pointer_or_null(gamma_dot)
    cdef const double *beta_dot_data = pointer_or_null(beta_dot)
    cdef cbn_c.cbn_resources resources
    cdef cbn_c.cbn_status status
    array_of(&y_dot_array, y_dot, 1)
    array_of(&x_dot_array, x_dot, 1)
    array_of(&x_array, x, 1)
    acquire(&resources, cbn_c.cbn_plain_scratch_size(&x_array, threads), threads)
    with nogil:
        status = cbn_c.cbn_jvp(&y_dot_array, &x_dot_array, &x_array, &statistics, gamma_data,
                               gamma_dot_data, beta_dot_data, &resources)
    release(&resources, status)


def double_backward(g_dy, g_x, double[::1] g_gamma not None, ddx, dy, x,
                    const double[:, ::1] stats not None, double count, const double[::1] gamma,
                    const double[::1] ddgamma, const double[::1] ddbeta, int threads):
    """Of (N, D) rows as the kernels take them."""
    cdef cbn_c.cbn_array g_dy_array, g_x_array, ddx_array, dy_array, x_array
    cdef cbn_c.cbn_statistics statistics = statistics_of(stats, count)
    cdef const double *gamma_data = pointer_or_null(gamma)
    cdef const double *ddgamma_data = pointer_or_null(ddgamma)
    cdef const double *ddbeta_data = pointer_or_null(ddbeta)
    cdef cbn_c.cbn_resources resources
    cdef cbn_c.cbn_status status
    array_of(&g_dy_array, g_dy, 1)
    array_of(&g_x_array, g_x, 1)
    array_of(&ddx_array, ddx, 1)
    array_of(&dy_array, dy, 1)
    array_of(&x_array, x, 1)
    acquire(&resources, cbn_c.cbn_double_backward_scratch_size(&x_array, threads), threads)
    with nogil:
        status = cbn_c.cbn_double_backward(&g_dy_array, &g_x_array, &g_gamma[0], &ddx_array,
                                           &dy_array, &x_array, &statistics, gamma_data,
                                           ddgamma_data, ddbeta_data, &resources)
    release(&resources, status)


include "_plain.pxi"
include "_tensors.pxi"


def put(cnp.ndarray to not None, cnp.ndarray values not None):
    """Contiguous values into an array of their dtype and size, of at most one dimension.

    With the GIL held: no other Python thread and no signal handler sees a half of them.
    """
    cdef int ndim = cnp.PyArray_NDIM(to)
    cdef Py_ssize_t stride = cnp.PyArray_STRIDE(to, 0) if ndim else 0
    if (ndim > 1 or to.dtype != values.dtype or cnp.PyArray_SIZE(to) != cnp.PyArray_SIZE(values)
            or not cnp.PyArray_IS_C_CONTIGUOUS(values)):
        raise RuntimeError("cbn: put: expected contiguous values of the same dtype and size")
    cbn_c.cbn_put(cnp.PyArray_DATA(to), stride, cnp.PyArray_DATA(values),
                  cnp.PyArray_ITEMSIZE(to), cnp.PyArray_SIZE(to))


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
