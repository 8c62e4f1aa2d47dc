#include "plan.h"

#include <math.h>

#include "kernels/kernels.h"

/* Work that a further thread must find before it pays for its wake-up, in elements. */
#define ELEMENTS_PER_THREAD 16384

/* More threads than pay for any call; libgomp ends the process when the system refuses one. */
#define MAX_THREADS 1024

/* A chunk has enough rows to spread the cost of a tile over them [chunk-rows], and there are at
 * most MAX_CHUNKS chunks. The partial results of a forward pass need less than 2 % of the memory of
 * a float32 input. */
#define MIN_CHUNK_ROWS 512
#define MAX_CHUNK_ROWS 2048
#define USUAL_CHUNKS 64
#define MAX_CHUNKS 8192

/* A row of lanes has at most so many columns. Arrays from FAR_ELEMENTS on come from memory, which
 * is read best in long rows; smaller ones stay in the caches, and shorter rows keep their
 * coefficients there too [lane-columns]. */
#define FAR_ELEMENTS (4 << 20)
#define FAR_LANES_COLUMNS 2048
#define LANES_COLUMNS 1024

/* A lane has at least so many rows, which spread the cost of a tile as those of a chunk do. */
#define MIN_LANE_ROWS 256

/* A strip is as wide as MAX_STRIP if it can be, because memory is read best in long rows
 * [strip-width]. */
#define MAX_STRIP 4096
#define MIN_STRIP 64

/* A run of an inner axis is long, so that the loop over it is long. It is the longer the more rows
 * there are, since its columns have to be merged once for all of them: 8 rows have runs of 1024
 * columns, 16 of 2048, 32 of 4096 [run-length]. */
#define MAX_RUN 4096
#define MIN_RUN 32
#define MIN_RUN_ROWS 8
#define RUN_COLUMNS_PER_ROW 128

/* A channel with fewer positions costs more than its run is worth, and rows are gathered instead
 * [few-positions]. One image needs more of them, because x.T must have the bytes of x where rows
 * are cheap. */
#define MIN_POSITIONS 64
#define MIN_POSITIONS_OF_ONE 1024

/* Several channels of a short inner axis are taken together if there are several images: so many
 * columns make a loop long enough [channel-groups]. */
#define SHORT_INNER 1024
#define GROUP_COLUMNS 2048
#define MIN_IMAGES 2

/* Channels of a strip that stay in the second-level cache from pass to pass, in elements. */
#define NEAR_ELEMENTS (64 << 10)

static ptrdiff_t min(ptrdiff_t a, ptrdiff_t b) { return a < b ? a : b; }
static ptrdiff_t max(ptrdiff_t a, ptrdiff_t b) { return a > b ? a : b; }
/* a / b, rounded up, for a > 0. Small calls do without the division, which takes long beside the
 * rest of their work [no-division]. */
static ptrdiff_t ceil_div(ptrdiff_t a, ptrdiff_t b)
{
    return a <= b ? 1 : b == 1 ? a : (a - 1) / b + 1;
}

/* In floating point, since strides of 0 make rows huge. */
static int useful_threads(ptrdiff_t positions, ptrdiff_t channels, int threads)
{
    const double most = (double)positions * (double)channels / ELEMENTS_PER_THREAD;
    const int allowed = (int)min(threads, MAX_THREADS);
    return most < 2 || allowed < 1 ? 1 : most < allowed ? (int)most : allowed;
}

static ptrdiff_t whole_blocks(ptrdiff_t rows, ptrdiff_t chunks)
{
    return ceil_div(ceil_div(rows, chunks), CBN_BLOCK_ROWS) * CBN_BLOCK_ROWS;
}

static ptrdiff_t chunk_rows_of(ptrdiff_t rows)
{
    if (rows <= MIN_CHUNK_ROWS) {
        return MIN_CHUNK_ROWS;
    }
    const ptrdiff_t usual = min(whole_blocks(rows, USUAL_CHUNKS), MAX_CHUNK_ROWS);
    return max(max(usual, MIN_CHUNK_ROWS), whole_blocks(rows, MAX_CHUNKS));
}

/* A power of two. */
static ptrdiff_t lanes_of(ptrdiff_t positions, ptrdiff_t channels)
{
    const int far = (double)positions * (double)channels >= FAR_ELEMENTS;
    const ptrdiff_t columns = far ? FAR_LANES_COLUMNS : LANES_COLUMNS;
    ptrdiff_t lanes = 1;
    while (channels > 0 && 2 * lanes * channels <= columns &&
           positions >= 2 * lanes * MIN_LANE_ROWS) {
        lanes *= 2;
    }
    return lanes;
}

/* All of a short inner axis; of a long one or one image the longest divisor that serves, so that no
 * run crosses its end; else a power of two. */
static ptrdiff_t run_of(ptrdiff_t positions, ptrdiff_t inner)
{
    const double worth = sqrt((double)RUN_COLUMNS_PER_ROW * (double)positions);
    const ptrdiff_t most =
        min(positions / MIN_RUN_ROWS, worth < MAX_RUN ? (ptrdiff_t)worth : MAX_RUN);
    if (inner <= SHORT_INNER && positions / inner >= MIN_IMAGES) {
        return inner;
    }
    for (ptrdiff_t run = most; run >= MIN_RUN; --run) {
        if (inner % run == 0) {
            return run;
        }
    }
    ptrdiff_t run = MIN_RUN;
    while (2 * run <= most) {
        run *= 2;
    }
    return run;
}

static void set_strips(cbn_plan *plan, ptrdiff_t strip)
{
    plan->strip = strip;
    plan->strips = ceil_div(plan->columns, strip);
}

/* Threads share the rows in maps even where they share the columns in reductions. If they shared
 * the columns, a core's prefetchers would run at the end of each row into what another core has
 * just written [shared-rows]. */
int cbn_plan_maps_share_rows(const cbn_plan *plan)
{
    return plan->threads > 1 && plan->run == 1 && plan->columns <= MAX_STRIP &&
           (!plan->by_rows || plan->chunks < plan->threads);
}

/* Threads share the chunks of narrow arrays and of those whose chunks can be dealt evenly. */
static int rows_are_shared(const cbn_plan *plan)
{
    const int narrow = plan->channels < (ptrdiff_t)plan->threads * MAX_STRIP;
    const int even = plan->chunks >= 2 * plan->threads || plan->chunks == plan->threads;
    return plan->lanes > 1 || (plan->threads > 1 && narrow && even);
}

/* Strips of at most MAX_STRIP columns: as many for each thread if they share strips, and enough for
 * all threads if they share the chunks. */
static ptrdiff_t strip_of(const cbn_plan *plan)
{
    ptrdiff_t strips = plan->columns > MAX_STRIP ? ceil_div(plan->columns, MAX_STRIP) : 1;
    if (!plan->by_rows) {
        strips = ceil_div(strips, plan->threads) * plan->threads;
    } else if (plan->threads > plan->chunks * strips) {
        const ptrdiff_t wanted = ceil_div(plan->threads, plan->chunks);
        const ptrdiff_t most = plan->columns / MIN_STRIP;
        strips = wanted < most ? wanted : most > 1 ? most : 1;
    }
    return ceil_div(ceil_div(plan->columns > 0 ? plan->columns : 1, strips), 16) * 16;
}

/* The last strip may be a line longer, and kernels choose where in 4 KiB a slot begins. */
static size_t slot_bytes_of(ptrdiff_t columns)
{
    return (size_t)(columns + 16) * sizeof(double) + 4096;
}

static void split_rows(cbn_plan *plan)
{
    plan->run = 1;
    plan->lanes = lanes_of(plan->positions, plan->channels);
    plan->left_over = plan->positions & (plan->lanes - 1);
    plan->columns = plan->lanes * plan->channels;
    plan->rows = plan->lanes == 1 ? plan->positions : plan->positions / plan->lanes;
    plan->chunk_rows = chunk_rows_of(plan->rows);
    plan->chunks = ceil_div(plan->rows, plan->chunk_rows);
    plan->by_rows = rows_are_shared(plan);
    set_strips(plan, strip_of(plan));
    /* Rows that are left over or shared have all channels, and so have lanes that are strips. */
    const int whole_rows = plan->lanes > 1 || cbn_plan_maps_share_rows(plan);
    plan->slot_bytes = slot_bytes_of(whole_rows ? max(plan->channels, plan->strip) : plan->strip);
}

/* How many channels' runs a kernel takes at once: several of a short inner axis, but every thread
 * has its share. */
static ptrdiff_t group_of(const cbn_plan *plan, ptrdiff_t inner)
{
    const ptrdiff_t wanted = plan->run == inner ? max(GROUP_COLUMNS / inner, 1) : 1;
    return min(wanted, max(plan->channels / (4 * plan->threads), 1));
}

/* Whole groups, as many as stay in the second-level cache; threads that have too few channels to
 * share share the chunks. */
static ptrdiff_t strip_of_runs(const cbn_plan *plan)
{
    const ptrdiff_t share = plan->channels / (4 * plan->threads);
    const ptrdiff_t most = min(NEAR_ELEMENTS / plan->positions, share);
    return plan->by_rows || most < plan->group ? plan->group : most / plan->group * plan->group;
}

static void split_runs(cbn_plan *plan, ptrdiff_t inner)
{
    plan->run = run_of(plan->positions, inner);
    plan->run_left_over = plan->positions % plan->run;
    plan->lanes = 1;
    plan->columns = plan->channels;
    plan->rows = plan->positions / plan->run;
    plan->chunk_rows = chunk_rows_of(plan->rows);
    plan->chunks = ceil_div(plan->rows, plan->chunk_rows);
    plan->by_rows = plan->threads > 1 && plan->channels < 4 * (ptrdiff_t)plan->threads;
    plan->group = group_of(plan, inner);
    set_strips(plan, strip_of_runs(plan));
    plan->slot_bytes = slot_bytes_of(plan->group * plan->run);
}

cbn_plan cbn_plan_for(ptrdiff_t positions, ptrdiff_t channels, ptrdiff_t inner, int threads,
                      int direct)
{
    cbn_plan plan = {.positions = positions, .channels = channels};
    plan.threads = useful_threads(positions, channels, threads);
    plan.slots = direct ? CBN_DIRECT_SLOTS : CBN_SLOTS;
    const ptrdiff_t least = positions > inner ? MIN_POSITIONS : MIN_POSITIONS_OF_ONE;
    if (inner > 1 && positions >= least) {
        split_runs(&plan, inner);
    } else {
        split_rows(&plan);
    }
    if (plan.by_rows && plan.threads > plan.chunks * plan.strips) {
        plan.threads = (int)(plan.chunks * plan.strips);
    }
    return plan;
}

void cbn_plan_align(cbn_plan *plan, ptrdiff_t lead) { plan->lead = lead; }

void cbn_plan_separate_lanes(cbn_plan *plan) { set_strips(plan, plan->channels); }

size_t cbn_plan_thread_scratch(const cbn_plan *plan)
{
    return (size_t)plan->slots * plan->slot_bytes;
}

size_t cbn_plan_scratch(const cbn_plan *plan)
{
    return (size_t)plan->threads * cbn_plan_thread_scratch(plan);
}

ptrdiff_t cbn_plan_chunk_end(const cbn_plan *plan, ptrdiff_t chunk)
{
    return chunk + 1 < plan->chunks ? (chunk + 1) * plan->chunk_rows : plan->rows;
}

ptrdiff_t cbn_plan_positions_before_end(const cbn_plan *plan, ptrdiff_t chunk)
{
    const ptrdiff_t left_over = chunk + 1 < plan->chunks ? 0 : plan->run_left_over;
    return cbn_plan_chunk_end(plan, chunk) * plan->run + left_over;
}

/* --- who takes what -------------------------------------------------------------------------- */

ptrdiff_t cbn_plan_share_begin(ptrdiff_t total, int share, int shares)
{
    return shares == 1 ? total * share : total * share / shares;
}

cbn_place cbn_plan_place(const cbn_plan *plan, ptrdiff_t chunk, ptrdiff_t strip)
{
    const ptrdiff_t column = strip > 0 ? strip * plan->strip - plan->lead : 0;
    const ptrdiff_t next = (strip + 1) * plan->strip - plan->lead;
    const ptrdiff_t end = strip + 1 < plan->strips ? next : plan->columns;
    return (cbn_place){.chunk = chunk, .column = column, .columns = end - column};
}

cbn_place cbn_plan_left_over(const cbn_plan *plan)
{
    return (cbn_place){.chunk = plan->chunks, .columns = plan->channels};
}

/* How many threads are dealt channels: the lanes of all channels are merged by one. */
static int sharers_of_channels(const cbn_plan *plan, int threads)
{
    return plan->lanes > 1 ? 1 : threads;
}

/* Strips of shared rows: they are whole, but lanes may be strips that do not touch. */
static ptrdiff_t strips_of_shared_rows(const cbn_plan *plan)
{
    return plan->lanes > 1 ? plan->strips : 1;
}

static ptrdiff_t dealt_of_all(const cbn_plan *plan, cbn_deal deal, int thread, int threads)
{
    if (deal == CBN_CHANNELS) {
        return thread < sharers_of_channels(plan, threads);
    }
    if (deal == CBN_SHARED_ROWS) {
        return plan->chunks * strips_of_shared_rows(plan);
    }
    const ptrdiff_t places = plan->chunks * plan->strips;
    return cbn_plan_share_begin(places, thread + 1, threads) -
           cbn_plan_share_begin(places, thread, threads);
}

ptrdiff_t cbn_plan_dealt(const cbn_plan *plan, cbn_deal deal, int thread, int threads)
{
    const int last = deal != CBN_CHANNELS && plan->left_over > 0 && thread == threads - 1;
    return dealt_of_all(plan, deal, thread, threads) + last;
}

cbn_place cbn_plan_deal(const cbn_plan *plan, cbn_deal deal, int thread, int threads, ptrdiff_t i)
{
    const ptrdiff_t dealt = dealt_of_all(plan, deal, thread, threads);
    if (i == dealt) {
        return cbn_plan_left_over(plan);
    }
    if (deal == CBN_CHANNELS) {
        const int sharers = sharers_of_channels(plan, threads);
        const ptrdiff_t first = cbn_plan_share_begin(plan->channels, thread, sharers);
        const ptrdiff_t end = cbn_plan_share_begin(plan->channels, thread + 1, sharers);
        return (cbn_place){.column = first, .columns = end - first};
    }
    if (deal == CBN_SHARED_ROWS) {
        const ptrdiff_t strips = strips_of_shared_rows(plan), at = dealt - 1 - i;
        cbn_place place = cbn_plan_place(plan, at / strips, at % strips);
        place.columns = plan->lanes > 1 ? place.columns : plan->columns;
        place.share = thread;
        place.shares = threads;
        return place;
    }
    const ptrdiff_t first = cbn_plan_share_begin(plan->chunks * plan->strips, thread, threads);
    const ptrdiff_t at = first + (deal == CBN_PLACES_BACKWARDS ? dealt - 1 - i : i);
    return cbn_plan_place(plan, at / plan->strips, at % plan->strips);
}
