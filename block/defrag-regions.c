/*
 * Defragmentation planner: what was observed of each region
 *
 * A region is 256 blocks.  Of each block we know whether it is indirected, or
 * was moved into the image lately, and since when: in 16 bits, in ticks against
 * a base of the region that moves on as needed.  Deaths and exposure go into
 * the image's life table (defrag-life.h).
 *
 * Entries that are moved would be lost from sight just when they look as if
 * they lived long, and the table would believe its own mistakes.  So they are
 * watched for HORIZON: what is overwritten then has died like any other.
 *
 * Regions differ: swap space dies, files stay.  A region's factor to the common
 * rates is (O + K) / (X + K): the deaths O that it saw, and X, which its
 * entries would have seen by the common rates, pulled towards 1 by K.  (So
 * Clayton and Kaldor, Biometrics 43, 1987, compare the rates of a disease in
 * districts, with deaths from a Poisson distribution whose mean is X times a
 * factor, which has a gamma distribution.)  Blocks of a region were written
 * together and die together, so what they tell is less than their number says:
 * K is a quarter of a region.
 *
 * The past fades: counts are halved every 275 s.
 *
 * Cost: an event looks its region up in a hash table and touches each of its
 * blocks once; therefore it waits for a good time (defrag-queue.c).  Exposure of
 * what lives on is added up when the planner looks at the region.
 *
 * This work is licensed under the terms of the GNU GPL, version 2 or later.
 * See the COPYING file in the top-level directory.
 */

#include "qemu/osdep.h"
#include "defrag-plan-int.h"

/* since[] spans this many ticks, 1100 s */
#define WINDOW          65536
/* The K above */
#define PULL            64.0
/* Counts are halved after 2^14 ticks */
#define FADE_BITS       14
/* After so many times they are nothing */
#define FADE_MAX        40
/* A region whose counts are below this is forgotten if it is empty */
#define FORGET          0.5

void defrag_set_now(DefragPlan *p, int64_t now_ns)
{
    int64_t fade, times;

    p->tick = MAX(p->tick, DEFRAG_TICKS(now_ns));
    fade = p->tick >> FADE_BITS;
    for (times = MIN(fade - p->fade, FADE_MAX); times > 0; times--) {
        defrag_life_halve(&p->life);
    }
    p->fade = fade;
    if (p->tick - p->rated >= DEFRAG_SECOND) {
        defrag_life_update(&p->life);
        p->rated = p->tick;
    }
}

static bool bits_any(const uint64_t *bits)
{
    uint64_t any = 0;

    for (unsigned i = 0; i < REGION_WORDS; i++) {
        any |= bits[i];
    }
    return any;
}

static void region_fade(const DefragPlan *p, DefragRegion *r)
{
    int64_t times = p->fade - r->fade;

    r->fade = p->fade;
    if (times > 0) {
        double factor = times < FADE_MAX ? 1.0 / (1ULL << times) : 0;

        r->deaths *= factor;
        r->expected *= factor;
    }
}

/*
 * Let the region's base be near enough for the current tick.  What is older
 * then looks as if it were half a window old, which is old enough.
 */
static void region_rebase(const DefragPlan *p, DefragRegion *r)
{
    int64_t base = p->tick - WINDOW / 2;
    int64_t shift = base - r->base;

    if (p->tick - r->base < WINDOW) {
        return;
    }
    for (unsigned i = 0; i < REGION_BLOCKS; i++) {
        r->since[i] = r->since[i] > shift ? r->since[i] - shift : 0;
    }
    r->base = base;
}

/* Exposure of @n blocks from @i on, of one state and age, up to now. */
static void region_expose(DefragPlan *p, DefragRegion *r, unsigned i,
                          unsigned n)
{
    int64_t since = r->base + r->since[i];
    int64_t from = MAX(since, r->settled) - since;
    int64_t to = p->tick - since;

    if (defrag_bit(r->moved, i)) {
        to = MIN(to, HORIZON);
        from += r->moved_age;
        to += r->moved_age;
    }
    if (to > from) {
        r->expected += n * (defrag_life_hazard(&p->life, to) -
                            defrag_life_hazard(&p->life, from));
        defrag_life_expose(&p->life, from, to, n);
    }
}

void defrag_settle_region(DefragPlan *p, DefragRegion *r)
{
    unsigned i, n;

    for (i = 0; i < REGION_BLOCKS; i += n) {
        bool live = defrag_bit(r->live, i), moved = defrag_bit(r->moved, i);

        n = 1;
        if (!live && !moved) {
            continue;
        }
        while (i + n < REGION_BLOCKS && r->since[i + n] == r->since[i] &&
               defrag_bit(r->live, i + n) == live &&
               defrag_bit(r->moved, i + n) == moved) {
            n++;
        }
        region_expose(p, r, i, n);
        if (moved && p->tick - (r->base + r->since[i]) > HORIZON) {
            for (unsigned k = 0; k < n; k++) {
                defrag_bit_put(r->moved, i + k, false);
            }
        }
    }
    r->settled = p->tick;
}

DefragRegion *defrag_find_region(DefragPlan *p, uint64_t index)
{
    DefragRegion *r = g_hash_table_lookup(p->regions, &index);

    if (r) {
        region_rebase(p, r);
        region_fade(p, r);
    }
    return r;
}

static void plan_drop(DefragPlan *p, DefragRegion *r)
{
    DefragRegion *last;

    g_hash_table_remove(p->regions, &r->index);
    g_ptr_array_remove_index_fast(p->array, r->place);
    if (r->place < p->array->len) {
        last = g_ptr_array_index(p->array, r->place);
        last->place = r->place;
    }
    g_free(r);
}

/*
 * Go @steps regions further round, and drop those that have nothing to
 * remember; with @hard also those that only remember deaths.
 */
static void plan_collect(DefragPlan *p, unsigned steps, bool hard)
{
    while (steps-- && p->array->len) {
        DefragRegion *r;

        p->hand = p->hand < p->array->len ? p->hand : 0;
        r = g_ptr_array_index(p->array, p->hand);
        region_rebase(p, r);
        region_fade(p, r);
        if (bits_any(r->moved)) {
            defrag_settle_region(p, r);
        }
        if (!bits_any(r->live) && !bits_any(r->moved) &&
            (hard || (r->deaths + r->expected < FORGET && !r->split))) {
            plan_drop(p, r);            /* another takes its place */
        } else {
            p->hand++;
        }
    }
}

/* Find region @index, or make it.  NULL if there are too many. */
static DefragRegion *plan_get(DefragPlan *p, uint64_t index)
{
    DefragRegion *r = defrag_find_region(p, index);

    if (r) {
        return r;
    }
    plan_collect(p, 2, false);
    if (p->array->len >= p->max_regions) {
        plan_collect(p, 16, true);
    }
    if (p->array->len >= p->max_regions) {
        return NULL;
    }
    r = g_new0(DefragRegion, 1);
    r->index = index;
    r->base = p->tick - WINDOW / 2;
    r->settled = p->tick;
    r->fade = p->fade;
    r->place = p->array->len;
    g_ptr_array_add(p->array, r);
    g_hash_table_insert(p->regions, &r->index, r);
    return r;
}

double defrag_region_factor(const DefragRegion *r)
{
    return r ? (r->deaths + PULL) / (r->expected + PULL) : 1;
}

DefragPlan *defrag_plan_new(size_t max_regions)
{
    DefragPlan *p = g_new0(DefragPlan, 1);

    p->queue = g_new(DefragEvent, DEFRAG_QUEUE_LEN);
    p->regions = g_hash_table_new(g_int64_hash, g_int64_equal);
    p->array = g_ptr_array_new_with_free_func(NULL);
    p->max_regions = max_regions ?: DEFRAG_MAX_REGIONS;
    defrag_life_init(&p->life);
    return p;
}

void defrag_plan_free(DefragPlan *p)
{
    if (p) {
        for (size_t i = 0; i < p->array->len; i++) {
            g_free(g_ptr_array_index(p->array, i));
        }
        g_ptr_array_free(p->array, true);
        g_hash_table_destroy(p->regions);
        g_free(p->queue);
        g_free(p);
    }
}

/* Events */

/* Block @i of @r, live or moved, has been overwritten or discarded. */
static void region_die(DefragPlan *p, DefragRegion *r, unsigned i,
                       uint64_t *cause)
{
    bool moved = defrag_bit(r->moved, i);
    int64_t age = p->tick - (r->base + r->since[i]);

    region_expose(p, r, i, 1);
    if (moved && age > HORIZON) {
        defrag_bit_put(r->moved, i, false);
        return;
    }
    if (moved) {
        p->stats.wasted_1s += age <= DEFRAG_SECOND;
        p->stats.wasted_10s++;
        age += r->moved_age;
    } else {
        p->stats.spared += defrag_bit(r->held, i);
        ++*cause;
    }
    defrag_life_die(&p->life, age);
    p->event = p->tick;
    r->deaths++;
    defrag_bit_put(r->live, i, false);
    defrag_bit_put(r->moved, i, false);
    defrag_bit_put(r->held, i, false);
}

/* Those of the blocks @from to @to - 1 of @r die. */
static void region_die_range(DefragPlan *p, DefragRegion *r, unsigned from,
                             unsigned to, uint64_t *cause)
{
    for (unsigned i = from; i < to; i++) {
        uint64_t rest = (r->live[i / 64] | r->moved[i / 64]) >> (i % 64);

        if (!rest) {
            i |= 63;
            continue;
        }
        i += __builtin_ctzll(rest);
        if (i < to) {
            region_die(p, r, i, cause);
        }
    }
}

/* The part of [@block, @block + @n) that is in region @index. */
static void range_in_region(uint64_t block, uint64_t n, uint64_t index,
                            unsigned *from, unsigned *to)
{
    uint64_t first = index * REGION_BLOCKS;

    *from = block > first ? block - first : 0;
    *to = MIN(block + n - first, REGION_BLOCKS);
}

static void plan_die(DefragPlan *p, uint64_t block, uint64_t n,
                     uint64_t *cause)
{
    uint64_t first = block / REGION_BLOCKS;
    uint64_t last = (block + n - 1) / REGION_BLOCKS;
    unsigned from, to;

    if (last - first >= p->array->len) {
        for (size_t k = 0; k < p->array->len; k++) {
            DefragRegion *r = g_ptr_array_index(p->array, k);

            if (r->index >= first && r->index <= last) {
                region_rebase(p, r);
                region_fade(p, r);
                range_in_region(block, n, r->index, &from, &to);
                region_die_range(p, r, from, to, cause);
            }
        }
        return;
    }
    for (uint64_t index = first; index <= last; index++) {
        DefragRegion *r = defrag_find_region(p, index);

        if (r) {
            range_in_region(block, n, index, &from, &to);
            region_die_range(p, r, from, to, cause);
        }
    }
}

static void apply_indirected(DefragPlan *p, const DefragEvent *e)
{
    uint64_t block = e->block, end = e->block + e->n;

    p->event = p->tick;
    while (block < end) {
        DefragRegion *r = plan_get(p, block / REGION_BLOCKS);
        unsigned from, to;

        range_in_region(block, end - block, block / REGION_BLOCKS, &from, &to);
        if (r) {
            region_die_range(p, r, from, to, &p->stats.overwritten);
            for (unsigned i = from; i < to; i++) {
                defrag_bit_put(r->live, i, true);
                r->since[i] = p->tick - r->base;
            }
        } else {
            p->stats.untracked += to - from;
        }
        p->stats.indirected += to - from;
        block += to - from;
    }
}

static void apply_read_split(DefragPlan *p, const DefragEvent *e)
{
    p->stats.split_reads++;
    for (uint64_t index = e->block / REGION_BLOCKS;
         index <= (e->block + e->n - 1) / REGION_BLOCKS; index++) {
        DefragRegion *r = plan_get(p, index);

        if (r && !r->split) {
            r->split = true;
            if (p->nsplit < MAX_SPLIT) {
                p->split[p->nsplit++] = index;
            }
        }
    }
}

static void apply_moved(DefragPlan *p, const DefragEvent *e)
{
    uint64_t block = e->block, end = e->block + e->n;

    p->stats.moved += e->n;
    while (block < end) {
        uint64_t index = block / REGION_BLOCKS;
        DefragRegion *r = plan_get(p, index);
        unsigned from, to;

        range_in_region(block, end - block, index, &from, &to);
        block += to - from;
        if (!r) {
            continue;
        }
        defrag_settle_region(p, r);
        r->moved_age = defrag_bit(r->live, from)
                       ? p->tick - (r->base + r->since[from]) : DEFRAG_OLD_AGE;
        for (unsigned i = from; i < to; i++) {
            defrag_bit_put(r->live, i, false);
            defrag_bit_put(r->held, i, false);
            defrag_bit_put(r->moved, i, true);
            r->since[i] = p->tick - r->base;
        }
    }
}

void defrag_apply(DefragPlan *p, const DefragEvent *e)
{
    defrag_set_now(p, e->now_ns);
    switch (e->kind) {
    case DEFRAG_EVENT_INDIRECTED:
        apply_indirected(p, e);
        break;
    case DEFRAG_EVENT_OVERWRITTEN:
        plan_die(p, e->block, e->n, &p->stats.overwritten);
        break;
    case DEFRAG_EVENT_DISCARDED:
        plan_die(p, e->block, e->n, &p->stats.discarded);
        break;
    case DEFRAG_EVENT_MOVED:
        apply_moved(p, e);
        break;
    case DEFRAG_EVENT_READ_SPLIT:
        apply_read_split(p, e);
        break;
    }
}

void defrag_plan_relaid(DefragPlan *p, uint64_t slots)
{
    p->stats.relaid += slots;
}
