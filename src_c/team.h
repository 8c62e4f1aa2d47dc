/* The threads that carry out a plan: the only place with `omp parallel`.
 *
 * An operation is at most four steps: it starts the channels, reduces places to partial results,
 * finishes the channels (it merges the partial results and turns them into coefficients), and maps
 * places to the output. */
#ifndef CBN_TEAM_H
#define CBN_TEAM_H

#include "plan.h"

typedef void (*cbn_step)(const void *operation, const cbn_place *place);

/* Any may be NULL. */
typedef struct cbn_steps {
    cbn_step start;  /* channels, before any of their places */
    cbn_step reduce; /* a place */
    cbn_step finish; /* channels, all their places reduced */
    cbn_step map;    /* a place, its channels finished */
} cbn_steps;

/* `scratch` has cbn_plan_scratch() bytes and begins at a cache line. */
void cbn_team_work(const cbn_plan *plan, char *scratch, const cbn_steps *steps,
                   const void *operation);

#endif
