/*
 * Defragmentation planner: which indirections of one image to undo next
 *
 * Much of what a guest writes from swapped-out memory is swap space of its own:
 * it will soon be overwritten or discarded, and moving it is work for nothing.
 * So a block is moved only if it is *ripe*: if it will probably outlive the next
 * ten seconds (HORIZON), as measured by how long entries of its age have lived
 * on so far (defrag-life.c), here more than elsewhere (defrag-regions.c).
 *
 * No block is ripe before MIN_AGE, as runs grow while a guest writes.  Every
 * one is when it is old (DEFRAG_OLD_AGE, 275 s), so that in the end everything
 * is moved; and when the guest has been quiet for HORIZON, neither making nor
 * ending an indirection: then the work disturbs nobody, and the past tells
 * little.
 *
 * This work is licensed under the terms of the GNU GPL, version 2 or later.
 * See the COPYING file in the top-level directory.
 */

#include "qemu/osdep.h"
#include "defrag-plan-int.h"

/* How many regions one call looks at */
#define LOOK            8
/* How many observed blocks it accounts for before that */
#define CATCH_UP        1024
#define MIN_WAIT_NS     100000000

/* How a search looks at one region. */
typedef struct Look {
    const IndirectMap *map;
    DefragRegion *r;            /* or NULL */
    int64_t tick;
    unsigned ripe;              /* bins */
    bool all;                   /* of them are ripe */
    bool held;                  /* something was left alone */
    int64_t wake;               /* tick when the soonest of it may be ripe */
} Look;

static void look_begin(Look *l, DefragPlan *p, const IndirectMap *map,
                       DefragRegion *r, bool all)
{
    *l = (Look) {
        .map = map,
        .r = r,
        .tick = p->tick,
        .all = all,
        .wake = INT64_MAX,
    };
    if (r) {
        defrag_settle_region(p, r);
    }
    defrag_life_update(&p->life);
    l->ripe = defrag_life_ripe(&p->life, defrag_region_factor(r), HORIZON);
}

/* Is @block, which is in the map, to be moved now? */
static bool look_ripe(Look *l, uint64_t block)
{
    unsigned i = block % REGION_BLOCKS, bin;
    int64_t since;

    if (l->all || !l->r || !defrag_bit(l->r->live, i)) {
        return true;
    }
    since = l->r->base + l->r->since[i];
    bin = defrag_life_bin(l->tick - since);
    if (l->tick - since >= MIN_AGE && (l->ripe >> bin) & 1) {
        return true;
    }
    defrag_bit_put(l->r->held, i, true);
    l->held = true;
    while (!(l->ripe >> bin & 1)) {
        bin++;
    }
    l->wake = MIN(l->wake, since + MAX(defrag_life_bin_start(bin), MIN_AGE));
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
    c->wake_ns = MIN(c->wake_ns, wake << DEFRAG_TICK_BITS);
}

/*
 * Look at the blocks from @from on to the end of their region; with @all they
 * are all ripe.  Returns true with a run; else what was left alone is noted in @c.
 */
static bool plan_look(DefragPlan *p, const IndirectMap *map, DefragCursor *c,
                      const Mode *mode, bool all, uint64_t from,
                      DefragRun *run)
{
    uint64_t index = from / REGION_BLOCKS, block = from;
    DefragRegion *r = defrag_find_region(p, index);
    bool split = r && r->split;
    bool found = false;
    Look l;

    if (r) {
        r->split = false;
    }
    if (r && p->tick < r->not_before && !all) {
        cursor_held(c, r->not_before);
        return false;
    }
    look_begin(&l, p, map, r, all);
    while (!found && look_run(&l, block, region_end(from), mode->gap,
                              mode->max, run)) {
        found = run_worthwhile(mode, run, split);
        block = run->block + run->n;
    }
    if (l.held) {
        cursor_held(c, l.wake);
        if (!found && indirect_map_next(map, index * REGION_BLOCKS, &block,
                                        NULL) && block >= from) {
            /*
             * All of the region has been seen.  Rates may change, though, and
             * what is born now may be ripe at MIN_AGE.
             */
            r->not_before = MIN(l.wake, p->tick + DEFRAG_SECOND);
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
    bool all;

    if (!defrag_plan_catch_up(p, CATCH_UP)) {
        return DEFRAG_AGAIN;
    }
    defrag_set_now(p, now_ns);
    all = mode->force || p->tick - p->event >= HORIZON;
    if (all && c->held) {
        c->held = c->barren = false;    /* things have changed: once more */
    }
    for (unsigned i = 0; i < LOOK; i++) {
        if (plan_take_split(p, c->block, &index)) {
            if (plan_look(p, map, c, mode, all, index * REGION_BLOCKS, run)) {
                return DEFRAG_RUN;
            }
            continue;
        }
        if (!cursor_seek(c, map)) {
            c->barren = false;
            if (!c->held) {
                return DEFRAG_NONE;
            }
            *wait_ns = MIN(c->wake_ns, (p->event + HORIZON) << DEFRAG_TICK_BITS);
            *wait_ns = MAX(*wait_ns, now_ns + MIN_WAIT_NS);
            *wait_ns = MIN(*wait_ns, now_ns + DEFRAG_WATCH_NS);
            return DEFRAG_WAIT;
        }
        if (plan_look(p, map, c, mode, all, c->block, run)) {
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
    const DefragLife *life = &p->life;

    *state = (DefragState) {
        .regions = p->array->len,
        .bytes = sizeof(*p) + DEFRAG_QUEUE_LEN * sizeof(*p->queue) +
                 p->array->len * (sizeof(DefragRegion) + 5 * sizeof(void *)),
        .last_1s = permille_left(defrag_life_hazard(life, DEFRAG_SECOND)),
        .last_10s = permille_left(defrag_life_hazard(life, 10 * DEFRAG_SECOND)),
        .last_60s = permille_left(defrag_life_hazard(life, 60 * DEFRAG_SECOND)),
    };
}
