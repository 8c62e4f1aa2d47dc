#include "team.h"

#ifdef _OPENMP
#include <omp.h>
#endif

#include "cbn.h"
#include "compiler.h"

typedef struct team {
    const cbn_plan *plan;
    char *scratch;
    const cbn_steps *steps;
    const void *operation;
} team;

/* One of the threads of a team. */
typedef struct member {
    const team *team;
    int thread, threads;
} member;

static void barrier(const member *m)
{
    if (m->threads > 1) {
#ifdef _OPENMP
#pragma omp barrier
#endif
    }
}

static void take(const member *m, cbn_step step, cbn_place place)
{
    const size_t before = (size_t)m->thread * cbn_plan_thread_scratch(m->team->plan);
    place.scratch = m->team->scratch + before;
    step(m->team->operation, &place);
}

static void take_dealt(const member *m, cbn_step step, cbn_deal deal)
{
    const cbn_plan *const plan = m->team->plan;
    const ptrdiff_t count = cbn_plan_dealt(plan, deal, m->thread, m->threads);
    for (ptrdiff_t i = 0; i < count; ++i) {
        take(m, step, cbn_plan_deal(plan, deal, m->thread, m->threads, i));
    }
}

/* A step of all threads, which wait for each other after it. */
static void take_together(const member *m, cbn_step step, cbn_deal deal)
{
    if (step != NULL) {
        take_dealt(m, step, deal);
        barrier(m);
    }
}

/* The map begins where the reduction ended, whose rows are in the cache. */
static void work_by_rows(const member *m)
{
    const cbn_steps *const steps = m->team->steps;
    const int shared = cbn_plan_maps_share_rows(m->team->plan);
    take_together(m, steps->start, CBN_CHANNELS);
    take_together(m, steps->reduce, CBN_PLACES);
    take_together(m, steps->finish, CBN_CHANNELS);
    if (steps->map != NULL) {
        take_dealt(m, steps->map, shared ? CBN_SHARED_ROWS : CBN_PLACES_BACKWARDS);
    }
}

/* All steps of one strip, so that it may stay in the cache. */
static void take_strip(const member *m, ptrdiff_t strip, cbn_step map)
{
    const cbn_plan *const plan = m->team->plan;
    const cbn_steps *const steps = m->team->steps;
    if (steps->start != NULL) {
        take(m, steps->start, cbn_plan_place(plan, 0, strip));
    }
    for (ptrdiff_t chunk = 0; steps->reduce != NULL && chunk < plan->chunks; ++chunk) {
        take(m, steps->reduce, cbn_plan_place(plan, chunk, strip));
    }
    if (steps->finish != NULL) {
        take(m, steps->finish, cbn_plan_place(plan, 0, strip));
    }
    for (ptrdiff_t chunk = plan->chunks; map != NULL && chunk-- > 0;) {
        take(m, map, cbn_plan_place(plan, chunk, strip));
    }
}

/* Each thread takes its strips and waits for nobody, unless maps share the rows. */
static void work_by_strips(const member *m)
{
    const cbn_plan *const plan = m->team->plan;
    const cbn_step map = m->team->steps->map;
    const int shared = cbn_plan_maps_share_rows(plan);
    const ptrdiff_t end = cbn_plan_share_begin(plan->strips, m->thread + 1, m->threads);
    ptrdiff_t strip = cbn_plan_share_begin(plan->strips, m->thread, m->threads);
    for (; strip < end; ++strip) {
        take_strip(m, strip, shared ? NULL : map);
    }
    if (shared && map != NULL) {
        barrier(m);
        take_dealt(m, map, CBN_SHARED_ROWS);
    }
}

static void work(const team *of, int thread, int threads)
{
    const member m = {of, thread, threads};
    (of->plan->by_rows ? work_by_rows : work_by_strips)(&m);
}

#if defined(_OPENMP) && !defined(_WIN32)
#include <pthread.h>

/* libgomp's threads do not survive fork(), and a child that asks for them waits for ever
 * (GCC bug 60035). Whoever had them in the parent: a forked child runs serially. */
static volatile int forked;

/* uncovered: it runs in a child that ends without writing its counts */
static void after_fork_in_child(void) { forked = 1; }

CBN_AT_LOAD static void watch_forks(void) { pthread_atfork(NULL, NULL, after_fork_in_child); }

static int threads_allowed(void) { return !forked && !omp_in_parallel(); }
#elif defined(_OPENMP)
static int threads_allowed(void) { return !omp_in_parallel(); }
#endif

/* One thread never enters the OpenMP runtime: it may be missing, broken by a fork, or unable to
 * create threads. A runtime that grants fewer threads than asked for changes nothing but time. */
void cbn_team_work(const cbn_plan *plan, char *scratch, const cbn_steps *steps,
                   const void *operation)
{
    const team all = {plan, scratch, steps, operation};
#ifdef _OPENMP
    if (plan->threads > 1 && threads_allowed()) {
#pragma omp parallel num_threads(plan->threads)
        work(&all, omp_get_thread_num(), omp_get_num_threads());
        return;
    }
#endif
    work(&all, 0, 1);
}

int cbn_openmp_version(void)
{
#ifdef _OPENMP
    return _OPENMP;
#else
    return 0;
#endif
}

int cbn_openmp_max_threads(void)
{
#ifdef _OPENMP
    return omp_get_max_threads();
#else
    return 1;
#endif
}
