/*
 * Durable map: random histories against plain arrays, and edge cases
 *
 * The shadow knows, for each block, every value that a crash may leave.
 * BSST_TEST_SEED=N repeats a run; "-m perf" adds measurements.
 *
 * This work is licensed under the terms of the GNU GPL, version 2 or later.
 * See the COPYING file in the top-level directory.
 */

#include "qemu/osdep.h"
#include <time.h>
#include "bsst/durable-map.h"
#include "bsst-seed.h"

#define NBLOCKS     160u
#define MAX_RUN     24u
#define NONE        BSST_SLOT_NONE

/*
 * The map under test and its shadow.  A slot is never used a second time, so
 * that a reference which is dropped too early cannot hide.
 */
typedef struct Pair {
    DurableMap *map;
    uint64_t base;              /* number of the first block */
    GRand *rand;

    BsstSlot current[NBLOCKS];
    BsstSlot committed[NBLOCKS];
    BsstSlot prepared[NBLOCKS];
    GHashTable *disk[NBLOCKS];  /* set of BsstSlot: what a crash may leave */
    bool preparing;

    GArray *refs;               /* of uint32_t, by slot */
    uint64_t nrefs;
} Pair;

static uint32_t seed;

static uint32_t *refs_of(Pair *p, BsstSlot slot)
{
    g_assert_cmpuint(slot, <, p->refs->len);
    return &g_array_index(p->refs, uint32_t, slot);
}

static void pair_init(Pair *p, uint64_t base, GRand *rand)
{
    *p = (Pair) {
        .map = durable_map_new(),
        .base = base,
        .rand = rand,
        .refs = g_array_new(false, true, sizeof(uint32_t)),
    };
    for (unsigned i = 0; i < NBLOCKS; i++) {
        p->current[i] = p->committed[i] = p->prepared[i] = NONE;
        p->disk[i] = g_hash_table_new(NULL, NULL);
        g_hash_table_add(p->disk[i], GUINT_TO_POINTER(NONE));
    }
}

static void pair_cleanup(Pair *p)
{
    durable_map_free(p->map);
    for (unsigned i = 0; i < NBLOCKS; i++) {
        g_hash_table_unref(p->disk[i]);
    }
    g_array_unref(p->refs);
}

static void take(Pair *p, BsstSlot slot)
{
    ++*refs_of(p, slot);
    p->nrefs++;
}

static void drop(Pair *p, BsstSlot slot)
{
    g_assert_cmpuint(*refs_of(p, slot), >, 0);
    --*refs_of(p, slot);
    p->nrefs--;
}

/* A new slot, or with luck one that some block has now */
static BsstSlot random_slot(Pair *p)
{
    uint32_t none = 0;
    BsstSlot slot = p->current[g_rand_int(p->rand) % NBLOCKS];

    if (slot == NONE || g_rand_int(p->rand) % 4) {
        slot = p->refs->len;
        g_array_append_val(p->refs, none);
    }
    take(p, slot);
    return slot;
}

static void pair_set(Pair *p, unsigned first, const BsstSlot *slot, unsigned n)
{
    BsstSlot old[NBLOCKS], to_drop[NBLOCKS];
    bool alias = g_rand_boolean(p->rand);
    unsigned i, had;

    had = durable_map_set(p->map, p->base + first, slot, n, old,
                          alias ? old : to_drop);
    for (i = 0; i < n; i++) {
        BsstSlot d = alias ? old[i] : to_drop[i];

        had -= p->current[first + i] != NONE;

        if (!alias) {
            g_assert_cmpuint(old[i], ==, p->current[first + i]);
        }
        g_assert_true(d == NONE || d == p->current[first + i]);
        p->current[first + i] = slot[i];
        if (d != NONE) {
            drop(p, d);
        }
    }
    g_assert_cmpuint(had, ==, 0);
}

/* A request: new slots, consecutive or not, or removals, or a mixture */
static void random_set(Pair *p)
{
    unsigned n = 1 + g_rand_int(p->rand) % MAX_RUN;
    unsigned first = g_rand_int(p->rand) % (NBLOCKS - n + 1);
    unsigned kind = g_rand_int(p->rand) % 4;
    BsstSlot slot[MAX_RUN];

    for (unsigned i = 0; i < n; i++) {
        slot[i] = kind == 0 || (kind == 1 && g_rand_boolean(p->rand))
                  ? NONE : random_slot(p);
    }
    pair_set(p, first, slot, n);
}

/* Read the records of the commit in progress and what they say. */
static unsigned check_prepared(Pair *p)
{
    BsstRecord r, last = { 0 };
    bool covered[NBLOCKS] = { false };
    uint64_t block = 0;
    unsigned i, k, nrecords = 0;

    for (; durable_map_next_prepared(p->map, block, &r);
         block = r.block + r.n) {
        g_assert_cmpuint(r.n, >=, 1);
        g_assert_cmpuint(r.block, >=, block);
        g_assert_cmpuint(r.block, >=, p->base);
        i = r.block - p->base;
        g_assert_cmpuint(i + r.n, <=, NBLOCKS);
        for (k = 0; k < r.n; k++) {
            g_assert_cmpuint(p->prepared[i + k], ==,
                             r.slot == NONE ? NONE : r.slot + k);
            covered[i + k] = true;
        }
        /* Runs are as long as they can be */
        g_assert_false(nrecords && last.block + last.n == r.block &&
                       (last.slot == NONE ? r.slot == NONE
                                          : last.slot + last.n == r.slot));
        last = r;
        nrecords++;
    }
    for (i = 0; i < NBLOCKS; i++) {
        if (p->prepared[i] != p->committed[i] ||
            g_hash_table_size(p->disk[i]) > 1) {
            g_assert_true(covered[i]);
        }
    }
    return nrecords;
}

static void pair_prepare(Pair *p)
{
    durable_map_prepare(p->map);
    p->preparing = true;
    memcpy(p->prepared, p->current, sizeof(p->prepared));
    check_prepared(p);
    for (unsigned i = 0; i < NBLOCKS; i++) {
        g_hash_table_add(p->disk[i], GUINT_TO_POINTER(p->prepared[i]));
    }
}

static void pair_commit(Pair *p)
{
    GArray *array = durable_map_commit(p->map);

    p->preparing = false;
    memcpy(p->committed, p->prepared, sizeof(p->committed));
    for (unsigned i = 0; i < NBLOCKS; i++) {
        g_hash_table_remove_all(p->disk[i]);
        g_hash_table_add(p->disk[i], GUINT_TO_POINTER(p->committed[i]));
    }
    for (unsigned i = 0; i < array->len; i++) {
        drop(p, g_array_index(array, BsstSlot, i));
    }
    g_array_unref(array);
}

static void pair_abort(Pair *p)
{
    durable_map_abort(p->map);
    p->preparing = false;
    memcpy(p->prepared, p->committed, sizeof(p->prepared));
}

/* Let @m be restored from what has been added to @batch. */
static void restore_batch(DurableMap *m, RecordBatch *batch)
{
    BsstRecordWord word;

    while (record_batch_next(batch, &word)) {
        durable_map_restore(m, &word);
    }
}

static void restore(DurableMap *m, const BsstRecord *record)
{
    RecordBatch *batch = record_batch_new();

    record_batch_add(batch, 0, record);
    restore_batch(m, batch);
    record_batch_free(batch);
}

static void check_iteration(Pair *p, bool prepared, const BsstSlot *expected)
{
    DurableMap *restored = durable_map_new();
    uint64_t block = 0, entries = 0;
    unsigned i;
    BsstRecord r, last = { 0 };

    for (; durable_map_next_committed(p->map, prepared, block, &r);
         block = r.block + r.n) {
        g_assert_cmpuint(r.n, >=, 1);
        g_assert_cmpuint(r.block, >=, block);
        g_assert_cmpuint(r.slot, !=, NONE);
        g_assert_false(last.n && last.block + last.n == r.block &&
                       last.slot + last.n == r.slot);
        restore(restored, &r);
        entries += r.n;
        last = r;
    }
    g_assert_cmpuint(indirect_map_count(durable_map_current(restored)), ==,
                     entries);
    for (i = 0; i < NBLOCKS; i++) {
        g_assert_cmpuint(indirect_map_lookup(durable_map_current(restored),
                                             p->base + i), ==, expected[i]);
        entries -= expected[i] != NONE;
    }
    g_assert_cmpuint(entries, ==, 0);
    g_assert_false(durable_map_changed(restored));
    durable_map_free(restored);
}

/* What a crash may bring back is referenced, and nothing else is. */
static void check_references(Pair *p)
{
    g_autofree bool *named = g_new0(bool, p->refs->len + 1);
    uint64_t entries = 0;
    unsigned i;

    for (i = 0; i < NBLOCKS; i++) {
        GHashTableIter iter;
        gpointer key;
        bool any = p->current[i] != NONE;

        if (p->current[i] != NONE) {
            named[p->current[i]] = true;
        }
        g_hash_table_iter_init(&iter, p->disk[i]);
        while (g_hash_table_iter_next(&iter, &key, NULL)) {
            BsstSlot slot = GPOINTER_TO_UINT(key);

            if (slot != NONE) {
                named[slot] = any = true;
            }
        }
        entries += any;
    }
    for (i = 0; i < p->refs->len; i++) {
        g_assert_cmpint(*refs_of(p, i) > 0, ==, named[i]);
    }
    g_assert_cmpuint(durable_map_weight(p->map), ==, p->nrefs);
    g_assert_cmpuint(durable_map_weight(p->map), >=, entries);
}

static void check_all(Pair *p)
{
    unsigned i;

    for (i = 0; i < NBLOCKS; i++) {
        g_assert_cmpuint(indirect_map_lookup(durable_map_current(p->map),
                                             p->base + i), ==, p->current[i]);
        if (p->current[i] != p->prepared[i]) {
            g_assert_true(durable_map_changed(p->map));
        }
    }
    g_assert_cmpint(durable_map_preparing(p->map), ==, p->preparing);
    check_references(p);
    check_iteration(p, false, p->committed);
    check_iteration(p, true, p->prepared);
    if (p->preparing) {
        check_prepared(p);
    }
}

/* Remove everything: no reference may be left. */
static void check_end(Pair *p)
{
    BsstSlot none[NBLOCKS];

    for (unsigned i = 0; i < NBLOCKS; i++) {
        none[i] = NONE;
    }
    if (p->preparing) {
        pair_commit(p);
    }
    pair_set(p, 0, none, NBLOCKS);
    check_all(p);
    pair_prepare(p);
    pair_commit(p);
    check_all(p);
    g_assert_cmpuint(p->nrefs, ==, 0);
    g_assert_cmpuint(durable_map_weight(p->map), ==, 0);
    g_assert_false(durable_map_changed(p->map));
}

static void test_random(void)
{
    const uint64_t bases[] = { 0, 60, 4090, BSST_MAX_BLOCK - NBLOCKS };
    GRand *rand = g_rand_new_with_seed(seed);
    unsigned round, op;
    Pair p;

    for (round = 0; round < 40; round++) {
        pair_init(&p, bases[round % G_N_ELEMENTS(bases)], rand);
        for (op = 0; op < 300; op++) {
            unsigned what = g_rand_int(rand) % 8;

            if (what > 2) {
                random_set(&p);
            } else if (!p.preparing) {
                pair_prepare(&p);
            } else if (what == round / 4 % 3) {
                pair_abort(&p);
            } else if (what) {
                pair_commit(&p);
            }
            check_all(&p);
        }
        check_end(&p);
        pair_cleanup(&p);
    }
    g_rand_free(rand);
}

static void test_empty(void)
{
    DurableMap *m = durable_map_new();
    GArray *dropped;
    BsstRecord r;

    g_assert_false(durable_map_changed(m));
    g_assert_false(durable_map_preparing(m));
    g_assert_false(durable_map_next_committed(m, false, 0, &r));
    g_assert_false(durable_map_next_committed(m, true, 0, &r));
    durable_map_prepare(m);
    g_assert_true(durable_map_preparing(m));
    g_assert_false(durable_map_next_prepared(m, 0, &r));
    durable_map_abort(m);
    durable_map_prepare(m);
    dropped = durable_map_commit(m);
    g_assert_cmpuint(dropped->len, ==, 0);
    g_array_unref(dropped);
    g_assert_cmpuint(durable_map_weight(m), ==, 0);
    durable_map_free(m);
    durable_map_free(NULL);
}

static void set_one(DurableMap *m, uint64_t block, BsstSlot slot,
                    BsstSlot expected_drop)
{
    BsstSlot old, to_drop;

    durable_map_set(m, block, &slot, 1, &old, &to_drop);
    g_assert_cmpuint(to_drop, ==, expected_drop);
}

/* A block that comes and goes between two flushes costs nothing. */
static void test_swap_block(void)
{
    DurableMap *m = durable_map_new();

    set_one(m, 7, 1, NONE);
    g_assert_true(durable_map_changed(m));
    set_one(m, 7, 2, 1);
    set_one(m, 7, NONE, 2);
    g_assert_false(durable_map_changed(m));
    set_one(m, 7, NONE, NONE);
    g_assert_false(durable_map_changed(m));
    g_assert_cmpuint(durable_map_weight(m), ==, 0);
    durable_map_free(m);
}

static void commit_expecting(DurableMap *m, const BsstSlot *slot, unsigned n)
{
    GArray *dropped = durable_map_commit(m);

    g_assert_cmpuint(dropped->len, ==, n);
    for (unsigned i = 0; i < n; i++) {
        g_assert_cmpuint(g_array_index(dropped, BsstSlot, i), ==, slot[i]);
    }
    g_array_unref(dropped);
}

/* A durable slot outlives its removal until that is durable. */
static void test_removal(void)
{
    DurableMap *m = durable_map_new();
    BsstRecord r;

    set_one(m, 7, 1, NONE);
    durable_map_prepare(m);
    commit_expecting(m, NULL, 0);
    set_one(m, 7, NONE, NONE);
    g_assert_cmpuint(durable_map_weight(m), ==, 1);
    durable_map_prepare(m);
    g_assert_true(durable_map_next_prepared(m, 0, &r));
    g_assert_cmpuint(r.block, ==, 7);
    g_assert_cmpuint(r.slot, ==, NONE);
    g_assert_true(durable_map_next_committed(m, false, 0, &r));
    g_assert_cmpuint(r.slot, ==, 1);
    g_assert_false(durable_map_next_committed(m, true, 0, &r));
    commit_expecting(m, (BsstSlot[]) { 1 }, 1);
    g_assert_cmpuint(durable_map_weight(m), ==, 0);
    durable_map_free(m);
}

/*
 * A failed commit may have written what it was to write: its slot is kept, and
 * the next commit says what is right, even if that is nothing.
 */
static void test_doubt(void)
{
    DurableMap *m = durable_map_new();
    BsstRecord r;

    set_one(m, 7, 1, NONE);
    durable_map_prepare(m);
    durable_map_abort(m);
    set_one(m, 7, 2, NONE);             /* 1 may be on disk */
    set_one(m, 7, NONE, 2);             /* 2 is not */
    g_assert_true(durable_map_changed(m));
    g_assert_cmpuint(durable_map_weight(m), ==, 1);
    durable_map_prepare(m);
    g_assert_true(durable_map_next_prepared(m, 0, &r));
    g_assert_cmpuint(r.block, ==, 7);
    g_assert_cmpuint(r.slot, ==, NONE);
    durable_map_abort(m);
    durable_map_prepare(m);
    g_assert_true(durable_map_next_prepared(m, 0, &r));
    commit_expecting(m, (BsstSlot[]) { 1 }, 1);
    g_assert_false(durable_map_changed(m));
    durable_map_free(m);
}

/* Records have a greatest length; later changes do not show in them. */
static void test_long_runs(void)
{
    const unsigned n = 2 * BSST_RECORD_MAX_BLOCKS + 100, first = 1000;
    g_autofree BsstSlot *slot = g_new(BsstSlot, n);
    g_autofree BsstSlot *old = g_new(BsstSlot, n);
    DurableMap *m = durable_map_new();
    unsigned i, k, rounds;
    uint64_t block;
    BsstRecord r;

    for (rounds = 0; rounds < 2; rounds++) {
        for (i = 0; i < n; i++) {
            slot[i] = rounds ? NONE : 5 + i;
        }
        durable_map_set(m, first, slot, n, old, old);
        durable_map_prepare(m);
        set_one(m, first + 70000, 3, NONE);
        for (i = 0, k = 0, block = 0;
             durable_map_next_prepared(m, block, &r); k++) {
            g_assert_cmpuint(r.block, ==, first + i);
            g_assert_cmpuint(r.slot, ==, slot[i]);
            g_assert_cmpuint(r.n, ==, k < 2 ? BSST_RECORD_MAX_BLOCKS : 100);
            i += r.n;
            block = r.block + r.n;
        }
        g_assert_cmpuint(k, ==, 3);
        for (i = 0, k = 0, block = 0;
             durable_map_next_committed(m, true, block, &r); k++) {
            g_assert_cmpuint(r.n, ==, k < 2 ? BSST_RECORD_MAX_BLOCKS : 100);
            block = r.block + r.n;
        }
        g_assert_cmpuint(k, ==, rounds ? 0 : 3);
        g_array_unref(durable_map_commit(m));
    }
    g_assert_cmpuint(durable_map_weight(m), ==, 1);
    durable_map_free(m);
}

/* The last record for a block wins. */
static void test_restore(void)
{
    DurableMap *m = durable_map_new();
    const IndirectMap *current = durable_map_current(m);

    restore(m, &(BsstRecord) { .block = 10, .n = 60000 });
    restore(m, &(BsstRecord) {
        .block = 20, .n = 100, .slot = NONE });
    restore(m, &(BsstRecord) {
        .block = 30, .n = 1, .slot = 99999 });
    restore(m, &(BsstRecord) {
        .block = BSST_MAX_BLOCK - 2, .n = 2, .slot = BSST_SLOT_NONE - 3 });
    g_assert_cmpuint(indirect_map_count(current), ==, 60000 - 100 + 1 + 2);
    g_assert_cmpuint(indirect_map_lookup(current, 10), ==, 0);
    g_assert_cmpuint(indirect_map_lookup(current, 20), ==, NONE);
    g_assert_cmpuint(indirect_map_lookup(current, 30), ==, 99999);
    g_assert_cmpuint(indirect_map_lookup(current, 120), ==, 110);
    g_assert_false(durable_map_changed(m));
    durable_map_free(m);
}

/* CPU time of this process: others must not count. */
static double cpu_s(void)
{
    return (double)clock() / CLOCKS_PER_SEC;
}

static double perf_set(DurableMap *m, const BsstSlot *slot, unsigned n,
                       unsigned rounds)
{
    g_autofree BsstSlot *old = g_new(BsstSlot, n);
    double start = cpu_s();

    for (unsigned i = 0; i < rounds; i++) {
        durable_map_set(m, (uint64_t)i * n, slot, n, old, old);
    }
    return (cpu_s() - start) * 1e6 / rounds;
}

static void test_perf(void)
{
    const unsigned n = 128, rounds = 20000;
    g_autofree BsstSlot *slot = g_new(BsstSlot, n);
    g_autofree BsstSlot *none = g_new(BsstSlot, n);
    DurableMap *m = durable_map_new();
    uint64_t block, records;
    double start, us[3];
    BsstRecord r;

    for (unsigned i = 0; i < n; i++) {
        slot[i] = i * 2;
        none[i] = NONE;
    }
    us[0] = perf_set(m, slot, n, rounds);
    us[1] = perf_set(m, slot, n, rounds);
    us[2] = perf_set(m, none, n, rounds);
    g_test_message("requests of %u blocks: new %.2f us, again %.2f us, "
                   "removed %.2f us", n, us[0], us[1], us[2]);
    perf_set(m, slot, n, rounds);

    start = cpu_s();
    g_assert_false(durable_map_next_committed(m, false, 0, &r));
    g_test_message("skipping %u uncommitted blocks: %.2f ms", n * rounds,
                   (cpu_s() - start) * 1e3);
    start = cpu_s();
    durable_map_prepare(m);
    g_test_message("prepare: %.2f us", (cpu_s() - start) * 1e6);
    start = cpu_s();
    for (block = 0, records = 0; durable_map_next_prepared(m, block, &r);
         block = r.block + r.n) {
        records++;
    }
    g_test_message("next_prepared: %.0f ns a record",
                   (cpu_s() - start) * 1e9 / records);
    start = cpu_s();
    g_array_unref(durable_map_commit(m));
    g_test_message("commit: %.1f ns a block",
                   (cpu_s() - start) * 1e9 / (n * rounds));
    start = cpu_s();
    for (block = 0, records = 0;
         durable_map_next_committed(m, false, block, &r);
         block = r.block + r.n) {
        records++;
    }
    g_test_message("next_committed: %.0f ns a record",
                   (cpu_s() - start) * 1e9 / records);
    durable_map_free(m);
}

/* Recovery: 10 million indirections from a checkpoint, none beside another */
static void test_perf_restore(void)
{
    const unsigned n = 10000000;
    RecordBatch *batch = record_batch_new();
    DurableMap *m = durable_map_new();
    double start = cpu_s();
    BsstRecord r = { .n = 1 };

    for (unsigned i = 0; i < n; i++) {
        r.block += 1 + (i * 2654435761u >> 31);
        r.slot = i * 2654435761u % n;
        record_batch_add(batch, 0, &r);
        if (record_batch_bytes(batch) >= BSST_RECORD_BATCH_BYTES) {
            restore_batch(m, batch);
        }
    }
    restore_batch(m, batch);
    record_batch_free(batch);
    g_test_message("restore of %u blocks: %.0f ms, %.1f MB", n,
                   (cpu_s() - start) * 1e3,
                   durable_map_bytes(m) / 1e6);
    durable_map_free(m);
}

int main(int argc, char **argv)
{
    g_test_init(&argc, &argv, NULL);
    seed = bsst_test_seed();

    g_test_add_func("/durable-map/empty", test_empty);
    g_test_add_func("/durable-map/swap-block", test_swap_block);
    g_test_add_func("/durable-map/removal", test_removal);
    g_test_add_func("/durable-map/doubt", test_doubt);
    g_test_add_func("/durable-map/long-runs", test_long_runs);
    g_test_add_func("/durable-map/restore", test_restore);
    g_test_add_func("/durable-map/random", test_random);
    if (g_test_perf()) {
        g_test_add_func("/durable-map/perf", test_perf);
        g_test_add_func("/durable-map/perf-restore", test_perf_restore);
    }
    return g_test_run();
}
