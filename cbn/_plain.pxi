# Plain calls: what nearly every call is, recognised by a few comparisons: float32 or float64 rows
# of adjacent channels, or arrays in C order with any channel axis, parameters of those dtypes,
# results with memory of their own. Such a call costs 2 us; the general one, which accepts anything
# or says what is wrong with it, 30. These functions return None, and have written nothing, for
# whatever else they are given.

cdef cbn_c.cbn_activation no_activation = cbn_c.cbn_activation(NULL, 0)


cdef bint is_plain(object array) noexcept:
    """A native, aligned float32 or float64 array and no subclass."""
    if not cnp.PyArray_CheckExact(array):
        return False
    cdef int dtype = cnp.PyArray_TYPE(<cnp.ndarray> array)
    return (cnp.PyArray_ISBEHAVED_RO(<cnp.ndarray> array)
            and (dtype == cnp.NPY_FLOAT or dtype == cnp.NPY_DOUBLE))


cdef int plain_axis(object axis, object x):
    """The channel axis of x counted from the front, -1 for none that is plain to see."""
    cdef int ndim = cnp.PyArray_NDIM(<cnp.ndarray> x) if cnp.PyArray_CheckExact(x) else 0
    if axis is None:
        return 1 if ndim == 2 else -1
    if type(axis) is not int or ndim < 2 or not -ndim <= axis < ndim:
        return -1
    return axis if axis >= 0 else axis + ndim


cdef bint plain_view(cbn_c.cbn_array *view, object array, int axis) noexcept:
    """Rows of adjacent channels, or an array in C order, with at least one element: its view."""
    if not is_plain(array):
        return False
    cdef cnp.ndarray a = <cnp.ndarray> array
    cdef int ndim = cnp.PyArray_NDIM(a)
    cdef cnp.npy_intp *strides = cnp.PyArray_STRIDES(a)
    if cnp.PyArray_SIZE(a) < 1 or not (
            cnp.PyArray_IS_C_CONTIGUOUS(a)
            or (ndim == 2 and axis == 1 and strides[1] == cnp.PyArray_ITEMSIZE(a))):
        return False
    view.data = cnp.PyArray_DATA(a)
    view.dtype = (cbn_c.CBN_FLOAT32 if cnp.PyArray_TYPE(a) == cnp.NPY_FLOAT
                  else cbn_c.CBN_FLOAT64)
    view.swapped = False
    return cbn_c.cbn_set_view(view, ndim, <Py_ssize_t *> cnp.PyArray_DIMS(a),
                              <Py_ssize_t *> strides, axis) == cbn_c.CBN_OK


cdef bint alike(object a, object b) noexcept:
    """Arrays of one dtype and shape."""
    cdef int ndim = cnp.PyArray_NDIM(<cnp.ndarray> a)
    return (cnp.PyArray_TYPE(<cnp.ndarray> a) == cnp.PyArray_TYPE(<cnp.ndarray> b)
            and ndim == cnp.PyArray_NDIM(<cnp.ndarray> b)
            and cnp.PyArray_CompareLists(cnp.PyArray_DIMS(<cnp.ndarray> a),
                                         cnp.PyArray_DIMS(<cnp.ndarray> b), ndim))


cdef bint plain_output(cbn_c.cbn_array *view, object out, object x, int axis) noexcept:
    """Like x, and can be written, each element with memory of its own."""
    if not (plain_view(view, out, axis) and alike(out, x)):
        return False
    cdef cnp.ndarray a = <cnp.ndarray> out
    return cnp.PyArray_ISWRITEABLE(a) and (
        cnp.PyArray_IS_C_CONTIGUOUS(a)
        or cnp.PyArray_STRIDE(a, 0) >= cnp.PyArray_DIM(a, 1) * cnp.PyArray_ITEMSIZE(a))


cdef bint plain_parameter(object parameter, Py_ssize_t channels) noexcept:
    """A contiguous parameter of a number a channel, or None."""
    if parameter is None:
        return True
    return (is_plain(parameter) and cnp.PyArray_NDIM(<cnp.ndarray> parameter) == 1
            and cnp.PyArray_DIM(<cnp.ndarray> parameter, 0) == channels
            and cnp.PyArray_IS_C_CONTIGUOUS(<cnp.ndarray> parameter))


cdef bint plain_dtype(object dtype) noexcept:
    return dtype is None or (<cnp.dtype> dtype).type_num in (cnp.NPY_FLOAT, cnp.NPY_DOUBLE)


cdef bint apart(object a, object b) noexcept:
    """Whether the memory between the first and the last element of either is without the other."""
    if b is None:
        return True
    cdef const char *first[2]
    cdef const char *last[2]
    span(<cnp.ndarray> a, &first[0], &last[0])
    span(<cnp.ndarray> b, &first[1], &last[1])
    return last[0] <= first[1] or last[1] <= first[0]


cdef void span(cnp.ndarray a, const char **first, const char **last) noexcept:
    cdef const char *data = <const char *> cnp.PyArray_DATA(a)
    cdef Py_ssize_t size = cnp.PyArray_NBYTES(a), reach = 0
    if not cnp.PyArray_IS_C_CONTIGUOUS(a):  # rows
        size = cnp.PyArray_DIM(a, 1) * cnp.PyArray_ITEMSIZE(a)
        reach = (cnp.PyArray_DIM(a, 0) - 1) * cnp.PyArray_STRIDE(a, 0)
    first[0] = data + (reach if reach < 0 else 0)
    last[0] = data + (reach if reach > 0 else 0) + size


cdef bint apart_or_same(object out, const cbn_c.cbn_array *view, object array,
                        const cbn_c.cbn_array *other) noexcept:
    cdef bint same = view.data == other.data and view.strides[0] == other.strides[0]
    return same or apart(out, array)


cdef bint is_small(const cbn_c.cbn_array *x) noexcept:
    """Neither threads nor to let go of the GIL (0.1 us) would pay."""
    return <double> x.outer * <double> x.channels * <double> x.inner < 32768


cdef int acquire_for(cbn_c.cbn_resources *resources, const cbn_c.cbn_array *x,
                     object threads, Py_ssize_t more = 0) except -1:
    """`threads` is a number, or a function to ask where more than one may pay; behind the scratch
    there is room for `more` numbers of float64."""
    cdef cbn_c.cbn_selection everything = cbn_c.cbn_selection(NULL, 0)
    cdef int count = 1
    if type(threads) is int:
        count = threads
    elif not is_small(x):
        count = threads()
    return acquire(resources, cbn_c.cbn_plain_scratch_size(x, count) if x.inner == 1
                   else cbn_c.cbn_scratch_size(x, &everything, count), count,
                   more * sizeof(double))


cdef object empty_like(object x):
    cdef cnp.ndarray a = <cnp.ndarray> x
    return cnp.PyArray_EMPTY(cnp.PyArray_NDIM(a), cnp.PyArray_DIMS(a), cnp.PyArray_TYPE(a), 0)


cdef object float64_channels(int rows, Py_ssize_t channels):
    cdef cnp.npy_intp[2] shape = [rows, channels]
    return cnp.PyArray_EMPTY(2, shape, cnp.NPY_DOUBLE, 0)


cdef void to_float64(double *to, object parameter, Py_ssize_t channels) noexcept:
    cdef void *data = cnp.PyArray_DATA(<cnp.ndarray> parameter)
    if cnp.PyArray_TYPE(<cnp.ndarray> parameter) == cnp.NPY_FLOAT:
        cbn_c.cbn_to_float64(to, <const float *> data, channels)
    else:
        memcpy(to, data, channels * sizeof(double))


cdef double *optional_float64(double *to, object parameter, Py_ssize_t channels) noexcept:
    """Where the parameter now is in float64, NULL for None."""
    if parameter is None:
        return NULL
    to_float64(to, parameter, channels)
    return to


cdef object empty_gradient(Py_ssize_t channels, object dtype):
    """Room for a parameter's gradient in its dtype, float32 or float64; None for None."""
    cdef cnp.npy_intp[1] shape = [channels]
    if dtype is None:
        return None
    return cnp.PyArray_EMPTY(1, shape, (<cnp.dtype> dtype).type_num, 0)


cdef void fill_gradient(object gradient, const double *values, Py_ssize_t channels) noexcept:
    if gradient is None:
        return
    cdef void *data = cnp.PyArray_DATA(<cnp.ndarray> gradient)
    if cnp.PyArray_TYPE(<cnp.ndarray> gradient) == cnp.NPY_FLOAT:
        cbn_c.cbn_to_float32(<float *> data, values, channels)
    else:
        memcpy(data, values, channels * sizeof(double))


cdef object dtype_of(object parameter):
    """Of an array, None of None."""
    return None if parameter is None else <object> cnp.PyArray_DESCR(<cnp.ndarray> parameter)


cdef bint plain_eps(object eps) noexcept:
    return type(eps) is float and 0 <= PyFloat_AS_DOUBLE(eps) < INFINITY


cdef object shape_of(object array):
    cdef cnp.ndarray a = <cnp.ndarray> array
    return cnp.PyArray_IntTupleFromIntp(cnp.PyArray_NDIM(a), cnp.PyArray_DIMS(a))


def plain_forward(x, gamma, beta, axis, out, eps, threads, cache_type, options):
    """y and the cache, of that subtype of CacheFields, of a plain forward call, else None."""
    cdef cbn_c.cbn_array x_array, y_array
    cdef cbn_c.cbn_resources resources
    cdef cbn_c.cbn_status status
    cdef int of_channels = plain_axis(axis, x)
    if not (plain_view(&x_array, x, of_channels) and plain_eps(eps)):
        return None
    cdef Py_ssize_t channels = x_array.channels
    if not (plain_parameter(gamma, channels) and plain_parameter(beta, channels)):
        return None
    if out is None:
        out = empty_like(x)
        plain_view(&y_array, out, of_channels)
    elif not (plain_output(&y_array, out, x, of_channels) and apart(out, x) and apart(out, gamma)
              and apart(out, beta)):
        return None
    # mean, mean_low, var, invstd, gamma, beta
    stats = float64_channels(6, channels)
    cdef double *first = <double *> cnp.PyArray_DATA(<cnp.ndarray> stats)
    cdef cbn_c.cbn_statistics statistics = cbn_c.cbn_statistics(
        first, first + channels, first + 2 * channels, first + 3 * channels, 0)
    cdef double *gamma_data = optional_float64(first + 4 * channels, gamma, channels)
    cdef double *beta_data = optional_float64(first + 5 * channels, beta, channels)
    cdef double epsilon = eps
    acquire_for(&resources, &x_array, threads)
    if is_small(&x_array):
        status = cbn_c.cbn_forward(&y_array, &statistics, &x_array, gamma_data, beta_data, epsilon,
                                   &no_activation, &resources)
    else:
        with nogil:
            status = cbn_c.cbn_forward(&y_array, &statistics, &x_array, gamma_data, beta_data,
                                       epsilon, &no_activation, &resources)
    release(&resources, status)
    cnp.PyArray_CLEARFLAGS(<cnp.ndarray> stats, cnp.NPY_ARRAY_WRITEABLE)
    # by __init__ it took 0.3 us of a small call's 3.3
    cdef CacheFields cache = (<PyTypeObject *> cache_type).tp_new(cache_type, <PyObject *> (), NULL)
    cache.set(x, shape_of(x), stats, None, gamma, dtype_of(gamma), dtype_of(beta), eps, of_channels,
              x_array.outer * x_array.inner, options)
    return out, cache


def plain_backward(dy, CacheFields cache not None, out, threads, no_options):
    """dx, dgamma and dbeta of a plain backward call, else None."""
    cdef cbn_c.cbn_array x_array, dy_array, dx_array
    cdef cbn_c.cbn_resources resources
    cdef cbn_c.cbn_status status
    x, stats, gamma = cache.x, cache._stats, cache.gamma
    if not (cache._options is no_options or cache._options.plain):
        return None
    cdef int of_channels = cache.axis
    if not (plain_view(&x_array, x, of_channels) and plain_view(&dy_array, dy, of_channels)
            and alike(dy, x)):
        return None
    cdef Py_ssize_t channels = x_array.channels
    if cnp.PyArray_DIM(<cnp.ndarray> stats, 1) != channels or not (
            shape_of(x) == cache._shape and plain_parameter(gamma, channels)
            and plain_dtype(cache._gamma_dtype) and plain_dtype(cache._beta_dtype)):
        return None
    if out is None:
        out = empty_like(x)
        plain_view(&dx_array, out, of_channels)
    elif not (plain_output(&dx_array, out, x, of_channels)
              and apart_or_same(out, &dx_array, dy, &dy_array)
              and apart_or_same(out, &dx_array, x, &x_array) and apart(out, gamma)):
        return None
    cdef double *first = <double *> cnp.PyArray_DATA(<cnp.ndarray> stats)
    cdef cbn_c.cbn_statistics statistics = cbn_c.cbn_statistics(
        first, first + channels, first + 2 * channels, first + 3 * channels, cache.count)
    cdef double *gamma_data = NULL
    if cache.gamma64 is not None:
        gamma_data = <double *> cnp.PyArray_DATA(<cnp.ndarray> cache.gamma64)
    elif gamma is not None:
        gamma_data = first + 4 * channels
    dgamma = empty_gradient(channels, cache._gamma_dtype)
    dbeta = empty_gradient(channels, cache._beta_dtype)
    acquire_for(&resources, &x_array, threads, 2 * channels)
    cdef double *sums = <double *> (<char *> resources.scratch + resources.scratch_size)
    if is_small(&x_array):
        status = cbn_c.cbn_backward(&dx_array, sums, sums + channels, &dy_array, &x_array,
                                    &statistics, gamma_data, &resources)
    else:
        with nogil:
            status = cbn_c.cbn_backward(&dx_array, sums, sums + channels, &dy_array, &x_array,
                                        &statistics, gamma_data, &resources)
    fill_gradient(dgamma, sums, channels)
    fill_gradient(dbeta, sums + channels, channels)
    release(&resources, status)
    return out, dgamma, dbeta


cdef int given_statistics(cbn_c.cbn_statistics *statistics, double *first, object mean,
                          object var, Py_ssize_t channels) noexcept:
    """Those parameters as four rows from `first` on; False if a variance is negative."""
    statistics.mean = first
    statistics.mean_low = first + channels
    statistics.var = first + 2 * channels
    statistics.invstd = first + 3 * channels
    statistics.count = 0
    to_float64(statistics.mean, mean, channels)
    memset(statistics.mean_low, 0, channels * sizeof(double))
    to_float64(statistics.var, var, channels)
    return not cbn_c.cbn_any_negative(statistics.var, channels)


def plain_inference(x, mean, var, gamma, beta, axis, out, eps, threads):
    """y of a plain inference call, else None."""
    cdef cbn_c.cbn_array x_array, y_array
    cdef cbn_c.cbn_resources resources
    cdef cbn_c.cbn_statistics statistics
    cdef cbn_c.cbn_status status = cbn_c.CBN_OK
    cdef int of_channels = plain_axis(axis, x)
    if not (plain_view(&x_array, x, of_channels) and plain_eps(eps)) or mean is None or var is None:
        return None
    cdef Py_ssize_t channels = x_array.channels
    if not (plain_parameter(mean, channels) and plain_parameter(var, channels)
            and plain_parameter(gamma, channels) and plain_parameter(beta, channels)):
        return None
    if out is None:
        out = empty_like(x)
        plain_view(&y_array, out, of_channels)
    elif not (plain_output(&y_array, out, x, of_channels)
              and apart_or_same(out, &y_array, x, &x_array) and apart(out, mean)
              and apart(out, var) and apart(out, gamma) and apart(out, beta)):
        return None
    # the statistics, gamma, beta
    acquire_for(&resources, &x_array, threads, 6 * channels)
    cdef double *first = <double *> (<char *> resources.scratch + resources.scratch_size)
    cdef bint good = given_statistics(&statistics, first, mean, var, channels)
    cdef double *gamma_data = optional_float64(first + 4 * channels, gamma, channels)
    cdef double *beta_data = optional_float64(first + 5 * channels, beta, channels)
    cdef double epsilon = eps
    if good:
        if is_small(&x_array):
            status = cbn_c.cbn_inference(&y_array, &statistics, &x_array, gamma_data, beta_data,
                                         epsilon, &no_activation, &resources)
        else:
            with nogil:
                status = cbn_c.cbn_inference(&y_array, &statistics, &x_array, gamma_data, beta_data,
                                             epsilon, &no_activation, &resources)
    release(&resources, status)
    return out if good else None


def plain_inference_backward(dy, x, mean, var, gamma, axis, out, eps, threads):
    """dx, dgamma and dbeta of a plain backward call of inference, else None."""
    cdef cbn_c.cbn_array x_array, dy_array, dx_array
    cdef cbn_c.cbn_resources resources
    cdef cbn_c.cbn_statistics statistics
    cdef cbn_c.cbn_status status = cbn_c.CBN_OK
    cdef int of_channels = plain_axis(axis, x)
    if not (plain_view(&x_array, x, of_channels) and plain_view(&dy_array, dy, of_channels)
            and alike(dy, x) and plain_eps(eps) and mean is not None and var is not None):
        return None
    cdef Py_ssize_t channels = x_array.channels
    if not (plain_parameter(mean, channels) and plain_parameter(var, channels)
            and plain_parameter(gamma, channels)):
        return None
    if out is None:
        out = empty_like(x)
        plain_view(&dx_array, out, of_channels)
    elif not (plain_output(&dx_array, out, x, of_channels)
              and apart_or_same(out, &dx_array, dy, &dy_array)
              and apart_or_same(out, &dx_array, x, &x_array) and apart(out, mean)
              and apart(out, var) and apart(out, gamma)):
        return None
    dgamma = empty_gradient(channels, dtype_of(gamma))
    dbeta = empty_gradient(channels, dtype_of(x if gamma is None else gamma))
    # the statistics, gamma, dgamma, dbeta
    acquire_for(&resources, &x_array, threads, 7 * channels)
    cdef double *first = <double *> (<char *> resources.scratch + resources.scratch_size)
    cdef bint good = given_statistics(&statistics, first, mean, var, channels)
    cdef double *gamma_data = optional_float64(first + 4 * channels, gamma, channels)
    cdef double *sums = first + 5 * channels
    cdef double epsilon = eps
    if good:
        if is_small(&x_array):
            status = cbn_c.cbn_inference_backward(&dx_array, sums, sums + channels, &statistics,
                                                  &dy_array, &x_array, gamma_data, epsilon,
                                                  &resources)
        else:
            with nogil:
                status = cbn_c.cbn_inference_backward(&dx_array, sums, sums + channels, &statistics,
                                                      &dy_array, &x_array, gamma_data, epsilon,
                                                      &resources)
        fill_gradient(dgamma, sums, channels)
        fill_gradient(dbeta, sums + channels, channels)
    release(&resources, status)
    return (out, dgamma, dbeta) if good else None


def plain_average(running_mean, running_var, batches, CacheFields cache not None, double momentum,
                  double factor):
    """Whether plain running statistics, (47), and their count of batches took in one batch more.

    With the GIL held: no other Python thread and no signal handler sees a part of it. `factor`
    makes the variance of the cache the one to average.
    """
    cdef cnp.ndarray stats = <cnp.ndarray> cache._stats
    cdef Py_ssize_t channels = cnp.PyArray_DIM(stats, 1)
    cdef double *first = <double *> cnp.PyArray_DATA(stats)
    if running_mean is None or running_var is None or not (
            plain_parameter(running_mean, channels) and plain_parameter(running_var, channels)
            and alike(running_mean, running_var) and apart(running_mean, running_var)):
        return False
    cdef cnp.ndarray mean = <cnp.ndarray> running_mean
    cdef cnp.ndarray var = <cnp.ndarray> running_var
    if not (cnp.PyArray_ISWRITEABLE(mean) and cnp.PyArray_ISWRITEABLE(var)):
        return False
    cdef void *to_mean = cnp.PyArray_DATA(mean)
    cdef void *to_var = cnp.PyArray_DATA(var)
    if cnp.PyArray_TYPE(mean) == cnp.NPY_FLOAT:
        cbn_c.cbn_average_float32(<float *> to_mean, first, 1, momentum, channels)
        cbn_c.cbn_average_float32(<float *> to_var, first + 2 * channels, factor, momentum,
                                  channels)
    else:
        cbn_c.cbn_average_float64(<double *> to_mean, first, 1, momentum, channels)
        cbn_c.cbn_average_float64(<double *> to_var, first + 2 * channels, factor, momentum,
                                  channels)
    (<cnp.int64_t *> cnp.PyArray_DATA(<cnp.ndarray> batches))[0] += 1
    return True
