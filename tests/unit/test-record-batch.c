/*
 * Record batch: random records against a table of all blocks that they name
 *
 * BSST_TEST_SEED=N repeats a run; "-m perf" adds measurements.
 *
 * This work is licensed under the terms of the GNU GPL, version 2 or later.
 * See the COPYING file in the top-level directory.
 */

#include "qemu/osdep.h"
#include "bsst/record-batch.h"
#include "bsst-seed.h"

#define NONE        BSST_SLOT_NONE
#define LAST_MAP    (BSST_RECORD_BATCH_MAPS - 1)

/* A batch and its shadow: the last slot of each block that was named */
typedef struct Pair {
    RecordBatch *batch;
    GHashTable *shadow;         /* of Named, by map and block */
} Pair;

typedef struct Named {
    uint64_t key;               /* map << 48 | block */
    BsstSlot slot;
} Named;

static uint32_t seed;

static void pair_init(Pair *p)
{
    p->batch = record_batch_new();
    p->shadow = g_hash_table_new_full(g_int64_hash, g_int64_equal, NULL,
                                      g_free);
}

static void pair_cleanup(Pair *p)
{
    record_batch_free(p->batch);
    g_hash_table_unref(p->shadow);
}

static void pair_add(Pair *p, uint32_t map, uint64_t block, uint32_t n,
                     BsstSlot slot)
{
    BsstRecord record = { .block = block, .n = n, .slot = slot };

    record_batch_add(p->batch, map, &record);
    for (uint32_t i = 0; i < n; i++) {
        Named *named = g_new(Named, 1);

        named->key = (uint64_t)map << 48 | (block + i);
        named->slot = slot == NONE ? NONE : slot + i;
        g_hash_table_replace(p->shadow, &named->key, named);
    }
}

/* Take all out: each word once and in order, and in it what was named last. */
static void pair_take(Pair *p)
{
    BsstRecordWord word, last = { 0 };
    bool first = true;

    while (record_batch_next(p->batch, &word)) {
        g_assert_true(first || word.map > last.map ||
                      (word.map == last.map && word.block > last.block));
        g_assert_cmpuint(word.block % BSST_WORD_BLOCKS, ==, 0);
        g_assert_cmphex(word.mask, !=, 0);
        for (unsigned k = 0; k < BSST_WORD_BLOCKS; k++) {
            uint64_t key = (uint64_t)word.map << 48 | (word.block + k);
            const Named *named = g_hash_table_lookup(p->shadow, &key);

            g_assert_cmpint(named != NULL, ==, word.mask >> k & 1);
            if (named) {
                g_assert_cmpuint(named->slot, ==, word.slot[k]);
                g_hash_table_remove(p->shadow, &key);
            }
        }
        last = word;
        first = false;
    }
    g_assert_cmpuint(g_hash_table_size(p->shadow), ==, 0);
    g_assert_cmpuint(record_batch_bytes(p->batch), ==, 0);
}

static void test_empty(void)
{
    Pair p;

    pair_init(&p);
    pair_take(&p);
    pair_take(&p);
    pair_cleanup(&p);
    record_batch_free(NULL);
}

/* The first and the last of all, and words that differ in one bit only */
static void test_edges(void)
{
    Pair p;

    pair_init(&p);
    pair_add(&p, LAST_MAP, BSST_MAX_BLOCK - 3, 3, NONE - 5);
    pair_add(&p, LAST_MAP, 0, 1, 7);
    pair_add(&p, 0, BSST_MAX_BLOCK - 1, 1, NONE);
    pair_add(&p, 0, 0, 1, 0);
    pair_take(&p);
    for (int bit = 0; bit < 48; bit++) {
        pair_add(&p, 0, 1ULL << bit, 1, bit);
        pair_add(&p, 0, 0, 1, 48);
        pair_take(&p);
    }
    for (int bit = 0; bit < 16; bit++) {
        pair_add(&p, 1u << bit, 62, 1, bit);
        pair_add(&p, 0, 62, 2, 16);
        pair_take(&p);
    }
    pair_cleanup(&p);
}

/* The longest record, at each place in a word; then again, over itself */
static void test_long(void)
{
    Pair p;

    pair_init(&p);
    for (unsigned i = 0; i < 2; i++) {
        for (unsigned part = 0; part < BSST_WORD_BLOCKS; part += 9) {
            pair_add(&p, 1, 1000 * BSST_WORD_BLOCKS + part,
                     BSST_RECORD_MAX_BLOCKS, part);
            pair_add(&p, 1, 1010 * BSST_WORD_BLOCKS + part, 200, NONE);
        }
        if (i) {
            pair_add(&p, 0, 5, 1, 5);           /* not in order */
        }
        pair_take(&p);
    }
    pair_cleanup(&p);
}

/* Neighbourhoods that are far apart, and blocks that are named again */
static void add_random(Pair *p, GRand *rand, bool in_order, uint64_t *block)
{
    uint32_t map = g_rand_int(rand) % 3 * (LAST_MAP / 2);
    uint32_t n = g_rand_int(rand) % 8 ? 1 + g_rand_int(rand) % 4
                                      : 1 + g_rand_int(rand) % 300;
    BsstSlot slot = g_rand_int(rand) % 4 ? g_rand_int(rand) >> 1 : NONE;

    if (in_order) {
        map = 7;
        *block += g_rand_int(rand) % 100;
    } else {
        *block = g_rand_int(rand) % 500;
        if (g_rand_boolean(rand)) {
            *block += 1ULL << g_rand_int_range(rand, 6, 48);
        }
    }
    *block = MIN(*block, BSST_MAX_BLOCK - n);
    pair_add(p, map, *block, n, slot);
    if (in_order) {
        *block += n;
    }
}

static void test_random(void)
{
    GRand *rand = g_rand_new_with_seed(seed);
    Pair p;

    pair_init(&p);
    for (unsigned round = 0; round < 400; round++) {
        unsigned n = 1 + g_rand_int(rand) % (round % 20 ? 100 : 5000);
        uint64_t block = 0;

        for (unsigned i = 0; i < n; i++) {
            add_random(&p, rand, round % 4 == 0, &block);
        }
        pair_take(&p);
    }
    pair_cleanup(&p);
    g_rand_free(rand);
}

static void test_perf(void)
{
    const unsigned n = BSST_RECORD_BATCH_BYTES / 16;
    GRand *rand = g_rand_new_with_seed(seed);
    RecordBatch *batch = record_batch_new();
    GTimer *timer = g_timer_new();
    QEMU_UNINITIALIZED BsstRecordWord word;
    unsigned i, words;

    for (unsigned in_order = 0; in_order < 2; in_order++) {
        for (i = 0; i < n; i++) {
            record_batch_add(batch, 0, &(BsstRecord) {
                .block = in_order ? i : g_rand_int(rand) % (1u << 24),
                .n = 1,
                .slot = i,
            });
        }
        g_timer_start(timer);
        for (words = 0; record_batch_next(batch, &word); words++) {
            ;
        }
        g_test_message("%u records %s in %u words: %.1f ns a record", n,
                       in_order ? "in order" : "at random", words,
                       g_timer_elapsed(timer, NULL) * 1e9 / n);
    }
    g_timer_destroy(timer);
    record_batch_free(batch);
    g_rand_free(rand);
}

int main(int argc, char **argv)
{
    g_test_init(&argc, &argv, NULL);
    seed = bsst_test_seed();

    g_test_add_func("/record-batch/empty", test_empty);
    g_test_add_func("/record-batch/edges", test_edges);
    g_test_add_func("/record-batch/long", test_long);
    g_test_add_func("/record-batch/random", test_random);
    if (g_test_perf()) {
        g_test_add_func("/record-batch/perf", test_perf);
    }
    return g_test_run();
}
