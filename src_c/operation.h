/* An operation under way: its arrays, where its partial results and coefficients lie, and what all
 * operations share. Which steps it takes is batch_norm.c's business. */
#ifndef CBN_OPERATION_H
#define CBN_OPERATION_H

#include "cbn.h"
#include "kernels/kernels.h"
#include "work.h"

/* Partial results of a tile, and coefficients that finished channels have, per column. */
enum { MOMENTS = 3, SUMS = 2, DOUBLE_SUMS = 6 };
enum { MEAN, MEAN_LOW, INVSTD, SCALE, ALONG_XHAT, ALONG_ONE, COEFFICIENTS };
enum { C_DY = COEFFICIENTS, C_DDX, C_XHAT, C_ONE, ZERO, ONE, DOUBLE_COEFFICIENTS };

typedef struct operation {
    cbn_work work;
    const cbn_kernels *kernels;
    cbn_input x, dy, ddx;
    cbn_output out, g_dy;
    cbn_statistics statistics;
    const double *gamma, *beta; /* beta is also what a tangent adds along one */
    const double *gamma_dot;    /* what it adds along xhat */
    double *dgamma, *dbeta;
    double eps;
    int partials;
    int in_order, stream; /* as in cbn_tile */
    double *partial;      /* chunks, and one for what is left over, x partials x columns */
    double *coefficients; /* one of the enums above x columns */
} operation;

cbn_input input_of(const cbn_array *array);
cbn_output output_of(cbn_array *array);

cbn_tile tile_of(const operation *op, cbn_place at);
cbn_input input_at(const operation *op, cbn_input in, cbn_place at);
cbn_output output_at(const operation *op, cbn_output out, cbn_place at);

double *partial_at(const operation *op, ptrdiff_t chunk, int k, cbn_place at);
double *coefficient(const operation *op, int k, cbn_place at);

/* The place's part of an array of a number a channel, NULL of NULL. */
const double *or_null(const double *values, cbn_place at);

/* Coefficients of the tile. Every factor must be readable: kernels look at all of them for channels
 * that need float64. Those a kernel does not use are given as invstd. */
cbn_channels channels_at(const operation *op, cbn_place at);

/* The given statistics as coefficients. */
void take_statistics(const operation *op, cbn_place at);

/* The first lane's coefficients for all lanes. */
void spread_to_lanes(const operation *op, cbn_place at);

/* Merge the partial results of a place's channels into chunk 0, lane 0. */
void merge_partials(const operation *op, cbn_place at);

size_t operation_scratch_size(const cbn_work *work, int partials);

/* Checks what the operations share, lays out the scratch and runs the steps. */
cbn_status operation_run(operation *op, const cbn_steps *steps, const cbn_array *const arrays[],
                         int count, const cbn_resources *resources);

#endif
