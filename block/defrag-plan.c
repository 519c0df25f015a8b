/*
 * Defragmentation planner: which indirections of one image to undo next
 *
 * Much of what a guest writes from swapped-out memory is swap space of its own:
 * it will soon be overwritten or discarded, and moving it is work for nothing.
 * So the planner measures how long entries live and moves a block only if it
 * will probably outlive the next ten seconds (HORIZON).
 *
 * Survival.  The age of an entry is the time since its block was indirected.
 * Ages fall into bins that double in width.  For each bin j we count deaths
 * D[j] (overwritten or discarded) and exposure E[j] (for how long entries were
 * seen at that age, in sum); D/E is the rate of dying at that age (estimated by
 * occurrence and exposure of a piecewise constant hazard, the actuaries' form
 * of Kaplan and Meier's, J. Am. Stat. Assoc. 53, 1958).  Entries that are moved
 * would be lost to observation just when they look as if they lived long, so
 * they are watched on for HORIZON: what is overwritten then dies like the
 * others, and a bad rule corrects itself.  Integrating the rate gives the
 * cumulated hazard H(age).
 *
 * Regions differ: swap space dies, files stay.  Each region of 256 blocks has
 * a factor to the common rate, (O + K) / (X + K): the deaths O that it saw,
 * and X, which its entries would have seen by the common rate, pulled towards
 * 1 by K while there are few (Clayton and Kaldor, Biometrics 43, 1987, do this
 * with the rates of diseases in districts).  A block of age a is *ripe* if
 *
 *      (O + K) / (X + K) * (H(a + HORIZON) - H(a))  <=  MAX_HAZARD
 *
 * which is -log of the probability to survive the horizon.  In addition no
 * block is ripe below MIN_AGE, as runs grow while a guest writes; every one is
 * at OLD_AGE, 275 s, so that everything is moved in the end.  A bin that few
 * entries have reached is not judged by a region's good behaviour at younger
 * ages: its share gets a factor of at least 1, and a rate that assumes that
 * what lived for t has a fair chance to live for t once more.
 *
 * The past fades: counts are halved every 275 s.
 *
 * Cost.  Times are kept per block in 16 bits, in ticks of 16.8 ms, against a
 * base of the region that moves on as needed.  An event looks its region up in
 * a hash table and then touches each of its blocks once.  The rest, H and the
 * exposure of those that live on, is calculated when the planner looks at a
 * region.
 *
 * This work is licensed under the terms of the GNU GPL, version 2 or later.
 * See the COPYING file in the top-level directory.
 */

#include "qemu/osdep.h"
#include "bsst/defrag-plan.h"

#define REGION_BLOCKS   DEFRAG_REGION_BLOCKS
#define WORDS           (REGION_BLOCKS / 64)

/* Ticks of 2^24 ns */
#define TICK_BITS       24
#define NS_TO_TICKS(ns) ((ns) >> TICK_BITS)
#define HORIZON         NS_TO_TICKS(DEFRAG_WATCH_NS)    /* 9.99 s */
#define SECOND          NS_TO_TICKS(1000000000)         /* 0.99 s */
#define MIN_AGE         (SECOND + 1)
#define WINDOW          65536                           /* 1100 s */

/* Ages: bin 0 is [0, 16) ticks, bin j is [2^(j + 3), 2^(j + 4)) */
#define BINS            12
#define BIN_SHIFT       3
#define OLD_AGE         (1 << (BINS - 1 + BIN_SHIFT))   /* the last bin's */

/* Survives the horizon with a probability of 0.97 */
#define MAX_HAZARD      0.03
/* Entries that must have passed a bin before its rate is taken as known */
#define ENOUGH          32
/* ... and this many are assumed to have done so, dying at the assumed rate */
#define ASSUMED         4
/* Chance to die before the age has doubled, assumed */
#define ASSUMED_HAZARD  0.1
/* The K above */
#define PULL            2.0
/* The past counts half after this many ticks, as a power of two */
#define FADE_BITS       14

/* How many regions one call looks at */
#define LOOK            8
/* Regions that were read split, in which case they are looked at first */
#define MAX_SPLIT       64

#define MIN_WAIT_NS     100000000

typedef struct Region {
    uint64_t index;             /* blocks from index * REGION_BLOCKS on */
    size_t place;               /* in the plan's array */

    int64_t base;               /* tick that since[] counts from */
    int64_t settled;            /* exposure is accounted for up to this tick */
    int64_t fade;               /* when deaths and expected faded last */
    double deaths, expected;    /* O and X */

    /* Disjoint: in the map, or moved and still watched */
    uint64_t live[WORDS];
    uint64_t moved[WORDS];
    uint64_t held[WORDS];       /* of the live: were left alone once */
    uint16_t since[REGION_BLOCKS];      /* when it became live, or was moved */
    int64_t moved_age;          /* of what was moved last, then */

    int64_t not_before;         /* nothing here is ripe before this tick */
    bool split;                 /* was read split since it was looked at */
} Region;

struct DefragPlan {
    GHashTable *regions;        /* of Region, by &index */
    GPtrArray *array;           /* the same, for going round */
    size_t hand;
    size_t max_regions;

    int64_t tick;               /* now */
    int64_t fade;
    int64_t watch_end;          /* ns */

    double deaths[BINS];        /* D */
    double exposure[BINS];      /* E, in ticks */
    double rate[BINS];          /* per tick */
    double hazard[BINS];        /* H at the bin's start */
    bool known[BINS];
    bool dirty;                 /* the former three are out of date */

    uint64_t split[MAX_SPLIT];
    unsigned nsplit;

    DefragStats stats;
};

/* Time and ages */

static void plan_set_now(DefragPlan *p, int64_t now_ns)
{
    int64_t fade;

    p->tick = MAX(p->tick, NS_TO_TICKS(now_ns));
    fade = p->tick >> FADE_BITS;
    for (; p->fade < fade; p->fade++) {
        double sum = 0;

        for (unsigned j = 0; j < BINS; j++) {
            p->deaths[j] /= 2;
            p->exposure[j] /= 2;
            sum += p->exposure[j];
        }
        p->dirty = true;
        if (sum < 0.001) {
            p->fade = fade - 1;         /* nothing left to fade */
        }
    }
}

static unsigned bin_of(int64_t age)
{
    unsigned bin;

    if (age < 2 << BIN_SHIFT) {
        return 0;
    }
    bin = 63 - __builtin_clzll(age) - BIN_SHIFT;
    return MIN(bin, BINS - 1);
}

static int64_t bin_start(unsigned bin)
{
    return bin ? INT64_C(1) << (bin + BIN_SHIFT) : 0;
}

/* The last bin has no end, and is taken as as wide as what is before it. */
static int64_t bin_width(unsigned bin)
{
    return bin ? bin_start(bin) : 2 << BIN_SHIFT;
}

/* Rates */

static void plan_update_rates(DefragPlan *p)
{
    double sum = 0;

    if (!p->dirty) {
        return;
    }
    for (unsigned j = 0; j < BINS; j++) {
        double width = bin_width(j);

        p->rate[j] = (p->deaths[j] + ASSUMED * ASSUMED_HAZARD)
                     / (p->exposure[j] + ASSUMED * width);
        p->known[j] = p->exposure[j] >= ENOUGH * width;
        p->hazard[j] = sum;
        sum += p->rate[j] * width;
    }
    p->dirty = false;
}

/* H(@age), by the rates that were calculated last. */
static double plan_hazard(const DefragPlan *p, int64_t age)
{
    unsigned bin = bin_of(age);

    return p->hazard[bin] + p->rate[bin] * (age - bin_start(bin));
}

/* @n blocks of @r have been seen alive from age @from to age @to. */
static void plan_expose(DefragPlan *p, Region *r, int64_t from, int64_t to,
                        unsigned n)
{
    if (to <= from) {
        return;
    }
    r->expected += n * (plan_hazard(p, to) - plan_hazard(p, from));
    for (unsigned j = bin_of(from); from < to; j++) {
        int64_t end = j < BINS - 1 ? MIN(to, bin_start(j + 1)) : to;

        p->exposure[j] += (double)n * (end - from);
        from = end;
    }
    p->dirty = true;
}

/* Regions */

static bool bit_get(const uint64_t *bits, unsigned i)
{
    return (bits[i / 64] >> (i % 64)) & 1;
}

static void bit_put(uint64_t *bits, unsigned i, bool value)
{
    uint64_t mask = 1ULL << (i % 64);

    bits[i / 64] = value ? bits[i / 64] | mask : bits[i / 64] & ~mask;
}

static bool bits_any(const uint64_t *bits)
{
    uint64_t any = 0;

    for (unsigned i = 0; i < WORDS; i++) {
        any |= bits[i];
    }
    return any;
}

static void region_fade(const DefragPlan *p, Region *r)
{
    int64_t times = p->fade - r->fade;

    r->fade = p->fade;
    if (times > 0) {
        double factor = times < 32 ? 1.0 / (1ULL << times) : 0;

        r->deaths *= factor;
        r->expected *= factor;
    }
}

/*
 * Let the region's base be near enough for the current tick.  What is older
 * then looks as if it were half a window old, which is old enough.
 */
static void region_rebase(const DefragPlan *p, Region *r)
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

/* Exposure of block @i, live or moved, up to now. */
static void region_expose(DefragPlan *p, Region *r, unsigned i, unsigned n)
{
    int64_t since = r->base + r->since[i];
    int64_t from = MAX(since, r->settled) - since;
    int64_t to = p->tick - since;

    if (bit_get(r->moved, i)) {
        to = MIN(to, HORIZON);
        from += r->moved_age;
        to += r->moved_age;
    }
    plan_expose(p, r, from, to, n);
}

/*
 * Account for the exposure of all blocks up to now, and end the watch over
 * those that were moved longer ago.
 */
static void region_settle(DefragPlan *p, Region *r)
{
    unsigned i, n;

    for (i = 0; i < REGION_BLOCKS; i += n) {
        bool live = bit_get(r->live, i), moved = bit_get(r->moved, i);

        n = 1;
        if (!live && !moved) {
            continue;
        }
        while (i + n < REGION_BLOCKS && r->since[i + n] == r->since[i] &&
               bit_get(r->live, i + n) == live &&
               bit_get(r->moved, i + n) == moved) {
            n++;
        }
        region_expose(p, r, i, n);
        if (moved && p->tick - (r->base + r->since[i]) > HORIZON) {
            for (unsigned k = 0; k < n; k++) {
                bit_put(r->moved, i + k, false);
            }
        }
    }
    r->settled = p->tick;
}

static Region *plan_find(DefragPlan *p, uint64_t index)
{
    Region *r = g_hash_table_lookup(p->regions, &index);

    if (r) {
        region_rebase(p, r);
        region_fade(p, r);
    }
    return r;
}

static void plan_drop(DefragPlan *p, Region *r)
{
    Region *last;

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
        Region *r;

        p->hand = p->hand < p->array->len ? p->hand : 0;
        r = g_ptr_array_index(p->array, p->hand);
        region_rebase(p, r);
        region_fade(p, r);
        if (bits_any(r->moved)) {
            region_settle(p, r);
        }
        if (!bits_any(r->live) && !bits_any(r->moved) &&
            (hard || r->deaths + r->expected < 0.5)) {
            plan_drop(p, r);            /* another takes its place */
        } else {
            p->hand++;
        }
    }
}

/* Find region @index, or make it.  NULL if there are too many. */
static Region *plan_get(DefragPlan *p, uint64_t index)
{
    Region *r = plan_find(p, index);

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
    r = g_new0(Region, 1);
    r->index = index;
    r->base = p->tick - WINDOW / 2;
    r->settled = p->tick;
    r->fade = p->fade;
    r->place = p->array->len;
    g_ptr_array_add(p->array, r);
    g_hash_table_insert(p->regions, &r->index, r);
    return r;
}

DefragPlan *defrag_plan_new(size_t max_regions)
{
    DefragPlan *p = g_new0(DefragPlan, 1);

    p->regions = g_hash_table_new(g_int64_hash, g_int64_equal);
    p->array = g_ptr_array_new_with_free_func(NULL);
    p->max_regions = max_regions ?: DEFRAG_MAX_REGIONS;
    p->dirty = true;
    plan_update_rates(p);
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
        g_free(p);
    }
}

/* Observations */

/* Block @i of @r, live or moved, has been overwritten or discarded. */
static void region_die(DefragPlan *p, Region *r, unsigned i, uint64_t *cause)
{
    bool moved = bit_get(r->moved, i);
    int64_t age = p->tick - (r->base + r->since[i]);

    if (moved && age > HORIZON) {
        bit_put(r->moved, i, false);
        return;
    }
    region_expose(p, r, i, 1);
    if (moved) {
        p->stats.wasted_1s += age <= SECOND;
        p->stats.wasted_10s++;
        age += r->moved_age;
    } else {
        p->stats.spared += bit_get(r->held, i);
        ++*cause;
    }
    p->deaths[bin_of(age)]++;
    r->deaths++;
    bit_put(r->live, i, false);
    bit_put(r->moved, i, false);
    bit_put(r->held, i, false);
}

/* Those of the blocks @from to @to - 1 of @r die. */
static void region_die_range(DefragPlan *p, Region *r, unsigned from,
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

    if (!n) {
        return;
    }
    if (last - first >= p->array->len) {
        for (size_t k = 0; k < p->array->len; k++) {
            Region *r = g_ptr_array_index(p->array, k);

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
        Region *r = plan_find(p, index);

        if (r) {
            range_in_region(block, n, index, &from, &to);
            region_die_range(p, r, from, to, cause);
        }
    }
}

void defrag_plan_indirected(DefragPlan *p, uint64_t block, uint64_t n,
                            int64_t now_ns)
{
    uint64_t end = block + n;

    plan_set_now(p, now_ns);
    while (block < end) {
        uint64_t index = block / REGION_BLOCKS;
        Region *r = plan_get(p, index);
        unsigned from, to;

        range_in_region(block, end - block, index, &from, &to);
        if (r) {
            region_die_range(p, r, from, to, &p->stats.overwritten);
            for (unsigned i = from; i < to; i++) {
                bit_put(r->live, i, true);
                r->since[i] = p->tick - r->base;
            }
            r->not_before = MIN(r->not_before, p->tick + MIN_AGE);
        } else {
            p->stats.untracked += to - from;
        }
        p->stats.indirected += to - from;
        block += to - from;
    }
}

void defrag_plan_overwritten(DefragPlan *p, uint64_t block, uint64_t n,
                             int64_t now_ns)
{
    plan_set_now(p, now_ns);
    plan_die(p, block, n, &p->stats.overwritten);
}

void defrag_plan_discarded(DefragPlan *p, uint64_t block, uint64_t n,
                           int64_t now_ns)
{
    plan_set_now(p, now_ns);
    plan_die(p, block, n, &p->stats.discarded);
}

void defrag_plan_read_split(DefragPlan *p, uint64_t block, uint64_t n,
                            int64_t now_ns)
{
    plan_set_now(p, now_ns);
    p->stats.split_reads++;
    for (uint64_t index = block / REGION_BLOCKS;
         n && index <= (block + n - 1) / REGION_BLOCKS; index++) {
        Region *r = plan_get(p, index);

        if (r && !r->split) {
            r->split = true;
            if (p->nsplit < MAX_SPLIT) {
                p->split[p->nsplit++] = index;
            }
        }
    }
}

void defrag_plan_moved(DefragPlan *p, uint64_t block, uint64_t n,
                       int64_t now_ns)
{
    uint64_t end = block + n;

    plan_set_now(p, now_ns);
    p->watch_end = now_ns + DEFRAG_WATCH_NS;
    p->stats.moved += n;
    while (block < end) {
        uint64_t index = block / REGION_BLOCKS;
        Region *r = plan_get(p, index);
        unsigned from, to;

        range_in_region(block, end - block, index, &from, &to);
        block += to - from;
        if (!r) {
            continue;
        }
        region_settle(p, r);
        r->moved_age = bit_get(r->live, from)
                       ? p->tick - (r->base + r->since[from]) : OLD_AGE;
        for (unsigned i = from; i < to; i++) {
            bit_put(r->live, i, false);
            bit_put(r->held, i, false);
            bit_put(r->moved, i, true);
            r->since[i] = p->tick - r->base;
        }
    }
}

void defrag_plan_relaid(DefragPlan *p, uint64_t slots)
{
    p->stats.relaid += slots;
}

bool defrag_plan_watching(const DefragPlan *p, int64_t now_ns)
{
    return p->watch_end > now_ns;
}

/* Which blocks next */

/*
 * By which bins' ages is a block ripe, were it in this region?  @r may be NULL.
 */
static unsigned plan_ripe_bins(const DefragPlan *p, const Region *r)
{
    double factor = r ? (r->deaths + PULL) / (r->expected + PULL) : 1;
    unsigned ripe = 1u << (BINS - 1);

    for (unsigned j = bin_of(MIN_AGE); j < BINS - 1; j++) {
        int64_t from = bin_start(j), to = from + HORIZON;
        double sum = 0;

        for (unsigned k = j; k < BINS && bin_start(k) < to; k++) {
            int64_t start = MAX(bin_start(k), from);
            int64_t end = k < BINS - 1 ? MIN(bin_start(k + 1), to) : to;

            sum += (end - start) * p->rate[k]
                   * (p->known[k] ? factor : MAX(factor, 1));
        }
        if (sum <= MAX_HAZARD) {
            ripe |= 1u << j;
        }
    }
    return ripe;
}

/* How a search looks at one region. */
typedef struct Look {
    const IndirectMap *map;
    Region *r;                  /* or NULL */
    int64_t tick;
    unsigned ripe;              /* bins */
    bool force;
    bool held;                  /* something was left alone */
    int64_t wake;               /* tick when the soonest of it may be ripe */
} Look;

static void look_begin(Look *l, DefragPlan *p, const IndirectMap *map,
                       Region *r, bool force)
{
    *l = (Look) {
        .map = map,
        .r = r,
        .tick = p->tick,
        .force = force,
        .wake = INT64_MAX,
    };
    if (r) {
        region_settle(p, r);
        r->split = false;
    }
    plan_update_rates(p);
    l->ripe = plan_ripe_bins(p, r);
}

/* Is @block, which is in the map, to be moved now? */
static bool look_ripe(Look *l, uint64_t block)
{
    unsigned i = block % REGION_BLOCKS, bin;
    int64_t since;

    if (l->force || !l->r || !bit_get(l->r->live, i)) {
        return true;
    }
    since = l->r->base + l->r->since[i];
    bin = bin_of(l->tick - since);
    if (l->tick - since >= MIN_AGE && (l->ripe >> bin) & 1) {
        return true;
    }
    bit_put(l->r->held, i, true);
    l->held = true;
    while (!(l->ripe >> bin & 1)) {
        bin++;
    }
    l->wake = MIN(l->wake, since + MAX(bin_start(bin), MIN_AGE));
    return false;
}

/*
 * Find the first run of ripe blocks in [@block, @end), which is in one region.
 * Returns false if there is none.
 */
static bool look_run(Look *l, uint64_t block, uint64_t end, unsigned gap,
                     unsigned max, DefragRun *run)
{
    BsstSlot slot, want = BSST_SLOT_NONE;

    *run = (DefragRun) { };
    for (; indirect_map_next(l->map, block, &block, &slot) && block < end;
         block++) {
        if (run->n && block - run->block - run->n > gap) {
            break;
        }
        if (run->n && block - run->block >= max) {
            break;
        }
        if (!look_ripe(l, block)) {
            if (run->n) {
                break;
            }
            continue;
        }
        if (!run->n) {
            run->block = block;
        }
        run->n = block - run->block + 1;
        run->mapped++;
        run->pieces += slot != want;
        want = slot + 1;
    }
    return run->n;
}

/*
 * Begin or go on with the search: move the cursor to an entry.  Returns false
 * if all has been looked at since something was found last.
 */
static bool cursor_seek(DefragCursor *c, const IndirectMap *map)
{
    uint64_t block;

    if (!c->barren) {
        c->barren = true;
        c->barren_wrapped = false;
        c->barren_from = c->block;
        c->held = false;
        c->wake_ns = INT64_MAX;
    }
    if (!indirect_map_next(map, c->block, &block, NULL)) {
        if (c->barren_wrapped) {
            return false;
        }
        c->barren_wrapped = true;
        c->sweeps++;
        c->block = 0;
        if (!indirect_map_next(map, 0, &block, NULL)) {
            return false;
        }
    }
    c->block = block;
    return !c->barren_wrapped || block < c->barren_from;
}

static uint64_t region_end(uint64_t block)
{
    return (block / REGION_BLOCKS + 1) * REGION_BLOCKS;
}

/* Take that region of those that were read split which comes next. */
static bool plan_take_split(DefragPlan *p, uint64_t after, uint64_t *index)
{
    unsigned best = 0;

    if (!p->nsplit) {
        return false;
    }
    for (unsigned i = 1; i < p->nsplit; i++) {
        /* Unsigned: what is before the cursor comes after all the others */
        if (p->split[i] - after / REGION_BLOCKS <
            p->split[best] - after / REGION_BLOCKS) {
            best = i;
        }
    }
    *index = p->split[best];
    p->split[best] = p->split[--p->nsplit];
    return true;
}

/* What the modes differ in. */
typedef struct Mode {
    bool store;
    bool force;
    unsigned gap;
    unsigned max;
} Mode;

static bool run_worthwhile(const Mode *mode, const DefragRun *run, bool split)
{
    unsigned allowed = 1;

    if (!mode->store) {
        return true;
    }
    if (!mode->force && !split) {
        allowed += run->mapped / 64;
    }
    return run->pieces > allowed;
}

static void cursor_held(DefragCursor *c, int64_t wake)
{
    c->held = true;
    c->wake_ns = MIN(c->wake_ns, wake << TICK_BITS);
}

/*
 * Look at the blocks from @from on to the end of their region.  Returns true
 * with a run; else what was left alone is noted in @c.
 */
static bool plan_look(DefragPlan *p, const IndirectMap *map, DefragCursor *c,
                      const Mode *mode, uint64_t from, DefragRun *run)
{
    uint64_t index = from / REGION_BLOCKS, block = from;
    Region *r = plan_find(p, index);
    bool split = r && r->split;
    bool found = false;
    Look l;

    if (r && p->tick < r->not_before && !mode->force) {
        cursor_held(c, r->not_before);
        return false;
    }
    look_begin(&l, p, map, r, mode->force);
    while (!found && look_run(&l, block, region_end(from), mode->gap,
                              mode->max, run)) {
        found = run_worthwhile(mode, run, split);
        block = run->block + run->n;
    }
    if (l.held) {
        cursor_held(c, l.wake);
        if (!found && indirect_map_next(map, index * REGION_BLOCKS, &block,
                                        NULL) && block >= from) {
            /* All of the region has been seen; rates may change, though */
            r->not_before = MIN(l.wake, p->tick + SECOND);
        }
    }
    return found;
}

static DefragVerdict plan_next(DefragPlan *p, const IndirectMap *map,
                               DefragCursor *c, const Mode *mode,
                               int64_t now_ns, DefragRun *run,
                               int64_t *wait_ns)
{
    uint64_t index;

    plan_set_now(p, now_ns);
    if (mode->force && c->held) {
        c->held = c->barren = false;    /* the search was not forced so far */
    }
    for (unsigned i = 0; i < LOOK; i++) {
        if (plan_take_split(p, c->block, &index)) {
            if (plan_look(p, map, c, mode, index * REGION_BLOCKS, run)) {
                return DEFRAG_RUN;
            }
            continue;
        }
        if (!cursor_seek(c, map)) {
            c->barren = false;
            if (!c->held) {
                return DEFRAG_NONE;
            }
            *wait_ns = MAX(c->wake_ns, now_ns + MIN_WAIT_NS);
            *wait_ns = MIN(*wait_ns, now_ns + DEFRAG_WATCH_NS);
            return DEFRAG_WAIT;
        }
        if (plan_look(p, map, c, mode, c->block, run)) {
            c->block = run->block + run->n;
            c->barren = false;
            return DEFRAG_RUN;
        }
        c->block = region_end(c->block);
    }
    return DEFRAG_AGAIN;
}

DefragVerdict defrag_plan_next_guest(DefragPlan *p, const IndirectMap *map,
                                     DefragCursor *cursor, bool force,
                                     unsigned gap, unsigned max,
                                     int64_t now_ns, DefragRun *run,
                                     int64_t *wait_ns)
{
    Mode mode = { .force = force, .gap = gap, .max = max };

    assert(max >= 1 && max <= REGION_BLOCKS);
    return plan_next(p, map, cursor, &mode, now_ns, run, wait_ns);
}

DefragVerdict defrag_plan_next_store(DefragPlan *p, const IndirectMap *map,
                                     DefragCursor *cursor, bool force,
                                     int64_t now_ns, DefragRun *run,
                                     int64_t *wait_ns)
{
    Mode mode = { .store = true, .force = force, .gap = REGION_BLOCKS,
                  .max = REGION_BLOCKS };

    return plan_next(p, map, cursor, &mode, now_ns, run, wait_ns);
}

DefragVerdict defrag_plan_next_compact(DefragPlan *p, const IndirectMap *map,
                                       DefragCursor *cursor, BsstSlot limit,
                                       DefragRun *run)
{
    for (unsigned i = 0; i < LOOK; i++) {
        uint64_t block, end;
        BsstSlot slot;

        if (!cursor_seek(cursor, map)) {
            cursor->barren = false;
            return DEFRAG_NONE;
        }
        *run = (DefragRun) { };
        end = region_end(cursor->block);
        for (block = cursor->block;
             indirect_map_next(map, block, &block, &slot) && block < end;
             block++) {
            if (slot >= limit) {
                run->block = run->mapped ? run->block : block;
                run->n = block - run->block + 1;
                run->mapped++;
            }
        }
        cursor->block = end;
        if (run->mapped) {
            cursor->barren = false;
            return DEFRAG_RUN;
        }
    }
    return DEFRAG_AGAIN;
}

/* Statistics */

void defrag_plan_stats(const DefragPlan *p, DefragStats *stats)
{
    *stats = p->stats;
}

/* 1000 * exp(-@x), nearly; without the mathematical library. */
static unsigned permille_left(double x)
{
    double y = 1 + x / 1024;

    for (unsigned i = 0; i < 10; i++) {
        y *= y;
    }
    return 1000 / y + 0.5;
}

void defrag_plan_state(const DefragPlan *p, DefragState *state)
{
    *state = (DefragState) {
        .regions = p->array->len,
        .bytes = sizeof(*p) + p->array->len *
                 (sizeof(Region) + 5 * sizeof(void *)),
        .last_1s = permille_left(plan_hazard(p, SECOND)),
        .last_10s = permille_left(plan_hazard(p, 10 * SECOND)),
        .last_60s = permille_left(plan_hazard(p, 60 * SECOND)),
    };
}
