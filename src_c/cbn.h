/* cbn: batch normalization in C. The only header seen from outside src_c.
 *
 * Every array is one view (B, C, S) = outer, channel, inner, of any byte strides. An N x D matrix
 * is (N, D, 1), NCHW is (N, C, H * W). A position is one of the B * S places where every channel
 * has a value, counted in the order of the axes. Outputs come first and may be the same array as an
 * input (dx over dy, y over x); any other overlap is the caller's error.
 *
 * Per-channel numbers are float64 for every element dtype. mean + mean_low is the mean to twice
 * float64's precision: without mean_low, float64 data with |mean| = 1e12 std would lose its
 * last 40 bits of xhat.
 *
 * Nothing is allocated: scratch comes from the caller and is cbn_scratch_size() bytes, aligned
 * for double. Equation numbers refer to docs/math.md.
 */
#ifndef CBN_H
#define CBN_H

#include <stddef.h>

#ifdef __cplusplus
extern "C" {
#endif

typedef enum cbn_status {
    CBN_OK = 0,
    CBN_ERROR_DTYPE,           /* not a cbn_dtype */
    CBN_ERROR_SHAPE,           /* sizes of the arrays differ, are negative, or there are no rows */
    CBN_ERROR_LAYOUT,          /* strides a function does not take */
    CBN_ERROR_EPS,             /* eps negative or not finite */
    CBN_ERROR_THREADS,         /* fewer than one thread */
    CBN_ERROR_SCRATCH,         /* scratch missing or too small */
    CBN_ERROR_ISA_UNKNOWN,     /* CBN_ISA names no tier */
    CBN_ERROR_ISA_UNSUPPORTED, /* this build has no tier, or not that of CBN_ISA, for this CPU */
    CBN_STATUS_COUNT
} cbn_status;

/* Half types are computed in float32 and rounded once. */
typedef enum cbn_dtype {
    CBN_FLOAT32 = 0,
    CBN_FLOAT64,
    CBN_FLOAT16,
    CBN_BFLOAT16,
    CBN_DTYPE_COUNT
} cbn_dtype;

enum { CBN_MAX_DIMS = 64 };

/* An array seen as (B, C, S). Passed as const it is an input: data is not written. */
typedef struct cbn_array {
    void *data;
    cbn_dtype dtype;
    int swapped; /* the bytes of an element are in the other order */
    ptrdiff_t outer, channels, inner;
    ptrdiff_t channel_stride; /* bytes, may be 0 or negative, as may those below */
    /* The axes of the positions, those that step evenly being one; at least one. */
    int dims;
    ptrdiff_t shape[CBN_MAX_DIMS], strides[CBN_MAX_DIMS];
} cbn_array;

/* Which positions take part, in this order; NULL for all. Outputs elsewhere are not written. */
typedef struct cbn_selection {
    const ptrdiff_t *positions;
    ptrdiff_t count;
} cbn_selection;

/* What follows the affine map: + residual, then max(0, .). residual NULL: nothing is added. */
typedef struct cbn_activation {
    const cbn_array *residual;
    int relu;
} cbn_activation;

/* Statistics of a batch or of a population, C float64 each. `count` is the number of values per
 * channel they were made from, INFINITY for fixed statistics, which no x of the call moves; the
 * forward operations do not read it. */
typedef struct cbn_statistics {
    double *mean;
    double *mean_low; /* the part of the mean that did not fit into it */
    double *var;      /* biased: M2 / N */
    double *invstd;   /* 1 / sqrt(var + eps); 0 where var == 0 and eps == 0 */
    double count;
} cbn_statistics;

/* How to run: threads >= 1, scratch of at least cbn_scratch_size() bytes, all positions or some. */
typedef struct cbn_resources {
    int threads;
    void *scratch;
    size_t scratch_size;
    cbn_selection selection;
} cbn_resources;

/* One sentence for a status; never NULL. */
const char *cbn_status_text(cbn_status status);

/* Sets the sizes and strides of an array of 1 <= ndim <= CBN_MAX_DIMS dimensions whose channel axis
 * is `axis`.
 * Given:    shape and byte strides, 0 <= axis < ndim.
 * Returned: CBN_ERROR_SHAPE for a bad axis, a negative size or too many dimensions. */
cbn_status cbn_set_view(cbn_array *array, int ndim, const ptrdiff_t *shape,
                        const ptrdiff_t *strides, int axis);

/* The same with strides in elements of array->dtype, as tensors have them. */
cbn_status cbn_set_tensor_view(cbn_array *array, int ndim, const ptrdiff_t *shape,
                               const ptrdiff_t *strides, int axis);

/* Bytes of scratch that a function below needs for arrays of x's sizes and a selection;
 * double backward needs more, and less will do where every array is plain rows: float32 or float64,
 * native and aligned, with inner == 1 and adjacent channels. */
size_t cbn_scratch_size(const cbn_array *x, const cbn_selection *selection, int threads);
size_t cbn_plain_scratch_size(const cbn_array *x, int threads);
size_t cbn_double_backward_scratch_size(const cbn_array *x, int threads);

/* Parameters and their gradients of other dtypes; what float32 cannot hold is infinite. */
void cbn_to_float64(double *to, const float *from, ptrdiff_t count);
void cbn_to_float32(float *to, const double *from, ptrdiff_t count);

/* Running statistics, (47): running = (1 - momentum) * running + momentum * (factor * value). */
void cbn_average_float32(float *running, const double *value, double factor, double momentum,
                         ptrdiff_t count);
void cbn_average_float64(double *running, const double *value, double factor, double momentum,
                         ptrdiff_t count);

int cbn_any_negative(const double *values, ptrdiff_t count);

/* Elements of `size` bytes, side by side, to places `stride` bytes apart. */
void cbn_put(void *to, ptrdiff_t stride, const void *from, size_t size, ptrdiff_t count);

/* Statistics of x, (1)-(3). */
cbn_status cbn_moments(const cbn_statistics *statistics, const cbn_array *x, double eps,
                       const cbn_resources *resources);

/* The statistics of two disjoint sets of values, into those of the first: (44).
 * Given:    mean, mean_low, var and count of either; both counts > 0. invstd is not looked at. */
void cbn_merge_moments(cbn_statistics *statistics, const cbn_statistics *other, ptrdiff_t channels);

/* Sums of disjoint sets into those of the first, each with what it leaves out; that is 0 past the
 * range of float64. */
void cbn_merge_sums(double *sum, double *low, const double *other, const double *other_low,
                    ptrdiff_t count);

/* Training forward: statistics of x, then y = xhat * gamma + beta, (1)-(5), then the activation.
 * Given:    gamma, beta: C float64 each, NULL meaning ones and zeros; eps >= 0.
 * Returned: y and all four statistics.
 * Notes:    1) N == 1 gives var = 0 and y = beta. 2) A constant channel has var == 0 to the bit
 *           and y == beta. 3) A NaN or Inf stays in its channel. */
cbn_status cbn_forward(cbn_array *y, const cbn_statistics *statistics, const cbn_array *x,
                       const double *gamma, const double *beta, double eps,
                       const cbn_activation *activation, const cbn_resources *resources);

/* Inference: y = (x - mean) * invstd * gamma + beta, (42), then the activation.
 * Given:    mean, mean_low, var >= 0 of the population.
 * Returned: y and statistics->invstd. */
cbn_status cbn_inference(cbn_array *y, const cbn_statistics *statistics, const cbn_array *x,
                         const double *gamma, const double *beta, double eps,
                         const cbn_activation *activation, const cbn_resources *resources);

/* Training backward, (16) with the sums (46).
 * Given:    dy, x, the statistics of x (var is not read) and gamma (NULL meaning ones).
 * Returned: dx, dgamma = sum(dy * xhat), dbeta = sum(dy); the sums float64, never NULL.
 * Notes:    dx may be dy. N == 1 gives dx = 0. */
cbn_status cbn_backward(cbn_array *dx, double *dgamma, double *dbeta, const cbn_array *dy,
                        const cbn_array *x, const cbn_statistics *statistics, const double *gamma,
                        const cbn_resources *resources);

/* The sums of the backward pass alone, (46). */
cbn_status cbn_backward_sums(double *sum_dy_xhat, double *sum_dy, const cbn_array *dy,
                             const cbn_array *x, const cbn_statistics *statistics,
                             const cbn_resources *resources);

/* dx of sums that are given, for they may be those of more than this dy: (16) with (46).
 * Given:    statistics->count values per channel belong to the sums. dx may be dy. */
cbn_status cbn_backward_apply(cbn_array *dx, const cbn_array *dy, const cbn_array *x,
                              const cbn_statistics *statistics, const double *gamma,
                              double *sum_dy_xhat, double *sum_dy, const cbn_resources *resources);

/* Training backward through the activation: first gated = dy where y > 0 and 0 elsewhere, y being
 * computed again as forward did, then dx of that.
 * Given:    beta and the activation as forward had them; gated may be dx or dy. */
cbn_status cbn_gated_backward(cbn_array *dx, cbn_array *gated, double *dgamma, double *dbeta,
                              const cbn_array *dy, const cbn_array *x,
                              const cbn_statistics *statistics, const double *gamma,
                              const double *beta, const cbn_activation *activation,
                              const cbn_resources *resources);

/* Backward through inference: the statistics are constants, dx = gamma * invstd * dy, (42).
 * Given:    dy, x, mean, mean_low and var, gamma.
 * Returned: dx, dgamma, dbeta as above, and statistics->invstd. */
cbn_status cbn_inference_backward(cbn_array *dx, double *dgamma, double *dbeta,
                                  const cbn_statistics *statistics, const cbn_array *dy,
                                  const cbn_array *x, const double *gamma, double eps,
                                  const cbn_resources *resources);

/* The functions below take plain rows and all positions, and say CBN_ERROR_LAYOUT to others.
 *
 * Forward mode: the tangent y_dot = J x_dot + xhat * gamma_dot + beta_dot, (30).
 * Given:    tangents x_dot, gamma_dot, beta_dot; the last two NULL meaning zeros. */
cbn_status cbn_jvp(cbn_array *y_dot, const cbn_array *x_dot, const cbn_array *x,
                   const cbn_statistics *statistics, const double *gamma, const double *gamma_dot,
                   const double *beta_dot, const cbn_resources *resources);

/* The gradient of <ddx, dx> + <ddgamma, dgamma> + <ddbeta, dbeta> in dy, x and gamma, (50)-(57).
 * Given:    ddgamma, ddbeta NULL meaning zeros.
 * Returned: g_dy, g_x, g_gamma; neither output may be an input. */
cbn_status cbn_double_backward(cbn_array *g_dy, cbn_array *g_x, double *g_gamma,
                               const cbn_array *ddx, const cbn_array *dy, const cbn_array *x,
                               const cbn_statistics *statistics, const double *gamma,
                               const double *ddgamma, const double *ddbeta,
                               const cbn_resources *resources);

/* ISA tiers. cbn_isa_name(i) is the i-th tier this build has, slowest first, NULL past the end;
 * cbn_isa_supported(i) says whether this CPU runs it. */
const char *cbn_isa_name(int tier);
int cbn_isa_supported(int tier);

/* Choose the tier: CBN_ISA if set and not empty, else the fastest supported one. Call it once,
 * before any compute function; calling it again chooses again (not while others compute). */
cbn_status cbn_isa_choose(void);
const char *cbn_isa_chosen(void);

/* OpenMP: the value of _OPENMP it was compiled with, 0 for a serial build; omp_get_max_threads()
 * or 1. */
int cbn_openmp_version(void);
int cbn_openmp_max_threads(void);

#ifdef __cplusplus
}
#endif

#endif
