# For extension modules that use cbn's C functions; docs/c_api.md.

from cbn.cbn_c cimport *


cdef extern from "cbn_api.h":
    # Once in every .pyx file, before any of the functions.
    int cbn_import() except -1
