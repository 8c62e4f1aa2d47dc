/* An operation under way: its arrays, where its partial results and coefficients lie, and what all
 * operations share. Which steps it takes is batch_norm.c's business. */
#ifndef CBN_OPERATION_H
#define CBN_OPERATION_H

#include "access.h"
#include "cbn.h"
#include "kernels/kernels.h"
#include "work.h"

/* Partial results of a tile, and coefficients that finished channels have, per column. */
enum { MOMENTS = 3, SUMS = 2, DOUBLE_SUMS = 6 };
enum { MEAN, MEAN_LOW, INVSTD, SCALE, ALONG_XHAT, ALONG_ONE, COEFFICIENTS };
enum { C_DY = COEFFICIENTS, C_DDX, C_XHAT, C_ONE, ZERO, ONE, DOUBLE_COEFFICIENTS };

enum { X, DY, OUT, RESIDUAL, DDX, G_DY, GATED, OPERANDS };

typedef struct operation {
    cbn_work work;
    const cbn_kernels *kernels;
    const cbn_array *operands[OPERANDS]; /* NULL where it has none */
    const cbn_array_access *accesses;    /* to those that there are, unless they are plain */
    const cbn_kernels *half;             /* the kernels, of a half type, else NULL */
    int plain;                           /* operands are plain rows, taken as they lie */
    cbn_statistics statistics;
    const double *gamma, *beta; /* beta is also what a tangent adds along one */
    const double *gamma_dot;    /* what it adds along xhat */
    double *dgamma, *dbeta;
    double eps;
    int relu;
    int partials;
    int in_order; /* as in cbn_tile */
    cbn_stores stores;
    double *partial;      /* chunks, and one for what is left over, x partials x columns */
    double *coefficients; /* one of the enums above x columns */
} operation;

/* What a kernel is called with: a tile, or of arrays with an inner axis the part of it that belongs
 * to one channel, whole runs first and then what is left over. */
typedef struct cbn_piece {
    cbn_place at;
    cbn_tile tile;
    ptrdiff_t position, step, column; /* of the first row, from row to row, of the first element */
    ptrdiff_t parts;                  /* pieces so far */
} cbn_piece;

/* The next piece of a place, from {.parts = 0} on; for a map what is left over is a row, for a
 * reduction a column. Returned: 0 after the last one. */
int next_piece(const operation *op, cbn_place at, int map, cbn_piece *piece);

/* The rows of an operand in a piece. */
cbn_rows rows_of(const operation *op, int operand, const cbn_piece *piece);

double *partial_at(const operation *op, ptrdiff_t chunk, int k, cbn_place at);
double *coefficient(const operation *op, int k, cbn_place at);

/* A given array of a number a channel as coefficient k: itself, or a copy for each lane. take()
 * comes before spread_to_lanes(), taken() after it. */
void take(const operation *op, int k, const double *values, cbn_place at);
const double *taken(const operation *op, int k, const double *values, cbn_place at);

/* The place's part of an array of a number a channel, NULL of NULL. */
const double *or_null(const double *values, cbn_place at);

/* Coefficients of a place. Every factor must be readable: kernels look at all of them for channels
 * that need float64. Those a kernel does not use are given as invstd. */
cbn_channels channels_at(const operation *op, cbn_place at);

/* take() of the statistics. */
void take_statistics(const operation *op, cbn_place at);

/* The first lane's coefficients for all lanes. */
void spread_to_lanes(const operation *op, cbn_place at);

/* Reduces a place to its partial results: kernel() is called for every piece. */
typedef void (*cbn_reduction)(const operation *op, const cbn_piece *piece, double *const results[]);
void reduce_place(const operation *op, cbn_place at, cbn_reduction kernel);

/* Merge the partial results of a place's channels into chunk 0, lane 0. */
void merge_partials(const operation *op, cbn_place at);

/* A value of x, which is float64. */
double value_of_x(const operation *op, ptrdiff_t position, ptrdiff_t channel);

size_t operation_scratch_size(const cbn_work *work, int partials);

/* Checks what the operations share, lays out the scratch and runs the steps. `plain` operations
 * take no others than plain rows. */
cbn_status operation_run(operation *op, const cbn_steps *steps, int plain,
                         const cbn_resources *resources);

#endif
