/*
 * Defragmentation planner: random histories against a shadow, and each rule
 *
 * The shadow keeps a record a block and counts exposure tick by tick; which run
 * comes next it finds by looking at all blocks.  The rates themselves are
 * tested by test-defrag-life.
 *
 * BSST_TEST_SEED=N repeats a run; "-m perf" adds measurements.
 *
 * This work is licensed under the terms of the GNU GPL, version 2 or later.
 * See the COPYING file in the top-level directory.
 */

#include "qemu/osdep.h"
#include <math.h>
#include <time.h>
#include "bsst/defrag-plan.h"
#include "../../block/defrag-plan-int.h"
#include "bsst-seed.h"

#define MS      1000000LL
#define SEC     (1000 * MS)
#define TICK_NS (1LL << DEFRAG_TICK_BITS)

static uint32_t seed;

/* A map, its planner and the time */
typedef struct World {
    IndirectMap *map;
    DefragPlan *plan;
    DefragCursor cursor;
    BsstSlot next_slot;
    int64_t now_ns;
} World;

static void world_init(World *w)
{
    *w = (World) {
        .map = indirect_map_new(),
        .plan = defrag_plan_new(0),
        .now_ns = 86400 * SEC,          /* since the host was booted */
    };
}

static void world_cleanup(World *w)
{
    indirect_map_free(w->map);
    defrag_plan_free(w->plan);
}

/* Entries that the planner is not told of */
static void world_insert(World *w, uint64_t block, unsigned n)
{
    while (n--) {
        indirect_map_insert(w->map, block++, w->next_slot++);
    }
}

static void world_indirect(World *w, uint64_t block, unsigned n)
{
    world_insert(w, block, n);
    defrag_plan_indirected(w->plan, block, n, w->now_ns);
}

static void world_remove(World *w, uint64_t block, unsigned n)
{
    while (n--) {
        indirect_map_remove(w->map, block++);
    }
}

static void world_overwrite(World *w, uint64_t block, unsigned n)
{
    world_remove(w, block, n);
    defrag_plan_overwritten(w->plan, block, n, w->now_ns);
}

static void world_discard(World *w, uint64_t block, unsigned n)
{
    world_remove(w, block, n);
    defrag_plan_discarded(w->plan, block, n, w->now_ns);
}

static DefragVerdict world_next(World *w, bool force, unsigned gap,
                                unsigned max, DefragRun *run,
                                int64_t *wait_ns)
{
    DefragVerdict verdict;

    do {
        verdict = defrag_plan_next_guest(w->plan, w->map, &w->cursor, force,
                                         gap, max, w->now_ns, run, wait_ns);
    } while (verdict == DEFRAG_AGAIN);
    return verdict;
}

/* The next run is [@block, @block + @n), and @mapped of it are meant. */
static void assert_run(World *w, bool force, unsigned gap, unsigned max,
                       uint64_t block, unsigned n, unsigned mapped)
{
    int64_t wait_ns;
    DefragRun run;

    g_assert_cmpint(world_next(w, force, gap, max, &run, &wait_ns), ==,
                    DEFRAG_RUN);
    g_assert_cmpuint(run.block, ==, block);
    g_assert_cmpuint(run.n, ==, n);
    g_assert_cmpuint(run.mapped, ==, mapped);
}

static void assert_verdict(World *w, bool force, DefragVerdict verdict)
{
    int64_t wait_ns = 0;
    DefragRun run;

    g_assert_cmpint(world_next(w, force, 0, 256, &run, &wait_ns), ==, verdict);
    if (verdict == DEFRAG_WAIT) {
        g_assert_cmpint(wait_ns, >=, w->now_ns + 100 * MS);
        g_assert_cmpint(wait_ns, <=, w->now_ns + DEFRAG_WATCH_NS);
    }
}

/* What the job does with a run; returns how many blocks were moved. */
static unsigned world_move(World *w, const DefragRun *run)
{
    unsigned moved = 0;

    for (uint64_t i = run->block; i < run->block + run->n; i++) {
        if (indirect_map_remove(w->map, i) != BSST_SLOT_NONE) {
            defrag_plan_moved(w->plan, i, 1, w->now_ns);
            moved++;
        }
    }
    g_assert_cmpuint(moved, ==, run->mapped);
    return moved;
}

/* Move all that is ripe now. */
static unsigned world_move_ripe(World *w)
{
    int64_t wait_ns;
    unsigned moved = 0;
    DefragRun run;

    while (world_next(w, false, 0, 256, &run, &wait_ns) == DEFRAG_RUN) {
        moved += world_move(w, &run);
    }
    return moved;
}

/* Let the plan look at all that it was told. */
static void world_catch_up(const World *w)
{
    while (!defrag_plan_catch_up(w->plan, 1)) {
        /* one event at a time */
    }
}

static DefragStats world_stats(const World *w)
{
    DefragStats stats;

    world_catch_up(w);
    defrag_plan_stats(w->plan, &stats);
    return stats;
}

static void test_empty(void)
{
    World w;

    world_init(&w);
    assert_verdict(&w, false, DEFRAG_NONE);
    assert_verdict(&w, true, DEFRAG_NONE);
    defrag_plan_overwritten(w.plan, 0, 1000000, w.now_ns);
    defrag_plan_discarded(w.plan, 5, UINT64_MAX - 5, w.now_ns);
    defrag_plan_discarded(w.plan, 5, 0, w.now_ns);
    assert_verdict(&w, false, DEFRAG_NONE);
    world_catch_up(&w);
    g_assert_cmpuint(w.plan->array->len, ==, 0);
    world_cleanup(&w);
}

/* Runs: the order, gaps, their length, the region's end, and round again */
static void test_order(void)
{
    World w;

    world_init(&w);
    world_insert(&w, 10, 5);
    world_insert(&w, 17, 3);            /* a gap of two */
    world_insert(&w, 250, 10);          /* two regions */
    world_insert(&w, 100000, 300);

    assert_run(&w, true, 0, 256, 10, 5, 5);
    assert_run(&w, true, 0, 256, 17, 3, 3);
    assert_run(&w, true, 0, 256, 250, 6, 6);
    assert_run(&w, true, 0, 256, 256, 4, 4);
    assert_run(&w, true, 0, 256, 100000, 96, 96);
    assert_run(&w, true, 0, 256, 100096, 204, 204);
    g_assert_cmpuint(w.cursor.sweeps, ==, 0);

    assert_run(&w, true, 1, 256, 10, 5, 5);
    g_assert_cmpuint(w.cursor.sweeps, ==, 1);
    assert_run(&w, true, 2, 256, 17, 3, 3);
    w.cursor = (DefragCursor) { };
    assert_run(&w, true, 2, 256, 10, 10, 8);
    w.cursor = (DefragCursor) { };
    assert_run(&w, true, 2, 7, 10, 5, 5);
    assert_run(&w, true, 2, 2, 17, 2, 2);
    assert_run(&w, true, 2, 1, 19, 1, 1);

    /* Forced and old alike: nobody has told of these */
    w.cursor = (DefragCursor) { };
    assert_run(&w, false, 0, 256, 10, 5, 5);
    world_cleanup(&w);
}

/* The end of the block range that an image can have */
static void test_last_block(void)
{
    uint64_t last = (1ULL << 48) - 1;
    World w;

    world_init(&w);
    world_indirect(&w, last, 1);
    world_indirect(&w, 0, 1);
    defrag_plan_read_split(w.plan, last, 1, w.now_ns);
    assert_run(&w, true, 256, 256, last, 1, 1);
    assert_run(&w, true, 256, 256, 0, 1, 1);
    indirect_map_remove(w.map, last);
    defrag_plan_discarded(w.plan, 1, last, w.now_ns);
    assert_run(&w, true, 0, 256, 0, 1, 1);
    g_assert_cmpuint(world_stats(&w).discarded, ==, 1);
    world_cleanup(&w);
}

/* Nothing is moved young, and everything is moved in the end. */
static void test_young(void)
{
    World w;
    int64_t begin_ns, wait_ns;
    DefragRun run;

    world_init(&w);
    begin_ns = w.now_ns;
    world_indirect(&w, 500, 12);
    assert_verdict(&w, false, DEFRAG_WAIT);
    assert_run(&w, true, 0, 256, 500, 12, 12);
    w.cursor = (DefragCursor) { };
    while (world_next(&w, false, 0, 256, &run, &wait_ns) == DEFRAG_WAIT) {
        w.now_ns = wait_ns;
        g_assert_cmpint(w.now_ns - begin_ns, <, 300 * SEC);
    }
    g_assert_cmpuint(run.mapped, ==, 12);
    /* So few prove nothing; but the guest has been quiet for so long */
    g_assert_cmpint(w.now_ns - begin_ns, >, 9 * SEC);
    g_assert_cmpint(w.now_ns - begin_ns, <, 11 * SEC);
    world_move(&w, &run);
    assert_verdict(&w, false, DEFRAG_NONE);
    g_assert_true(defrag_plan_watching(w.plan, w.now_ns));
    g_assert_false(defrag_plan_watching(w.plan,
                                        w.now_ns + DEFRAG_WATCH_NS));
    world_cleanup(&w);
}

/*
 * Exactly after the horizon a guest counts as quiet; and a look at what lives
 * tells the life table.
 */
static void test_quiet(void)
{
    World w;

    world_init(&w);
    w.now_ns = w.now_ns / TICK_NS * TICK_NS;
    world_indirect(&w, 0, 10);
    w.now_ns += (HORIZON - 1) * TICK_NS;
    assert_verdict(&w, false, DEFRAG_WAIT);
    g_assert_cmpfloat(w.plan->life.exposure[0], ==, 10 * 16);
    g_assert_cmpfloat(w.plan->life.passed[5], ==, 10);
    w.now_ns += TICK_NS;
    assert_run(&w, false, 0, 256, 0, 10, 10);
    world_cleanup(&w);
}

/* A job becomes a forced one while its search is on its way. */
static void test_force_later(void)
{
    unsigned moved = 0;
    int64_t wait_ns;
    DefragRun run;
    World w;

    world_init(&w);
    world_indirect(&w, 500, 12);
    assert_verdict(&w, false, DEFRAG_WAIT);
    world_indirect(&w, 100, 3);
    assert_verdict(&w, false, DEFRAG_WAIT);
    for (unsigned i = 0; i < 2; i++) {
        g_assert_cmpint(world_next(&w, true, 0, 256, &run, &wait_ns), ==,
                        DEFRAG_RUN);
        moved += world_move(&w, &run);
    }
    g_assert_cmpuint(moved, ==, 15);
    assert_verdict(&w, true, DEFRAG_NONE);

    /* In the middle of a sweep that has found nothing so far */
    for (unsigned i = 0; i < 9; i++) {
        world_indirect(&w, i * REGION_BLOCKS, 1);
    }
    w.cursor = (DefragCursor) { };
    g_assert_cmpint(defrag_plan_next_guest(w.plan, w.map, &w.cursor, false, 0,
                                           256, w.now_ns, &run, &wait_ns), ==,
                    DEFRAG_AGAIN);
    world_remove(&w, 8 * REGION_BLOCKS, 1);
    assert_run(&w, true, 0, 256, 0, 1, 1);
    world_cleanup(&w);
}

/* A part of one that is too young ends the run. */
static void test_mixed_ages(void)
{
    World w;

    world_init(&w);
    world_indirect(&w, 0, 100);
    w.now_ns += 300 * SEC;
    world_indirect(&w, 40, 20);
    assert_run(&w, false, 256, 256, 0, 40, 40);
    assert_run(&w, false, 256, 256, 60, 40, 40);
    w.cursor = (DefragCursor) { };
    assert_run(&w, true, 256, 256, 0, 100, 100);
    world_cleanup(&w);
}

/* Entries that nobody has told of are old, also beside young ones. */
static void test_unknown(void)
{
    World w;

    world_init(&w);
    world_insert(&w, 0, 10);
    world_indirect(&w, 10, 10);
    assert_run(&w, false, 256, 256, 0, 10, 10);
    world_remove(&w, 0, 10);
    assert_verdict(&w, false, DEFRAG_WAIT);
    world_cleanup(&w);
}

/*
 * In one region all that is written dies after 5 s, in another nothing does.
 * New entries are soon ripe in this one, not in that one; some hours later the
 * regions are alike again.
 */
static void test_factor(void)
{
    const uint64_t calm = 0, lively = REGION_BLOCKS;
    const DefragRun all = { calm, REGION_BLOCKS, REGION_BLOCKS };
    World w;

    world_init(&w);
    for (unsigned i = 0; i < 11; i++) {
        world_indirect(&w, calm, REGION_BLOCKS);
        world_indirect(&w, lively, REGION_BLOCKS);
        w.now_ns += 5 * SEC;
        world_overwrite(&w, lively, REGION_BLOCKS);
        w.now_ns += 7 * SEC;
        world_move(&w, &all);
        w.now_ns += 11 * SEC;
        assert_verdict(&w, false, DEFRAG_NONE);
    }
    world_indirect(&w, calm, 10);
    world_indirect(&w, lively, 10);
    w.now_ns += 3 * SEC;
    assert_run(&w, false, 0, 256, calm, 10, 10);
    world_remove(&w, calm, 10);
    assert_verdict(&w, false, DEFRAG_WAIT);
    g_assert_cmpfloat(defrag_region_factor(defrag_find_region(w.plan, 0)), <,
                      0.1);
    g_assert_cmpfloat(defrag_region_factor(defrag_find_region(w.plan, 1)), >,
                      1.2);

    w.now_ns += 10000 * SEC;
    defrag_set_now(w.plan, w.now_ns);
    for (unsigned i = 0; i < 2; i++) {
        g_assert_cmpfloat_with_epsilon(
            defrag_region_factor(defrag_find_region(w.plan, i)), 1, 0.01);
    }
    world_cleanup(&w);
}

/* A search that finds nothing looks at each region once. */
static void test_sweep_cost(void)
{
    unsigned calls = 0;
    DefragVerdict verdict;
    int64_t wait_ns;
    DefragRun run;
    World w;

    world_init(&w);
    for (unsigned i = 0; i < 80; i++) {
        world_indirect(&w, i * REGION_BLOCKS, 10);
    }
    world_catch_up(&w);
    w.cursor.block = 37 * REGION_BLOCKS;
    do {
        verdict = defrag_plan_next_guest(w.plan, w.map, &w.cursor, false, 0,
                                         256, w.now_ns, &run, &wait_ns);
        calls++;
    } while (verdict == DEFRAG_AGAIN);
    g_assert_cmpint(verdict, ==, DEFRAG_WAIT);
    g_assert_cmpuint(calls, ==, 11);
    world_cleanup(&w);
}

/* Exactly one second, ten seconds: see DefragStats */
static void test_wasted(void)
{
    World w;
    DefragRun run = { .n = 6, .mapped = 6 };

    world_init(&w);
    w.now_ns = w.now_ns / TICK_NS * TICK_NS;
    world_indirect(&w, 0, 6);
    w.now_ns += 300 * SEC;
    world_move(&w, &run);
    w.now_ns += DEFRAG_SECOND * TICK_NS;
    world_overwrite(&w, 0, 1);
    g_assert_cmpuint(world_stats(&w).wasted_1s, ==, 1);
    w.now_ns += TICK_NS;
    world_discard(&w, 1, 1);
    world_indirect(&w, 2, 1);
    g_assert_cmpuint(world_stats(&w).wasted_1s, ==, 1);
    g_assert_cmpuint(world_stats(&w).wasted_10s, ==, 3);
    w.now_ns += (HORIZON - DEFRAG_SECOND - 1) * TICK_NS;
    world_overwrite(&w, 3, 1);
    g_assert_cmpuint(world_stats(&w).wasted_10s, ==, 4);
    w.now_ns += TICK_NS;
    world_overwrite(&w, 4, 1);
    g_assert_cmpuint(world_stats(&w).wasted_10s, ==, 4);

    /* Only once, and it is not counted as an indirection that died */
    world_overwrite(&w, 0, 6);
    g_assert_cmpuint(world_stats(&w).wasted_10s, ==, 4);
    g_assert_cmpuint(world_stats(&w).moved, ==, 6);
    g_assert_cmpuint(world_stats(&w).indirected, ==, 7);
    g_assert_cmpuint(world_stats(&w).overwritten, ==, 1);
    g_assert_cmpuint(world_stats(&w).discarded, ==, 0);
    world_cleanup(&w);
}

/*
 * One part of the disk is rewritten again and again, another one stays: the
 * planner finds out, and learns that times have changed.
 */
static void test_swap_and_file(void)
{
    const uint64_t file = 100 * REGION_BLOCKS;
    unsigned moved = 0, stay = 0;
    DefragStats stats;
    World w;

    world_init(&w);
    for (unsigned second = 0; second < 300; second++) {
        /* What is swapped out comes back after 5 s, in 16 regions */
        for (unsigned i = 0; i < 16; i++) {
            uint64_t block = i * REGION_BLOCKS;

            if (second % 5 == i % 5) {
                world_indirect(&w, block, REGION_BLOCKS);
            }
        }
        world_indirect(&w, file + 300 * second, 300);
        stay += 300;
        for (unsigned i = 0; i < 10; i++) {
            moved += world_move_ripe(&w);
            w.now_ns += 100 * MS;
        }
    }
    stats = world_stats(&w);
    g_test_message("%" PRIu64 " moved, %" PRIu64 " in vain, %" PRIu64
                   " left", stats.moved, stats.wasted_10s,
                   indirect_map_count(w.map));
    g_assert_cmpuint(stats.moved, ==, moved);
    g_assert_cmpuint(stats.wasted_10s, <, stats.moved / 20);
    g_assert_cmpuint(stats.spared, >, stats.overwritten * 9 / 10);
    /* The file has gone but for what was written lately */
    g_assert_cmpuint(moved, >, stay * 9 / 10);
    g_assert_cmpuint(indirect_map_count(w.map), <,
                     16 * REGION_BLOCKS + 300 * 15);

    /* The guest does not swap any more */
    for (unsigned i = 0; i < 300; i++) {
        w.now_ns += SEC;
        world_move_ripe(&w);
    }
    g_assert_cmpuint(indirect_map_count(w.map), ==, 0);
    world_cleanup(&w);
}

/* What is read split comes first, wherever the search is. */
static void test_split_first(void)
{
    World w;

    world_init(&w);
    for (unsigned i = 0; i < 20; i++) {
        world_insert(&w, i * REGION_BLOCKS, 8);
    }
    assert_run(&w, false, 0, 256, 0, 8, 8);
    defrag_plan_read_split(w.plan, 17 * REGION_BLOCKS, 1, w.now_ns);
    defrag_plan_read_split(w.plan, 7 * REGION_BLOCKS - 1, 2, w.now_ns);
    defrag_plan_read_split(w.plan, 7 * REGION_BLOCKS - 1, 2, w.now_ns);
    assert_run(&w, false, 0, 256, 6 * REGION_BLOCKS, 8, 8);
    assert_run(&w, false, 0, 256, 7 * REGION_BLOCKS, 8, 8);
    assert_run(&w, false, 0, 256, 17 * REGION_BLOCKS, 8, 8);
    assert_run(&w, false, 0, 256, REGION_BLOCKS, 8, 8);
    defrag_plan_read_split(w.plan, 0, 1, w.now_ns);
    assert_run(&w, false, 0, 256, 0, 8, 8);
    assert_run(&w, false, 0, 256, 2 * REGION_BLOCKS, 8, 8);

    /* Upwards from where the search is, and as often as it happens */
    w.cursor.block = 10 * REGION_BLOCKS;
    for (unsigned i = 0; i < 3; i++) {
        defrag_plan_read_split(w.plan, 5 * REGION_BLOCKS, 1, w.now_ns);
        defrag_plan_read_split(w.plan, 15 * REGION_BLOCKS, 1, w.now_ns);
        assert_run(&w, false, 0, 256, 15 * REGION_BLOCKS, 8, 8);
        assert_run(&w, false, 0, 256, 5 * REGION_BLOCKS, 8, 8);
    }
    w.cursor.block = 2 * REGION_BLOCKS;

    /* There may be more than we can remember */
    for (unsigned i = 0; i < 3 * MAX_SPLIT; i++) {
        defrag_plan_read_split(w.plan, i * REGION_BLOCKS, 1, w.now_ns);
    }
    assert_run(&w, false, 0, 256, 2 * REGION_BLOCKS, 8, 8);
    g_assert_cmpuint(world_stats(&w).split_reads, ==, 10 + 3 * MAX_SPLIT);
    world_cleanup(&w);
}

/* A region that is too young and read split all the time starves nobody. */
static void test_split_young(void)
{
    World w;

    world_init(&w);
    world_insert(&w, 5 * REGION_BLOCKS, 8);
    world_indirect(&w, 0, 8);
    assert_run(&w, false, 0, 256, 5 * REGION_BLOCKS, 8, 8);
    for (unsigned i = 0; i < 100; i++) {
        defrag_plan_read_split(w.plan, 0, 1, w.now_ns);
        assert_run(&w, false, 0, 256, 5 * REGION_BLOCKS, 8, 8);
    }
    world_cleanup(&w);
}

/* mode=store */

static DefragVerdict world_next_store(World *w, bool force, DefragRun *run)
{
    DefragVerdict verdict;
    int64_t wait_ns;

    do {
        verdict = defrag_plan_next_store(w->plan, w->map, &w->cursor, force,
                                         w->now_ns, run, &wait_ns);
    } while (verdict == DEFRAG_AGAIN);
    return verdict;
}

/* Random slots: what has to be re-laid, counted block by block */
static void test_store_random(void)
{
    GRand *rand = g_rand_new_with_seed(seed);
    const unsigned nregions = 12;

    for (unsigned round = 0; round < 200; round++) {
        bool force = g_rand_boolean(rand);
        unsigned found = 0, expected = 0;
        DefragRun run;
        World w;

        world_init(&w);
        for (unsigned i = 0; i < nregions; i++) {
            unsigned pieces = 0, mapped = 0;
            bool split = g_rand_int_range(rand, 0, 4) == 0;
            BsstSlot want = BSST_SLOT_NONE;
            int order = g_rand_int_range(rand, 0, 300);

            for (unsigned k = 0; k < REGION_BLOCKS; k++) {
                if (g_rand_int_range(rand, 0, 4)) {
                    continue;
                }
                if (g_rand_int_range(rand, 0, order + 1) == 0) {
                    w.next_slot += 3;
                }
                pieces += w.next_slot != want;
                want = w.next_slot + 1;
                mapped++;
                world_insert(&w, i * REGION_BLOCKS + k, 1);
            }
            if (split) {
                defrag_plan_read_split(w.plan, i * REGION_BLOCKS, 1,
                                       w.now_ns);
            }
            expected += pieces > (force || split ? 1 : 1 + mapped / 64);
        }
        while (world_next_store(&w, force, &run) == DEFRAG_RUN) {
            unsigned mapped = 0, pieces = 0;
            BsstSlot want = BSST_SLOT_NONE, slot;

            g_assert_cmpuint(run.block / REGION_BLOCKS, ==,
                             (run.block + run.n - 1) / REGION_BLOCKS);
            for (uint64_t b = run.block; b < run.block + run.n; b++) {
                slot = indirect_map_lookup(w.map, b);
                if (slot != BSST_SLOT_NONE) {
                    mapped++;
                    pieces += slot != want;
                    want = slot + 1;
                    world_insert(&w, b, 1);     /* a fresh one */
                }
            }
            g_assert_cmpuint(run.mapped, ==, mapped);
            g_assert_cmpuint(run.pieces, ==, pieces);
            defrag_plan_relaid(w.plan, mapped);
            found++;
        }
        g_assert_cmpuint(found, ==, expected);
        world_cleanup(&w);
    }
    g_rand_free(rand);
}

/* Compaction ends with all slots below the limit, and moves no other. */
static void test_compact(void)
{
    GRand *rand = g_rand_new_with_seed(seed);

    for (unsigned round = 0; round < 100; round++) {
        unsigned n = g_rand_int_range(rand, 0, 400), high = 0, seen = 0;
        g_autofree bool *used = g_new0(bool, 4000);
        DefragCursor cursor = { };
        DefragVerdict verdict;
        DefragRun run;
        World w;

        world_init(&w);
        while (indirect_map_count(w.map) < n) {
            BsstSlot slot = g_rand_int_range(rand, 0, 4000);
            uint64_t block = g_rand_int_range(rand, 0, 30000);

            if (!used[slot] &&
                indirect_map_lookup(w.map, block) == BSST_SLOT_NONE) {
                indirect_map_insert(w.map, block, slot);
                used[slot] = true;
                high += slot >= n;
            }
        }
        do {
            verdict = defrag_plan_next_compact(w.plan, w.map, &cursor, n,
                                               &run);
            for (unsigned i = 0; verdict == DEFRAG_RUN && i < run.n; i++) {
                BsstSlot low = 0;

                if (indirect_map_lookup(w.map, run.block + i) < n ||
                    indirect_map_lookup(w.map, run.block + i) ==
                    BSST_SLOT_NONE) {
                    g_assert_true(i && i < run.n - 1);
                    continue;
                }
                while (used[low]) {
                    low++;
                }
                g_assert_cmpuint(low, <, n);
                used[low] = true;
                indirect_map_insert(w.map, run.block + i, low);
                run.mapped--;
                seen++;
            }
            g_assert_true(verdict != DEFRAG_RUN || run.mapped == 0);
        } while (verdict != DEFRAG_NONE);
        g_assert_cmpuint(seen, ==, high);
        world_cleanup(&w);
    }
    g_rand_free(rand);
}

/* Regions that are empty and calm make room; others are not forgotten. */
static void test_bound(void)
{
    World w;
    DefragState state;

    world_init(&w);
    defrag_plan_free(w.plan);
    w.plan = defrag_plan_new(50);
    for (unsigned i = 0; i < 60; i++) {
        world_indirect(&w, i * REGION_BLOCKS, 2);
    }
    world_catch_up(&w);
    defrag_plan_state(w.plan, &state);
    g_assert_cmpuint(state.regions, ==, 50);
    g_assert_cmpuint(state.bytes, <, 50 * 800 + 34000);
    g_assert_cmpuint(world_stats(&w).untracked, ==, 20);
    /* What is not known counts as old */
    assert_run(&w, false, 0, 256, 50 * REGION_BLOCKS, 2, 2);

    for (unsigned i = 0; i < 40; i++) {
        world_overwrite(&w, i * REGION_BLOCKS, 2);
    }
    for (unsigned i = 100; i < 120; i++) {
        world_indirect(&w, i * REGION_BLOCKS, 2);
    }
    g_assert_cmpuint(world_stats(&w).untracked, ==, 20);
    for (unsigned i = 40; i < 50; i++) {
        world_overwrite(&w, i * REGION_BLOCKS, 2);
    }
    g_assert_cmpuint(world_stats(&w).overwritten, ==, 100);

    /* An hour later nothing is remembered of what has died */
    for (unsigned i = 100; i < 120; i++) {
        world_overwrite(&w, i * REGION_BLOCKS, 2);
    }
    w.now_ns += 3600 * SEC;
    for (unsigned i = 0; i < 100; i++) {
        world_indirect(&w, 200 * REGION_BLOCKS, 1);
        world_indirect(&w, (201 + i) * REGION_BLOCKS, 1);
        world_overwrite(&w, (201 + i) * REGION_BLOCKS, 1);
    }
    g_assert_cmpuint(world_stats(&w).untracked, ==, 20);
    world_cleanup(&w);
}

/* Ages beyond what a region's 16 bits can hold */
static void test_long_ages(void)
{
    World w;

    world_init(&w);
    world_indirect(&w, 0, 10);
    for (unsigned i = 0; i < 300; i++) {
        w.now_ns += 7 * 60 * SEC;
        world_indirect(&w, 20, 10);     /* lets the region's base move */
        w.cursor = (DefragCursor) { };
        if (i >= 1) {
            assert_run(&w, false, 0, 256, 0, 10, 10);
        }
        assert_run(&w, true, 0, 256, w.cursor.block ? 20 : 0, 10, 10);
    }
    /* A clock that stands still, or goes back, does no harm */
    w.now_ns -= 3600 * SEC;
    world_indirect(&w, 40, 10);
    world_overwrite(&w, 20, 30);
    g_assert_cmpuint(world_stats(&w).overwritten, ==, 299 * 10 + 20);
    world_cleanup(&w);
}

/* A region's base moves on between birth and death: the age is exact. */
static void test_rebase(void)
{
    World w;
    const DefragLife *life;

    world_init(&w);
    life = &w.plan->life;
    w.now_ns = w.now_ns / TICK_NS * TICK_NS;
    world_indirect(&w, 0, 1);
    w.now_ns += 30000 * TICK_NS;
    world_indirect(&w, 1, 2);
    w.now_ns += 4095 * TICK_NS;
    world_overwrite(&w, 1, 1);
    world_catch_up(&w);
    g_assert_cmpfloat(life->deaths[8], ==, 1);
    w.now_ns += TICK_NS;
    world_overwrite(&w, 2, 1);
    world_catch_up(&w);
    g_assert_cmpfloat(life->deaths[9], ==, 1);
    world_cleanup(&w);
}

/* What died an hour ago does not matter any more. */
static void test_fade(void)
{
    World w;
    DefragState state;

    world_init(&w);
    for (unsigned i = 0; i < 100; i++) {
        world_indirect(&w, 0, REGION_BLOCKS);
        w.now_ns += SEC;
    }
    assert_verdict(&w, false, DEFRAG_WAIT);
    defrag_plan_state(w.plan, &state);
    g_assert_cmpuint(state.last_10s, <, 300);
    w.now_ns += 3600 * SEC;
    world_overwrite(&w, 0, REGION_BLOCKS);
    for (unsigned i = 0; i < 30; i++) {
        world_indirect(&w, (1 + i) * REGION_BLOCKS, REGION_BLOCKS);
        w.now_ns += SEC;
        world_move_ripe(&w);
    }
    defrag_plan_state(w.plan, &state);
    g_assert_cmpuint(state.last_10s, >, 900);
    world_cleanup(&w);
}

/* Random histories */

#define NREGIONS        6
#define NBLOCKS         (NREGIONS * REGION_BLOCKS)

typedef struct ShadowBlock {
    enum { GONE, LIVE, MOVED } state;
    int64_t since;              /* tick */
    bool held;
} ShadowBlock;

typedef struct Shadow {
    World w;
    GRand *rand;
    int64_t tick;
    ShadowBlock block[NBLOCKS];
    int64_t moved_age[NREGIONS];
    int64_t event;
    double deaths[DEFRAG_BINS];
    double exposure[DEFRAG_BINS];
    DefragStats stats;
} Shadow;

static unsigned shadow_bin(int64_t age)
{
    unsigned bin = 0;

    while (bin < DEFRAG_BINS - 1 && age >= 16 << bin) {
        bin++;
    }
    return bin;
}

/* Time passes, tick by tick. */
static void shadow_advance(Shadow *s, int64_t ns)
{
    int64_t until;

    s->w.now_ns += ns;
    for (until = s->w.now_ns / TICK_NS; s->tick < until; s->tick++) {
        for (unsigned i = 0; i < NBLOCKS; i++) {
            ShadowBlock *b = &s->block[i];
            int64_t age = s->tick - b->since;

            if (b->state == LIVE) {
                s->exposure[shadow_bin(age)]++;
            } else if (b->state == MOVED && age < HORIZON) {
                age += s->moved_age[i / REGION_BLOCKS];
                s->exposure[shadow_bin(age)]++;
            }
        }
    }
}

static void shadow_die(Shadow *s, unsigned i, uint64_t *cause)
{
    ShadowBlock *b = &s->block[i];
    int64_t age = s->tick - b->since;

    if (b->state == LIVE || (b->state == MOVED && age <= HORIZON)) {
        s->event = s->tick;
    }
    if (b->state == LIVE) {
        s->deaths[shadow_bin(age)]++;
        s->stats.spared += b->held;
        ++*cause;
    } else if (b->state == MOVED && age <= HORIZON) {
        s->deaths[shadow_bin(age + s->moved_age[i / REGION_BLOCKS])]++;
        s->stats.wasted_10s++;
        s->stats.wasted_1s += age <= DEFRAG_SECOND;
    }
    *b = (ShadowBlock) { };
}

static void shadow_write(Shadow *s)
{
    uint64_t *cause = &s->stats.overwritten;
    unsigned block = g_rand_int_range(s->rand, 0, NBLOCKS);
    unsigned max = 1 << g_rand_int_range(s->rand, 0, 10);
    unsigned n = g_rand_int_range(s->rand, 1, MIN(NBLOCKS - block, max) + 1);
    unsigned kind = g_rand_int_range(s->rand, 0, 6);

    if (kind == 0) {
        cause = &s->stats.discarded;
        world_discard(&s->w, block, n);
    } else if (kind == 1) {
        world_overwrite(&s->w, block, n);
    } else {
        world_indirect(&s->w, block, n);
        s->stats.indirected += n;
    }
    for (unsigned i = block; i < block + n; i++) {
        shadow_die(s, i, cause);
        if (kind > 1) {
            s->event = s->tick;
            s->block[i] = (ShadowBlock) { LIVE, s->tick };
        }
    }
}

static void shadow_moved(Shadow *s, const DefragRun *run)
{
    for (unsigned i = run->block; i < run->block + run->n; i++) {
        ShadowBlock *b = &s->block[i];

        if (b->state == LIVE) {
            s->moved_age[i / REGION_BLOCKS] = s->tick - b->since;
            *b = (ShadowBlock) { MOVED, s->tick };
            s->stats.moved++;
        }
    }
    world_move(&s->w, run);
}

/* Let everything be up to date, so that a look at a region changes nothing. */
static void shadow_settle(Shadow *s)
{
    DefragPlan *p = s->w.plan;

    world_catch_up(&s->w);
    defrag_set_now(p, s->w.now_ns);
    for (unsigned i = 0; i < NREGIONS; i++) {
        DefragRegion *r = defrag_find_region(p, i);

        if (r) {
            defrag_settle_region(p, r);
        }
    }
    defrag_life_update(&p->life);
}

static void shadow_compare(Shadow *s)
{
    DefragPlan *p = s->w.plan;
    DefragStats stats = world_stats(&s->w);

    for (unsigned j = 0; j < DEFRAG_BINS; j++) {
        g_assert_cmpfloat(p->life.deaths[j], ==, s->deaths[j]);
        g_assert_cmpfloat(p->life.exposure[j], ==, s->exposure[j]);
    }
    for (unsigned i = 0; i < NBLOCKS; i++) {
        DefragRegion *r = defrag_find_region(p, i / REGION_BLOCKS);

        g_assert_cmpint(s->block[i].state == LIVE, ==,
                        r && defrag_bit(r->live, i % REGION_BLOCKS));
    }
    g_assert_cmpmem(&stats, sizeof(stats), &s->stats, sizeof(s->stats));
}

/* What each block is to be done with now */
typedef struct ShadowView {
    bool ripe[NBLOCKS];
    bool skipped[NBLOCKS];      /* the region was looked at lately */
    int64_t wake;               /* tick when the next may be ripe */
} ShadowView;

static void shadow_view(Shadow *s, bool force, ShadowView *v)
{
    DefragPlan *p = s->w.plan;

    v->wake = s->event + HORIZON;
    for (unsigned i = 0; i < NBLOCKS; i++) {
        DefragRegion *r = defrag_find_region(p, i / REGION_BLOCKS);
        unsigned ripe = defrag_life_ripe(&p->life, defrag_region_factor(r),
                                         HORIZON);
        int64_t age = s->tick - s->block[i].since;

        v->skipped[i] = r && r->not_before > p->tick && !force;
        g_assert_true(!r || r->not_before <= p->tick + DEFRAG_SECOND);
        v->ripe[i] = force || (age > DEFRAG_SECOND && !v->skipped[i] &&
                               (ripe >> shadow_bin(age)) & 1);
        if (s->block[i].state != LIVE) {
            continue;
        }
        while (!(ripe >> shadow_bin(age) & 1)) {
            age = 16 << shadow_bin(age);        /* the next bin */
        }
        age = MAX(age, DEFRAG_SECOND + 1);
        v->wake = MIN(v->wake, v->skipped[i] ? r->not_before
                                             : s->block[i].since + age);
    }
}

/* The next run at or after @block. */
static DefragRun shadow_run(Shadow *s, const ShadowView *v, uint64_t block,
                            unsigned gap, unsigned max)
{
    DefragRun run = { };

    for (unsigned k = 0; k < NBLOCKS; k++) {
        uint64_t i = (block + k) % NBLOCKS;

        if (s->block[i].state != LIVE) {
            continue;
        }
        if (run.n && (i < run.block || i - run.block >= max ||
                      i / REGION_BLOCKS != run.block / REGION_BLOCKS ||
                      i - run.block - run.n > gap)) {
            break;
        }
        if (!v->ripe[i]) {
            if (run.n) {
                break;
            }
            continue;
        }
        run.block = run.n ? run.block : i;
        run.n = i - run.block + 1;
        run.mapped++;
    }
    return run;
}

/* Only what is not ripe was left alone; all of that if nothing was found */
static void shadow_hold(Shadow *s, const ShadowView *v, bool all)
{
    for (unsigned i = 0; i < NBLOCKS; i++) {
        DefragRegion *r = defrag_find_region(s->w.plan, i / REGION_BLOCKS);
        ShadowBlock *b = &s->block[i];

        if (b->state == LIVE) {
            bool held = defrag_bit(r->held, i % REGION_BLOCKS);

            g_assert_true(held || !b->held);
            g_assert_true(!held || b->held || !v->ripe[i]);
            g_assert_true(held || !all || v->skipped[i]);
            b->held = held;
        }
    }
}

static void shadow_ask(Shadow *s)
{
    bool force = g_rand_int_range(s->rand, 0, 4) == 0;
    unsigned gap = g_rand_boolean(s->rand)
                   ? 0 : g_rand_int_range(s->rand, 0, 300);
    unsigned max = g_rand_boolean(s->rand)
                   ? 256 : g_rand_int_range(s->rand, 1, 257);
    int64_t wait_ns = 0;
    DefragVerdict verdict;
    DefragRun run, want;
    ShadowView v;

    shadow_settle(s);
    shadow_compare(s);
    shadow_view(s, force || s->tick - s->event >= HORIZON, &v);
    want = shadow_run(s, &v, s->w.cursor.block, gap, max);
    verdict = world_next(&s->w, force, gap, max, &run, &wait_ns);
    if (want.n) {
        g_assert_cmpint(verdict, ==, DEFRAG_RUN);
        g_assert_cmpuint(run.block, ==, want.block);
        g_assert_cmpuint(run.n, ==, want.n);
        g_assert_cmpuint(run.mapped, ==, want.mapped);
    } else {
        g_assert_cmpint(verdict, ==, indirect_map_count(s->w.map)
                                     ? DEFRAG_WAIT : DEFRAG_NONE);
    }
    if (verdict == DEFRAG_WAIT) {
        int64_t want_ns = MAX(v.wake * TICK_NS, s->w.now_ns + 100 * MS);

        g_assert_cmpint(wait_ns, ==, MIN(want_ns,
                                         s->w.now_ns + DEFRAG_WATCH_NS));
    }
    shadow_hold(s, &v, verdict == DEFRAG_WAIT);
    if (verdict == DEFRAG_RUN && g_rand_int_range(s->rand, 0, 4)) {
        shadow_advance(s, g_rand_int_range(s->rand, 0, 2) * 300 * MS);
        shadow_moved(s, &run);
    }
}

static void test_random(void)
{
    for (unsigned round = 0; round < 30; round++) {
        Shadow *s = g_new0(Shadow, 1);

        world_init(&s->w);
        /* Within one period of fading: 275 s */
        s->w.now_ns = (s->w.now_ns >> (DEFRAG_TICK_BITS + 14) <<
                       (DEFRAG_TICK_BITS + 14)) + SEC;
        s->tick = s->w.now_ns / TICK_NS;
        s->rand = g_rand_new_with_seed(seed + round);
        for (unsigned i = 0; i < 250; i++) {
            shadow_advance(s, g_rand_int_range(s->rand, 0, 2) *
                              exp2(g_rand_double_range(s->rand, 20, 30)));
            if (g_rand_int_range(s->rand, 0, 3)) {
                shadow_write(s);
            } else {
                shadow_ask(s);
            }
        }
        g_rand_free(s->rand);
        world_cleanup(&s->w);
        g_free(s);
    }
}

static void assert_same_plan(DefragPlan *a, DefragPlan *b)
{
    DefragStats as, bs;

    defrag_plan_stats(a, &as);
    defrag_plan_stats(b, &bs);
    g_assert_cmpmem(&as, sizeof(as), &bs, sizeof(bs));
    g_assert_cmpmem(a->life.deaths, sizeof(a->life.deaths),
                    b->life.deaths, sizeof(b->life.deaths));
    g_assert_cmpmem(a->life.exposure, sizeof(a->life.exposure),
                    b->life.exposure, sizeof(b->life.exposure));
    g_assert_cmpint(a->event, ==, b->event);
    g_assert_cmpuint(a->nsplit, ==, b->nsplit);
    g_assert_cmpuint(a->array->len, ==, b->array->len);
    for (unsigned i = 0; i < a->array->len; i++) {
        g_assert_cmpmem(g_ptr_array_index(a->array, i), sizeof(DefragRegion),
                        g_ptr_array_index(b->array, i), sizeof(DefragRegion));
    }
}

/* When a plan looks at its queue makes no difference; which is bounded. */
static void test_late(void)
{
    GRand *rand = g_rand_new_with_seed(seed);
    DefragPlan *soon = defrag_plan_new(0);
    DefragPlan *late = defrag_plan_new(0);
    int64_t now_ns = 5 * SEC;
    unsigned full = 0;
    uint64_t block = 0;

    for (unsigned i = 0; i < 20000; i++) {
        unsigned n = 1 << g_rand_int_range(rand, 0, 9);
        unsigned kind = g_rand_int_range(rand, 0, 12);

        if (g_rand_int_range(rand, 0, 3)) {
            now_ns += exp2(g_rand_double_range(rand, 10, 27));
            block = g_rand_int_range(rand, 0, NBLOCKS);
        }
        for (unsigned k = 0; k < 2; k++) {
            DefragPlan *p = k ? late : soon;

            switch (kind) {
            case 0:
                defrag_plan_overwritten(p, block, n, now_ns);
                break;
            case 1:
                defrag_plan_discarded(p, block, n, now_ns);
                break;
            case 2:
                defrag_plan_read_split(p, block, n, now_ns);
                break;
            case 3:
                defrag_plan_moved(p, block, n, now_ns);
                break;
            default:
                defrag_plan_indirected(p, block, n, now_ns);
            }
        }
        block += n;
        g_assert_true(defrag_plan_catch_up(soon, UINT_MAX));
        g_assert_true(defrag_plan_watching(soon, now_ns) ==
                      defrag_plan_watching(late, now_ns));
        g_assert_cmpuint(late->queue_len, <=, DEFRAG_QUEUE_LEN);
        full += late->queue_len == DEFRAG_QUEUE_LEN;
        if (g_rand_int_range(rand, 0, 4000) == 0) {
            while (!defrag_plan_catch_up(late, 1)) {
                /* one event at a time */
            }
            assert_same_plan(soon, late);
        }
    }
    g_assert_cmpuint(full, >, 0);
    g_assert_true(defrag_plan_catch_up(late, UINT_MAX));
    assert_same_plan(soon, late);
    defrag_plan_free(soon);
    defrag_plan_free(late);
    g_rand_free(rand);
}

/* Measurements */

static double seconds(void)
{
    struct timespec ts;

    clock_gettime(CLOCK_MONOTONIC, &ts);
    return ts.tv_sec + ts.tv_nsec / 1000000000.0;
}

static void test_perf(void)
{
    const unsigned n = 1 << 20, per_event = 8;
    GRand *rand = g_rand_new_with_seed(seed);
    int64_t wait_ns;
    unsigned calls = 0;
    double begin;
    DefragVerdict verdict;
    DefragRun run;
    World w;

    world_init(&w);
    for (unsigned i = 0; i < n; i += per_event) {
        world_insert(&w, i, per_event);
    }
    for (unsigned round = 0; round < 2; round++) {
        begin = seconds();
        for (unsigned i = 0; i < n; i += per_event) {
            uint64_t block = round ? g_rand_int_range(rand, 0, n / per_event) *
                                     per_event : i;

            defrag_plan_indirected(w.plan, block, per_event, w.now_ns);
        }
        world_catch_up(&w);
        g_test_message("indirected, %s: %.1f ns a block",
                       round ? "again, anywhere" : "in order",
                       1e9 * (seconds() - begin) / n);
        w.now_ns += 300 * MS;
    }
    begin = seconds();
    for (unsigned i = 0; i < n; i += per_event) {
        defrag_plan_overwritten(w.plan, 4ULL * n + i, per_event, w.now_ns);
    }
    world_catch_up(&w);
    g_test_message("overwritten, nothing known: %.1f ns an event",
                   1e9 * (seconds() - begin) / (n / per_event));
    begin = seconds();
    do {
        verdict = defrag_plan_next_guest(w.plan, w.map, &w.cursor, false, 0,
                                         256, w.now_ns, &run, &wait_ns);
        calls++;
    } while (verdict == DEFRAG_AGAIN);
    g_test_message("a sweep of %u regions, verdict %d: %.1f us a call, "
                   "%.1f us a region", n / REGION_BLOCKS, verdict,
                   1e6 * (seconds() - begin) / calls,
                   1e6 * (seconds() - begin) / (n / REGION_BLOCKS));
    world_cleanup(&w);
    g_rand_free(rand);
}

int main(int argc, char **argv)
{
    g_test_init(&argc, &argv, NULL);
    seed = bsst_test_seed();

    g_test_add_func("/defrag-plan/empty", test_empty);
    g_test_add_func("/defrag-plan/order", test_order);
    g_test_add_func("/defrag-plan/last-block", test_last_block);
    g_test_add_func("/defrag-plan/young", test_young);
    g_test_add_func("/defrag-plan/quiet", test_quiet);
    g_test_add_func("/defrag-plan/force-later", test_force_later);
    g_test_add_func("/defrag-plan/mixed-ages", test_mixed_ages);
    g_test_add_func("/defrag-plan/unknown", test_unknown);
    g_test_add_func("/defrag-plan/factor", test_factor);
    g_test_add_func("/defrag-plan/sweep-cost", test_sweep_cost);
    g_test_add_func("/defrag-plan/wasted", test_wasted);
    g_test_add_func("/defrag-plan/swap-and-file", test_swap_and_file);
    g_test_add_func("/defrag-plan/split-first", test_split_first);
    g_test_add_func("/defrag-plan/split-young", test_split_young);
    g_test_add_func("/defrag-plan/store-random", test_store_random);
    g_test_add_func("/defrag-plan/compact", test_compact);
    g_test_add_func("/defrag-plan/bound", test_bound);
    g_test_add_func("/defrag-plan/long-ages", test_long_ages);
    g_test_add_func("/defrag-plan/rebase", test_rebase);
    g_test_add_func("/defrag-plan/fade", test_fade);
    g_test_add_func("/defrag-plan/random", test_random);
    g_test_add_func("/defrag-plan/late", test_late);
    if (g_test_perf()) {
        g_test_add_func("/defrag-plan/perf", test_perf);
    }
    return g_test_run();
}
