# Tensors: memory of another library, given by its address. `axes` are the bytes of the channel
# axis, the sizes, and the strides in elements, all Py_ssize_t; no size is 0. Callers answer for the
# addresses. Parameters are contiguous, float64 if `wide` and else float32, None if there are none;
# statistics are 6 rows of float64: mean, mean_low, var, invstd, gamma, beta.

tensor_dtypes = {
    "float32": cbn_c.CBN_FLOAT32,
    "float64": cbn_c.CBN_FLOAT64,
    "float16": cbn_c.CBN_FLOAT16,
    "bfloat16": cbn_c.CBN_BFLOAT16,
}


cdef void *memory_at(object address) except NULL:
    cdef size_t given = address
    if given == 0:
        raise RuntimeError("cbn: a tensor without memory")
    return <void *> given


cdef int tensor_of(cbn_c.cbn_array *view, object address, bytes axes, int dtype) except -1:
    cdef const Py_ssize_t *axis = <const Py_ssize_t *> PyBytes_AS_STRING(axes)
    cdef const Py_ssize_t *shape = axis + 1
    cdef int ndim = <int> (len(axes) // (2 * sizeof(Py_ssize_t)))
    view.data = memory_at(address)
    view.dtype = <cbn_c.cbn_dtype> dtype
    view.swapped = False
    return raise_status(cbn_c.cbn_set_tensor_view(view, ndim, shape, shape + ndim,
                                                  <int> axis[0]))


cdef int read_parameter(double *to, const double **given, object address, bint wide,
                        Py_ssize_t channels) except -1:
    """The parameter in float64, or zeros; `given` is where it is now, NULL if there is none."""
    given[0] = NULL if address is None else to
    if address is None:
        memset(to, 0, channels * sizeof(double))
    elif wide:
        memcpy(to, memory_at(address), channels * sizeof(double))
    else:
        cbn_c.cbn_to_float64(to, <const float *> memory_at(address), channels)
    return 0


def tensor_average(mean, var, stats, Py_ssize_t channels, bint wide, double count,
                   double momentum):
    """Average the statistics of a batch into the running ones, which are parameters, (47)."""
    cdef void *running_mean = memory_at(mean)
    cdef void *running_var = memory_at(var)
    cdef const double *first = <const double *> memory_at(stats)
    cdef const double *biased = first + 2 * channels
    cdef double factor = count / (count - 1)
    if wide:
        cbn_c.cbn_average_float64(<double *> running_mean, first, 1, momentum, channels)
        cbn_c.cbn_average_float64(<double *> running_var, biased, factor, momentum, channels)
    else:
        cbn_c.cbn_average_float32(<float *> running_mean, first, 1, momentum, channels)
        cbn_c.cbn_average_float32(<float *> running_var, biased, factor, momentum, channels)


def tensor_forward(y, bytes y_axes, x, bytes x_axes, int dtype, stats, weight, bias, mean, var,
                   bint wide, bint training, double eps, int threads):
    """y and stats, those of x in training mode and else those given."""
    cdef cbn_c.cbn_array y_array, x_array
    cdef cbn_c.cbn_resources resources
    cdef cbn_c.cbn_status status
    cdef const double *gamma
    cdef const double *beta
    cdef const double *given
    cdef double *first = <double *> memory_at(stats)
    tensor_of(&y_array, y, y_axes, dtype)
    tensor_of(&x_array, x, x_axes, dtype)
    cdef Py_ssize_t channels = x_array.channels
    cdef cbn_c.cbn_statistics statistics = cbn_c.cbn_statistics(
        first, first + channels, first + 2 * channels, first + 3 * channels, 0)
    read_parameter(first + 4 * channels, &gamma, weight, wide, channels)
    read_parameter(first + 5 * channels, &beta, bias, wide, channels)
    if not training:
        read_parameter(statistics.mean, &given, mean, wide, channels)
        memset(statistics.mean_low, 0, channels * sizeof(double))
        read_parameter(statistics.var, &given, var, wide, channels)
    acquire_some(&resources, &x_array, None, threads)
    with nogil:
        if training:
            status = cbn_c.cbn_forward(&y_array, &statistics, &x_array, gamma, beta, eps,
                                       &no_activation, &resources)
        else:
            status = cbn_c.cbn_inference(&y_array, &statistics, &x_array, gamma, beta, eps,
                                         &no_activation, &resources)
    release(&resources, status)


def tensor_backward(dx, bytes dx_axes, dgamma, dbeta, dy, bytes dy_axes, x, bytes x_axes,
                    int dtype, stats, bint scaled, bint wide, bint training, double eps,
                    int threads):
    """dx, dgamma and dbeta of what tensor_forward left in stats; `scaled` if it had a weight."""
    cdef cbn_c.cbn_array dx_array, dy_array, x_array
    cdef cbn_c.cbn_resources resources
    cdef cbn_c.cbn_status status
    cdef double *first = <double *> memory_at(stats)
    cdef void *dgamma_data = memory_at(dgamma)
    cdef void *dbeta_data = memory_at(dbeta)
    tensor_of(&dx_array, dx, dx_axes, dtype)
    tensor_of(&dy_array, dy, dy_axes, dtype)
    tensor_of(&x_array, x, x_axes, dtype)
    cdef Py_ssize_t channels = x_array.channels
    cdef cbn_c.cbn_statistics statistics = cbn_c.cbn_statistics(
        first, first + channels, first + 2 * channels, first + 3 * channels,
        <double> x_array.outer * <double> x_array.inner)
    cdef const double *gamma = first + 4 * channels if scaled else NULL
    acquire_some(&resources, &x_array, None, threads)
    # Both sums, and what inference_backward writes for invstd.
    cdef double *sums = <double *> PyMem_RawMalloc(3 * channels * sizeof(double))
    # uncovered: the system gives memory
    if sums == NULL:
        PyMem_RawFree(resources.scratch)
        raise MemoryError(f"sums of {channels} channels")
    with nogil:
        if training:
            status = cbn_c.cbn_backward(&dx_array, sums, sums + channels, &dy_array, &x_array,
                                        &statistics, gamma, &resources)
        else:
            statistics.invstd = sums + 2 * channels
            status = cbn_c.cbn_inference_backward(&dx_array, sums, sums + channels, &statistics,
                                                  &dy_array, &x_array, gamma, eps, &resources)
        if wide:
            memcpy(dgamma_data, sums, channels * sizeof(double))
            memcpy(dbeta_data, sums + channels, channels * sizeof(double))
        else:
            cbn_c.cbn_to_float32(<float *> dgamma_data, sums, channels)
            cbn_c.cbn_to_float32(<float *> dbeta_data, sums + channels, channels)
    PyMem_RawFree(sums)
    release(&resources, status)
