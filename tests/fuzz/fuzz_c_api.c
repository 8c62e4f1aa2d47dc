/* A call of the C API that the input's bytes describe: any operation, dtype, shape, memory layout,
 * selection and option. Twice, as laid out and as plain native copies: every result must be the
 * same to the byte, and nothing but the results may have been written. For libFuzzer, without
 * OpenMP, with the address and undefined behaviour sanitizers: .ci/fuzz. */
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "bytes.h"
#include "cbn.h"
#include "laid_out.h"

typedef enum verb {
    MOMENTS,
    FORWARD,
    INFERENCE,
    BACKWARD,
    SUMS,
    APPLY,
    GATED,
    INFERENCE_BACKWARD,
    JVP,
    DOUBLE_BACKWARD,
    VERBS
} verb;

enum { VECTORS = 6, INPUTS = 4, OUTPUTS = 2, RESULTS = 6 };

typedef struct call {
    verb verb;
    form form;
    int threads, relu, with_residual, given; /* bits of the optional vectors */
    int over;                                /* the input that the output is written over, or -1 */
    double eps;
    double *vectors[VECTORS];
    ptrdiff_t *positions, count; /* NULL for all */
} call;

/* What a call works on, and what it returned. */
typedef struct memory {
    laid_out inputs[INPUTS], outputs[OUTPUTS];
    double *results[RESULTS];
} memory;

static void check(int good, const char *what)
{
    if (!good) {
        fprintf(stderr, "%s\n", what);
        abort();
    }
}

static double *new_vector(ptrdiff_t channels)
{
    return new_memory((size_t)channels * sizeof(double));
}

static const double *given(const call *c, int which)
{
    return c->given >> which & 1 ? c->vectors[which] : NULL;
}

/* Exactly as much scratch as asked for, and of any content. */
static cbn_resources new_resources(const call *c, const cbn_array *x, int threads)
{
    cbn_resources r = {.threads = threads, .selection = {c->positions, c->count}};
    r.scratch_size = c->verb == DOUBLE_BACKWARD ? cbn_double_backward_scratch_size(x, threads)
                     : c->verb == JVP           ? cbn_plain_scratch_size(x, threads)
                                                : cbn_scratch_size(x, &r.selection, threads);
    r.scratch = new_memory(r.scratch_size);
    memset(r.scratch, 0xFF, r.scratch_size);
    return r;
}

static cbn_status compute(const call *c, memory *m, const cbn_resources *r)
{
    const ptrdiff_t channels = c->form.shape[c->form.axis];
    const cbn_array *const x = &m->inputs[0].view, *const dy = &m->inputs[1].view;
    cbn_array *const out = &m->outputs[0].view, *const second = &m->outputs[1].view;
    const cbn_activation activation = {c->with_residual ? &m->inputs[2].view : NULL, c->relu};
    const double *const gamma = given(c, 0), *const beta = given(c, 1);
    double *const dgamma = m->results[4], *const dbeta = m->results[5];
    const int fixed = c->verb == INFERENCE || c->verb == INFERENCE_BACKWARD;
    const double count = (double)(c->positions == NULL ? c->form.size / channels : c->count);
    const cbn_statistics statistics = {m->results[0], m->results[1], m->results[2], m->results[3],
                                       count};
    for (int i = 0; i < 4; ++i) {
        memcpy(m->results[i], c->vectors[2 + i / 2], (size_t)channels * sizeof(double));
    }
    for (ptrdiff_t j = 0; j < channels; ++j) {
        m->results[1][j] *= fixed ? 0 : 0x1p-60;
    }
    memcpy(dgamma, c->vectors[4], (size_t)channels * sizeof(double));
    memcpy(dbeta, c->vectors[5], (size_t)channels * sizeof(double));
    switch (c->verb) {
    case MOMENTS:
        return cbn_moments(&statistics, x, c->eps, r);
    case FORWARD:
        return cbn_forward(out, &statistics, x, gamma, beta, c->eps, &activation, r);
    case INFERENCE:
        return cbn_inference(out, &statistics, x, gamma, beta, c->eps, &activation, r);
    case BACKWARD:
        return cbn_backward(out, dgamma, dbeta, dy, x, &statistics, gamma, r);
    case SUMS:
        return cbn_backward_sums(dgamma, dbeta, dy, x, &statistics, r);
    case APPLY:
        return cbn_backward_apply(out, dy, x, &statistics, gamma, dgamma, dbeta, r);
    case GATED:
        return cbn_gated_backward(out, second, dgamma, dbeta, dy, x, &statistics, gamma, beta,
                                  &activation, r);
    case INFERENCE_BACKWARD:
        return cbn_inference_backward(out, dgamma, dbeta, &statistics, dy, x, gamma, c->eps, r);
    case JVP:
        return cbn_jvp(out, dy, x, &statistics, gamma, given(c, 4), given(c, 5), r);
    default:
        return cbn_double_backward(out, second, dgamma, &m->inputs[3].view, dy, x, &statistics,
                                   gamma, given(c, 4), given(c, 5), r);
    }
}

/* jvp and double backward take rows of adjacent float32 or float64 alone, whatever the memory. */
static int rows_only(const call *c) { return c->verb == JVP || c->verb == DOUBLE_BACKWARD; }

/* An input that the operation may be written over. */
static int writable_input(verb of)
{
    return of == FORWARD || of == INFERENCE ? 0 : of == MOMENTS || of == SUMS || of >= JVP ? -1 : 1;
}

static call decode(bytes *from)
{
    call c = {.verb = (verb)take(from, VERBS)};
    c.form = take_form(from, rows_only(&c));
    const ptrdiff_t channels = c.form.shape[c.form.axis], rows = c.form.size / channels;
    static const double eps[] = {1e-5, 0, 1e-12, 1, 1e300, 5e-324};
    c.eps = eps[take(from, 6)];
    c.threads = 1 + (int)take(from, 4);
    c.relu = (int)take(from, 2);
    c.with_residual = (int)take(from, 2);
    c.given = (int)take(from, 64);
    c.over = take(from, 4) == 1 ? writable_input(c.verb) : -1;
    for (int i = 0; i < VECTORS; ++i) {
        c.vectors[i] = new_vector(channels);
        fill_doubles(from, c.vectors[i], channels, i == 3); /* invstd >= 0 */
    }
    if (!rows_only(&c) && take(from, 4) == 0) {
        c.positions = new_memory((size_t)rows * sizeof *c.positions);
        const uint32_t every = 1 + take(from, 5);
        for (ptrdiff_t i = (ptrdiff_t)take(from, 3); i < rows; i += every) {
            c.positions[c.count++] = i;
        }
        if (c.count == 0) {
            c.positions[c.count++] = 0;
        }
    }
    return c;
}

static void run(const call *c, memory *m, int threads)
{
    const cbn_resources r = new_resources(c, &m->inputs[0].view, threads);
    check(compute(c, m, &r) == CBN_OK, "a status of a good call");
    free(r.scratch);
}

/* What is wrong with a call is told before anything is written. */
static void refuse(const call *c, memory *m, bytes *from)
{
    cbn_resources r = new_resources(c, &m->inputs[0].view, 1);
    cbn_array *const x = &m->inputs[0].view;
    const cbn_array right = *x;
    cbn_status expected = CBN_OK;
    switch (take(from, 5)) {
    case 0:
        x->dtype = CBN_DTYPE_COUNT;
        expected = CBN_ERROR_DTYPE;
        break;
    case 1:
        r.threads = -(int)take(from, 3);
        expected = CBN_ERROR_THREADS;
        break;
    case 2:
        r.scratch_size = r.scratch_size / 4;
        expected = CBN_ERROR_SCRATCH;
        break;
    case 3:
        x->channels += 1;
        expected = c->verb == MOMENTS ? CBN_OK : CBN_ERROR_SHAPE;
        break;
    default:
        r.selection.positions = &r.selection.count;
        r.selection.count = 0;
        expected = rows_only(c) ? CBN_ERROR_LAYOUT : CBN_ERROR_SHAPE;
    }
    if (expected != CBN_OK) {
        memory before = *m;
        for (int i = 0; i < OUTPUTS; ++i) {
            before.outputs[i].whole = copy_of(m->outputs[i].whole, m->outputs[i].whole_size);
        }
        check(compute(c, m, &r) == expected, "another status than that of the mistake");
        for (int i = 0; i < OUTPUTS; ++i) {
            check(memcmp(before.outputs[i].whole, m->outputs[i].whole, m->outputs[i].whole_size) ==
                      0,
                  "a refused call wrote");
            free(before.outputs[i].whole);
        }
    }
    *x = right;
    free(r.scratch);
}

/* That tier if this CPU has it. */
static void choose_tier(int tier)
{
    setenv("CBN_ISA", cbn_isa_supported(tier) ? cbn_isa_name(tier) : "baseline", 1);
    check(cbn_isa_choose() == CBN_OK, "no tier");
}

int LLVMFuzzerTestOneInput(const uint8_t *data, size_t size)
{
    bytes from = {data, size, 0x9E3779B97F4A7C15u};
    call c = decode(&from);
    memory laid, plain;
    const ptrdiff_t channels = c.form.shape[c.form.axis];
    for (int i = 0; i < INPUTS; ++i) {
        laid.inputs[i] = lay_out(&c.form, &from, rows_only(&c), i == c.over);
        fill(&laid.inputs[i], &c.form, &from);
        plain.inputs[i] = plain_copy(&laid.inputs[i], &c.form);
    }
    for (int i = 0; i < OUTPUTS; ++i) {
        laid.outputs[i] =
            i == 0 && c.over >= 0 ? laid.inputs[c.over] : lay_out(&c.form, &from, rows_only(&c), 1);
        plain.outputs[i] = plain_copy(&laid.outputs[i], &c.form);
    }
    for (int i = 0; i < RESULTS; ++i) {
        laid.results[i] = new_vector(channels);
        plain.results[i] = new_vector(channels);
    }

    choose_tier((int)take(&from, 3));
    char *inputs[INPUTS], *around[OUTPUTS];
    for (int i = 0; i < INPUTS; ++i) {
        inputs[i] = copy_of(laid.inputs[i].whole, laid.inputs[i].whole_size);
    }
    for (int i = 0; i < OUTPUTS; ++i) {
        around[i] = copy_of(laid.outputs[i].whole, laid.outputs[i].whole_size);
    }
    refuse(&c, &laid, &from);
    run(&c, &laid, c.threads);
    choose_tier(0);
    run(&c, &plain, 1);

    for (int i = 0; i < INPUTS; ++i) {
        check(i == c.over ||
                  memcmp(inputs[i], laid.inputs[i].whole, laid.inputs[i].whole_size) == 0,
              "an input was written");
        free(inputs[i]);
    }
    for (int i = 0; i < OUTPUTS; ++i) {
        check(same_elements(&laid.outputs[i], &plain.outputs[i], &c.form),
              "another result than that of plain copies");
        blank(&laid.outputs[i], &c.form);
        laid_out before = laid.outputs[i];
        before.whole = around[i];
        before.view.data = around[i] + ((char *)laid.outputs[i].view.data - laid.outputs[i].whole);
        blank(&before, &c.form);
        check(memcmp(around[i], laid.outputs[i].whole, laid.outputs[i].whole_size) == 0,
              "written beside an output");
        free(around[i]);
    }
    for (int i = 0; i < RESULTS; ++i) {
        check(same_doubles(laid.results[i], plain.results[i], channels),
              "another number a channel than that of plain copies");
    }

    for (int i = 0; i < INPUTS; ++i) {
        free(laid.inputs[i].whole);
        free(plain.inputs[i].whole);
    }
    for (int i = 0; i < OUTPUTS; ++i) {
        if (i > 0 || c.over < 0) {
            free(laid.outputs[i].whole);
        }
        free(plain.outputs[i].whole);
    }
    for (int i = 0; i < RESULTS; ++i) {
        free(laid.results[i]);
        free(plain.results[i]);
    }
    for (int i = 0; i < VECTORS; ++i) {
        free(c.vectors[i]);
    }
    free(c.positions);
    return 0;
}
