/* Computes the cases of a file with the C core alone: driver THREADS INPUT OUTPUT.
 *
 * tests/kernels/test_neon.py writes the input and has the order of everything. A case is four int64
 * (dtype, outer, channels, inner), eps, six float64 vectors and three arrays. Prints the
 * ISA tier and whether there are threads.
 */
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>

#include "cbn.h"

enum { VECTORS = 6, MATRICES = 3 };

static FILE *input, *output;

static void stop(const char *message)
{
    fprintf(stderr, "driver: %s\n", message);
    exit(1);
}

static void check(cbn_status status)
{
    if (status != CBN_OK) {
        stop(cbn_status_text(status));
    }
}

static void *room(size_t size)
{
    void *memory = malloc(size > 0 ? size : 1);
    if (memory == NULL) {
        stop("out of memory");
    }
    return memory;
}

static void *read_room(size_t size)
{
    void *memory = room(size);
    if (fread(memory, 1, size, input) != size) {
        stop("the input is too short");
    }
    return memory;
}

static void put(const void *memory, size_t size)
{
    if (fwrite(memory, 1, size, output) != size) {
        stop("cannot write");
    }
}

static ptrdiff_t item_of(const int64_t *head)
{
    static const ptrdiff_t sizes[] = {
        [CBN_FLOAT32] = 4, [CBN_FLOAT64] = 8, [CBN_FLOAT16] = 2, [CBN_BFLOAT16] = 2};
    return sizes[head[0]];
}

static cbn_array view(void *data, const int64_t *head)
{
    const ptrdiff_t item = item_of(head), channels = (ptrdiff_t)head[2], inner = (ptrdiff_t)head[3];
    const ptrdiff_t shape[3] = {(ptrdiff_t)head[1], channels, inner};
    const ptrdiff_t strides[3] = {channels * inner * item, inner * item, item};
    cbn_array array = {.data = data, .dtype = (cbn_dtype)head[0]};
    check(cbn_set_view(&array, 3, shape, strides, 1));
    return array;
}

static void compute(const int64_t *head, int threads)
{
    const ptrdiff_t rows = (ptrdiff_t)(head[1] * head[3]), channels = (ptrdiff_t)head[2];
    const int plain = head[3] == 1 && item_of(head) >= 4;
    const size_t vector = (size_t)channels * sizeof(double);
    const size_t matrix = (size_t)(rows * channels * item_of(head));
    double eps, *v[VECTORS];
    static cbn_array m[MATRICES], first, second;
    if (fread(&eps, sizeof eps, 1, input) != 1) {
        stop("the input is too short");
    }
    for (int i = 0; i < VECTORS; ++i) {
        v[i] = read_room(vector);
    }
    for (int i = 0; i < MATRICES; ++i) {
        m[i] = view(read_room(matrix), head);
    }
    const double *gamma = v[0], *beta = v[1], *gamma_dot = v[4], *beta_dot = v[5];
    const cbn_array *const x = &m[0], *const dy = &m[1], *const x_dot = &m[2];
    first = view(room(matrix), head);
    second = view(room(matrix), head);
    double *sums[2] = {room(vector), room(vector)};

    size_t size = cbn_double_backward_scratch_size(x, threads);
    if (size < cbn_scratch_size(x, NULL, threads)) {
        size = cbn_scratch_size(x, NULL, threads);
    }
    const cbn_resources resources = {threads, room(size), size, {NULL, 0}};
    const cbn_activation none = {NULL, 0};
    const cbn_statistics batch = {room(vector), room(vector), room(vector), room(vector),
                                  (double)rows};
    const cbn_statistics fixed = {v[2], room(vector), v[3], room(vector), 0};
    for (ptrdiff_t j = 0; j < channels; ++j) {
        fixed.mean_low[j] = 0;
    }

    check(cbn_forward(&first, &batch, x, gamma, beta, eps, &none, &resources));
    put(first.data, matrix);
    put(batch.mean, vector);
    put(batch.var, vector);
    put(batch.invstd, vector);
    check(cbn_backward(&first, sums[0], sums[1], dy, x, &batch, gamma, &resources));
    put(first.data, matrix);
    put(sums[0], vector);
    put(sums[1], vector);
    check(cbn_inference(&first, &fixed, x, gamma, beta, eps, &none, &resources));
    put(first.data, matrix);
    check(cbn_inference_backward(&first, sums[0], sums[1], &fixed, dy, x, gamma, eps, &resources));
    put(first.data, matrix);
    put(sums[0], vector);
    put(sums[1], vector);
    if (plain) {
        check(cbn_jvp(&first, x_dot, x, &batch, gamma, gamma_dot, beta_dot, &resources));
        put(first.data, matrix);
        check(cbn_double_backward(&first, &second, sums[0], x_dot, dy, x, &batch, gamma, gamma_dot,
                                  beta_dot, &resources));
        put(first.data, matrix);
        put(second.data, matrix);
        put(sums[0], vector);
    }

    for (int i = 0; i < VECTORS; ++i) {
        free(v[i]);
    }
    void *rest[] = {m[0].data, m[1].data,    m[2].data,         first.data,  second.data,
                    sums[0],   sums[1],      resources.scratch, batch.mean,  batch.mean_low,
                    batch.var, batch.invstd, fixed.mean_low,    fixed.invstd};
    for (size_t i = 0; i < sizeof rest / sizeof *rest; ++i) {
        free(rest[i]);
    }
}

int main(int count, char **words)
{
    const int threads = count == 4 ? atoi(words[1]) : 0;
    if (threads < 1) {
        stop("expected THREADS INPUT OUTPUT");
    }
    input = fopen(words[2], "rb");
    output = fopen(words[3], "wb");
    if (input == NULL || output == NULL) {
        stop("cannot open the files");
    }
    check(cbn_isa_choose());
    int64_t head[4];
    while (fread(head, sizeof *head, 4, input) == 4) {
        compute(head, threads);
    }
    if (fclose(output) != 0) {
        stop("cannot write");
    }
    printf("%s %s\n", cbn_isa_chosen(), cbn_openmp_version() > 0 ? "openmp" : "serial");
    return 0;
}
