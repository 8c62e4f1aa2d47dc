/* What cbn.h promises about calls that no array describes: sizes, tiers, statuses, empty arrays. */
#include <math.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "cbn.h"

static void expect(int good, const char *what)
{
    if (!good) {
        fprintf(stderr, "cbn.h: %s\n", what);
        abort();
    }
}

static cbn_status choose(const char *name)
{
    setenv("CBN_ISA", name, 1);
    return cbn_isa_choose();
}

static void check_tensor_view(void)
{
    const cbn_dtype dtypes[] = {CBN_FLOAT64, CBN_FLOAT32, CBN_FLOAT16, CBN_BFLOAT16};
    const ptrdiff_t sizes[] = {8, 4, 2, 2}, shape[2] = {2, 3}, strides[2] = {5, 1};
    for (int i = 0; i < 4; ++i) {
        cbn_array x = {.dtype = dtypes[i]};
        expect(cbn_set_tensor_view(&x, 2, shape, strides, 1) == CBN_OK, "two rows of a tensor");
        expect(x.outer == 2 && x.channels == 3 && x.inner == 1, "the sizes of a tensor");
        expect(x.strides[0] == 5 * sizes[i] && x.channel_stride == sizes[i], "strides in elements");
        expect(cbn_set_tensor_view(&x, -1, shape, strides, 0) == CBN_ERROR_SHAPE, "dimensions < 0");
        expect(cbn_set_tensor_view(&x, CBN_MAX_DIMS + 1, shape, strides, 0) == CBN_ERROR_SHAPE,
               "dimensions of a tensor");
    }
}

static void check_averages(void)
{
    const double value[2] = {3, 5};
    double wide[2] = {1, 2};
    float narrow[2] = {1, 2};
    cbn_average_float64(wide, value, 2, 0.25, 2);
    cbn_average_float32(narrow, value, 2, 0.25, 2);
    expect(wide[0] == 2.25 && wide[1] == 4, "an average in float64");
    expect(narrow[0] == 2.25f && narrow[1] == 4, "an average in float32");
}

/* Before anything has chosen a tier. */
void check_contract(void)
{
    double values[4] = {7, 7, 7, 7}, x_data[2] = {1, 2}, scratch[8192];
    const char *const tiers[] = {"baseline", "avx2", "avx512", "neon"};
    const ptrdiff_t shape[2] = {2, 1}, strides[2] = {8, 8}, negative[2] = {-1, 1}, none[2] = {2, 0};
    const cbn_statistics statistics = {values, values + 1, values + 2, values + 3, 2};
    const cbn_resources resources = {1, scratch, sizeof scratch, {NULL, 0}};
    cbn_array x = {.data = x_data, .dtype = CBN_FLOAT64};

    check_tensor_view();
    check_averages();
    expect(cbn_set_view(&x, 2, shape, strides, -1) == CBN_ERROR_SHAPE, "an axis below 0");
    expect(cbn_set_view(&x, 2, shape, strides, 2) == CBN_ERROR_SHAPE, "an axis past the last");
    expect(cbn_set_view(&x, CBN_MAX_DIMS + 1, shape, strides, 0) == CBN_ERROR_SHAPE, "dimensions");
    expect(cbn_set_view(&x, 2, negative, strides, 1) == CBN_ERROR_SHAPE, "a negative size");
    expect(cbn_set_view(&x, 2, shape, strides, 1) == CBN_OK, "two rows");

    expect(cbn_isa_chosen() == NULL, "no tier before one is chosen");
    expect(cbn_moments(&statistics, &x, 0, &resources) == CBN_ERROR_ISA_UNSUPPORTED, "no tier");
    expect(choose("sse9") == CBN_ERROR_ISA_UNKNOWN, "an unknown tier");
    for (size_t i = 0; i < sizeof tiers / sizeof tiers[0]; ++i) {
        expect(choose(tiers[i]) != CBN_ERROR_ISA_UNKNOWN, "a tier of any machine is known");
    }
    expect(cbn_isa_name(-1) == NULL && cbn_isa_name(9) == NULL, "the tiers' ends");
    expect(!cbn_isa_supported(-1) && !cbn_isa_supported(9), "no tier is past the ends");
    expect(choose("") == CBN_OK && cbn_isa_chosen() != NULL, "the fastest tier");
    unsetenv("CBN_ISA");
    expect(cbn_isa_choose() == CBN_OK && strcmp(cbn_isa_name(0), "baseline") == 0, "baseline");

    expect(cbn_moments(&statistics, &x, -1, &resources) == CBN_ERROR_EPS, "eps < 0");
    expect(cbn_moments(&statistics, &x, NAN, &resources) == CBN_ERROR_EPS, "eps NaN");
    expect(cbn_moments(&statistics, &x, INFINITY, &resources) == CBN_ERROR_EPS, "eps infinite");
    expect(values[0] == 7 && values[3] == 7, "a refused call writes nothing");
    cbn_resources without = resources;
    without.scratch = NULL;
    expect(cbn_moments(&statistics, &x, 0, &without) == CBN_ERROR_SCRATCH, "no scratch");
    x.dtype = (cbn_dtype)-1;
    expect(cbn_moments(&statistics, &x, 0, &resources) == CBN_ERROR_DTYPE, "a dtype below 0");
    x.dtype = CBN_FLOAT64;
    expect(cbn_moments(&statistics, &x, 0, &resources) == CBN_OK && values[0] == 1.5, "a mean");
    values[0] = 7;
    expect(cbn_set_view(&x, 2, none, strides, 1) == CBN_OK, "no channels");
    expect(cbn_moments(&statistics, &x, 0, &resources) == CBN_OK && values[0] == 7, "no channels");

    for (int status = -1; status <= CBN_STATUS_COUNT; ++status) {
        expect(strlen(cbn_status_text((cbn_status)status)) > 0, "a text for every status");
    }
    expect(cbn_openmp_max_threads() >= 1, "one thread at least");
}
