/* An operation under way: its arrays, where its partial results and coefficients lie, and what all
 * operations share. Which steps it takes is batch_norm.c's business. */
#ifndef CBN_OPERATION_H
#define CBN_OPERATION_H

#include "access.h"
#include "cbn.h"
#include "kernels/kernels.h"
#include "plan.h"
#include "team.h"

typedef struct operation operation;

/* What a kernel is called with: a tile, and where its rows are. It is the whole place, or in arrays
 * with an inner axis what belongs to a group of channels: first whole runs, then what is left
 * over. */
typedef struct cbn_piece {
    cbn_place place;
    cbn_tile tile;
    ptrdiff_t position, step, column; /* of the first row, from row to row, of the first element */
    ptrdiff_t index;                  /* of the next piece of the place */
} cbn_piece;

enum { MOST_PARTIALS = 6 };

/* What an operation reduces its arrays to. */
typedef struct cbn_reduction {
    int partials;     /* numbers of each column that a place is reduced to */
    int coefficients; /* numbers of each column that steps make of them */

    /* Reduces a piece to partial results. */
    void (*kernel)(const operation *op, const cbn_piece *piece, double *const results[]);

    /* Merges the partial results of n2 positions into those of n1 positions. */
    void (*merge)(const operation *op, double *const into[], double *const from[], ptrdiff_t n1,
                  ptrdiff_t n2, ptrdiff_t count);
} cbn_reduction;

/* The coefficients of all reductions. Double backward has more (steps.c). */
enum { MEAN, MEAN_LOW, INVSTD, SCALE, ALONG_XHAT, ALONG_ONE, COEFFICIENTS };

/* What makes an operation: what it reduces, if it does, and its steps. */
typedef struct cbn_recipe {
    const cbn_reduction *reduction;
    cbn_steps steps;
} cbn_recipe;

enum { X, DY, OUT, RESIDUAL, DDX, G_DY, GATED, OPERANDS };

struct operation {
    const cbn_array *operands[OPERANDS]; /* NULL where it has none */
    cbn_statistics statistics;
    const double *gamma, *beta; /* beta is also what a tangent adds along one */
    const double *gamma_dot;    /* what it adds along xhat */
    double *dgamma, *dbeta;
    double eps;
    int relu;

    /* Set by operation_run(). */
    const cbn_recipe *recipe;
    const cbn_kernels *kernels;
    const cbn_kernels *half;          /* the kernels, of a half type, else NULL */
    const cbn_array_access *accesses; /* to the operands; NULL where rows are used as they lie */
    cbn_plan plan;
    int in_order; /* as in cbn_tile */
    cbn_stores stores;
    double *partial;      /* (chunks, and one for what is left over) x partials x columns */
    double *coefficients; /* coefficients x columns */
};

/* The next piece of a place, from {.index = 0} on. What is left over is one row for a map, one
 * column for a reduction. Returned: 0 after the last one. */
int next_piece(const operation *op, const cbn_place *place, int map, cbn_piece *piece);

/* The rows of an operand in a piece; an operand that there is not has none. */
cbn_rows rows_of(const operation *op, int operand, const cbn_piece *piece);

double *partial_at(const operation *op, ptrdiff_t chunk, int k, const cbn_place *place);
double *coefficient(const operation *op, int k, const cbn_place *place);

/* Numbers of each channel that the caller has given, for all lanes: copy_to_lanes() makes them
 * coefficient k if there are lanes, before spread_to_lanes(); for_lanes() is where they are after
 * it. */
void copy_to_lanes(const operation *op, int k, const double *values, const cbn_place *place);
const double *for_lanes(const operation *op, int k, const double *values, const cbn_place *place);

/* The place's part of an array of a number a channel; NULL stays NULL. */
const double *or_null(const double *values, const cbn_place *place);

/* Numbers of the channels of a place. Every factor must be readable: kernels look at all of them
 * for channels that need float64. Those that a kernel does not use are given as invstd. */
cbn_channels channels_at(const operation *op, const cbn_place *place);

/* copy_to_lanes() of the statistics. */
void copy_statistics_to_lanes(const operation *op, const cbn_place *place);

/* The first lane's coefficients become those of all lanes. */
void spread_to_lanes(const operation *op, const cbn_place *place);

/* A step that reduces a place to its partial results, by the operation's reduction. */
void reduce_place(const void *operation, const cbn_place *place);

/* Merges the partial results of a place's channels into chunk 0, lane 0. */
void merge_partials(const operation *op, const cbn_place *place);

/* A value of x, which is float64. */
double value_of_x(const operation *op, ptrdiff_t position, ptrdiff_t channel);

/* Bytes of scratch of an operation with this reduction. */
size_t operation_scratch_size(const cbn_plan *plan, const cbn_reduction *reduction);

/* Checks the arguments, lays out the scratch and takes the steps. Nothing is written unless
 * everything is in order. Operations that are `plain` take no arrays but plain rows (cbn.h). */
cbn_status operation_run(operation *op, const cbn_recipe *recipe, int plain,
                         const cbn_resources *resources);

#endif
