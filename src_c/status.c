#include "cbn.h"

static const char *const texts[CBN_STATUS_COUNT] = {
    [CBN_OK] = "no error",
    [CBN_ERROR_DTYPE] = "dtype: expected float32 or float64",
    [CBN_ERROR_SHAPE] = "shape: expected equal sizes and at least one row",
    [CBN_ERROR_LAYOUT] = "strides: expected adjacent channels and evenly spaced rows",
    [CBN_ERROR_EPS] = "eps: expected a finite number >= 0",
    [CBN_ERROR_THREADS] = "num_threads: expected at least 1",
    [CBN_ERROR_SCRATCH] = "scratch: expected cbn_scratch_size() bytes",
    [CBN_ERROR_ISA_UNKNOWN] = "CBN_ISA: not the name of an instruction set tier",
    [CBN_ERROR_ISA_UNSUPPORTED] =
        "no tier of this build, or not the one that CBN_ISA names, runs on this CPU",
};

const char *cbn_status_text(cbn_status status)
{
    if ((int)status < 0 || status >= CBN_STATUS_COUNT) {
        return "unknown status";
    }
    return texts[status];
}
