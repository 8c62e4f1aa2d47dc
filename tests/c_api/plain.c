/* An extension module in C alone: means(x, rows, columns) of float64 bytes, as a list. */
#define PY_SSIZE_T_CLEAN
#include <Python.h>

#include <cbn_api.h>

static PyObject *means(PyObject *module, PyObject *args)
{
    Py_buffer x;
    Py_ssize_t shape[2], strides[2], c;
    PyObject *list = NULL;
    cbn_array array;
    cbn_statistics statistics;
    cbn_resources resources = {.threads = 2};
    cbn_status status;
    double *numbers;
    (void)module;
    if (!PyArg_ParseTuple(args, "y*nn", &x, &shape[0], &shape[1]))
        return NULL;
    strides[1] = sizeof(double);
    strides[0] = shape[1] * strides[1];
    array.data = x.buf;
    array.dtype = CBN_FLOAT64;
    array.swapped = 0;
    status = cbn_set_view(&array, 2, shape, strides, 1);
    resources.scratch_size = cbn_scratch_size(&array, &resources.selection, 2);
    resources.scratch = malloc(resources.scratch_size);
    numbers = calloc(4 * shape[1], sizeof(double));
    if (resources.scratch == NULL || numbers == NULL) {
        PyErr_NoMemory();
        goto end;
    }
    statistics.mean = numbers;
    statistics.mean_low = numbers + shape[1];
    statistics.var = numbers + 2 * shape[1];
    statistics.invstd = numbers + 3 * shape[1];
    if (status == CBN_OK)
        status = cbn_moments(&statistics, &array, 0.0, &resources);
    if (status != CBN_OK) {
        PyErr_SetString(PyExc_RuntimeError, cbn_status_text(status));
        goto end;
    }
    list = PyList_New(shape[1]);
    for (c = 0; list != NULL && c < shape[1]; ++c)
        PyList_SET_ITEM(list, c, PyFloat_FromDouble(numbers[c]));
end:
    free(numbers);
    free(resources.scratch);
    PyBuffer_Release(&x);
    return list;
}

static PyMethodDef methods[] = {{"means", means, METH_VARARGS, NULL}, {NULL, NULL, 0, NULL}};
static struct PyModuleDef definition = {PyModuleDef_HEAD_INIT, .m_name = "plain", .m_size = -1,
                                        .m_methods = methods};

PyMODINIT_FUNC PyInit_plain(void) { return cbn_import() < 0 ? NULL : PyModule_Create(&definition); }
