/*
 * Indirection map: random operations against a sorted array, and edge cases
 *
 * BSST_TEST_SEED=N repeats a run; "-m perf" adds measurements.
 *
 * This work is licensed under the terms of the GNU GPL, version 2 or later.
 * See the COPYING file in the top-level directory.
 */

#include "qemu/osdep.h"
#include "bsst/indirect-map.h"
#include "bsst-seed.h"

#define LAST_BLOCK  ((1ULL << 51) - 1)

typedef struct Entry {
    uint64_t block;
    BsstSlot slot;
} Entry;

/* The map under test and its shadow: an array of Entry, sorted by block */
typedef struct Pair {
    IndirectMap *map;
    GArray *shadow;
    size_t empty_bytes;
} Pair;

static uint32_t seed;

static Entry *entry_at(const Pair *p, unsigned i)
{
    return &g_array_index(p->shadow, Entry, i);
}

static void pair_init(Pair *p)
{
    p->map = indirect_map_new();
    p->shadow = g_array_new(false, false, sizeof(Entry));
    p->empty_bytes = indirect_map_bytes(p->map);
}

static void pair_cleanup(Pair *p)
{
    indirect_map_free(p->map);
    g_array_free(p->shadow, true);
}

/* Index of the first entry at or after @block */
static unsigned shadow_find(const Pair *p, uint64_t block)
{
    unsigned lo = 0, hi = p->shadow->len;

    while (lo < hi) {
        unsigned mid = (lo + hi) / 2;

        if (entry_at(p, mid)->block < block) {
            lo = mid + 1;
        } else {
            hi = mid;
        }
    }
    return lo;
}

/* Number of entries for @block, @block + 1 and so on, from index @i on */
static uint64_t shadow_run(const Pair *p, unsigned i, uint64_t block)
{
    uint64_t run = 0;

    while (i + run < p->shadow->len &&
           entry_at(p, i + run)->block == block + run) {
        run++;
    }
    return run;
}

static void check_lookup(const Pair *p, uint64_t block)
{
    unsigned i = shadow_find(p, block);
    BsstSlot expected = BSST_SLOT_NONE;

    if (i < p->shadow->len && entry_at(p, i)->block == block) {
        expected = entry_at(p, i)->slot;
    }
    g_assert_cmpuint(indirect_map_lookup(p->map, block), ==, expected);
}

static void check_next(const Pair *p, uint64_t block)
{
    unsigned i = shadow_find(p, block);
    uint64_t found = 0;
    BsstSlot slot = 0;

    if (!indirect_map_next(p->map, block, &found, &slot)) {
        g_assert_cmpuint(i, ==, p->shadow->len);
        return;
    }
    g_assert_cmpuint(i, <, p->shadow->len);
    g_assert_cmpuint(found, ==, entry_at(p, i)->block);
    g_assert_cmpuint(slot, ==, entry_at(p, i)->slot);
}

/* The slots of the entries from @block on, in its word */
static void check_next_slots(const Pair *p, uint64_t block)
{
    unsigned i = shadow_find(p, block), n, k;
    BsstSlot slot[BSST_WORD_BLOCKS];

    n = indirect_map_next_slots(p->map, &block, slot);
    g_assert_cmpint(n > 0, ==, i < p->shadow->len);
    for (k = 0; k < n; k++) {
        g_assert_cmpuint(slot[k], ==, entry_at(p, i + k)->slot);
        g_assert_cmpuint(entry_at(p, i + k)->block, <, block);
    }
    if (n && i + n < p->shadow->len) {
        g_assert_cmpuint(entry_at(p, i + n)->block, >=, block);
    }
}

static uint64_t check_extent(const Pair *p, uint64_t block, uint64_t max)
{
    unsigned i = shadow_find(p, block);
    uint64_t run = shadow_run(p, i, block);
    uint64_t gap = max;
    bool mapped;

    if (i < p->shadow->len) {
        gap = MIN(gap, entry_at(p, i)->block - block);
    }
    g_assert_cmpuint(indirect_map_extent(p->map, block, max, &mapped), ==,
                     run ? MIN(run, max) : gap);
    g_assert_cmpint(mapped, ==, run > 0);
    return run ? MIN(run, max) : gap;
}

/* The 64 blocks around @block, with and without a slot that one of them has */
static void check_word(const Pair *p, uint64_t block)
{
    uint64_t b, first = block & ~63ULL, all = 0, some = 0;
    BsstSlot except = indirect_map_lookup(p->map, block);

    for (b = first; b < first + 64; b++) {
        BsstSlot slot = indirect_map_lookup(p->map, b);

        if (slot != BSST_SLOT_NONE) {
            all |= 1ULL << (b - first);
            some |= (uint64_t)(slot != except) << (b - first);
        }
    }
    g_assert_cmphex(indirect_map_word(p->map, block, BSST_SLOT_NONE), ==, all);
    g_assert_cmphex(indirect_map_word(p->map, block, except), ==, some);
}

static void check_around(const Pair *p, uint64_t block, uint64_t max)
{
    uint64_t b, last = MIN(block + 1, LAST_BLOCK);

    for (b = block ? block - 1 : 0; b <= last; b++) {
        check_lookup(p, b);
        check_next(p, b);
        check_next_slots(p, b);
        check_extent(p, b, max);
        check_word(p, b);
    }
    g_assert_cmpuint(indirect_map_count(p->map), ==, p->shadow->len);
}

static void check_all(const Pair *p)
{
    uint64_t block = 0;
    BsstSlot slots[BSST_WORD_BLOCKS], slot;
    unsigned i, n;

    for (i = 0; indirect_map_next(p->map, block, &block, &slot); i++) {
        g_assert_cmpuint(i, <, p->shadow->len);
        g_assert_cmpuint(block, ==, entry_at(p, i)->block);
        g_assert_cmpuint(slot, ==, entry_at(p, i)->slot);
        block++;
    }
    g_assert_cmpuint(i, ==, p->shadow->len);

    for (i = 0, block = 0; (n = indirect_map_next_slots(p->map, &block, slots));
         i += n) {
        g_assert_cmpuint(i + n, <=, p->shadow->len);
        for (unsigned k = 0; k < n; k++) {
            g_assert_cmpuint(slots[k], ==, entry_at(p, i + k)->slot);
        }
        g_assert_cmpuint(block, >, entry_at(p, i + n - 1)->block);
    }
    g_assert_cmpuint(i, ==, p->shadow->len);

    for (block = 0; block <= LAST_BLOCK;) {
        block += check_extent(p, block, LAST_BLOCK + 1 - block);
    }
}

static void pair_insert(Pair *p, uint64_t block, BsstSlot slot)
{
    unsigned i = shadow_find(p, block);
    BsstSlot old = indirect_map_insert(p->map, block, slot);

    if (i < p->shadow->len && entry_at(p, i)->block == block) {
        g_assert_cmpuint(old, ==, entry_at(p, i)->slot);
        entry_at(p, i)->slot = slot;
    } else {
        Entry entry = { .block = block, .slot = slot };

        g_assert_cmpuint(old, ==, BSST_SLOT_NONE);
        g_array_insert_val(p->shadow, i, entry);
    }
}

/* What slots are if they follow each other as the blocks do */
static BsstSlot slot_in_row(uint64_t block)
{
    return block % (1U << 31);
}

/* One slot for @n blocks, if none of them is in the map */
static void pair_fill(Pair *p, uint64_t block, BsstSlot slot, unsigned n)
{
    unsigned i = shadow_find(p, block);

    if (i < p->shadow->len && entry_at(p, i)->block - block < n) {
        return;
    }
    indirect_map_fill(p->map, block, n, slot);
    for (unsigned k = 0; k < n; k++) {
        Entry entry = { .block = block + k, .slot = slot };

        g_array_insert_val(p->shadow, i + k, entry);
        check_lookup(p, block + k);
    }
}

/*
 * The same as @n times pair_insert(), on a map that is compared afterwards.
 * The slots are in no order, in a row as the blocks are, or the same.
 */
static void pair_insert_run(Pair *p, uint64_t block, BsstSlot slot, unsigned n)
{
    g_autofree BsstSlot *slots = g_new(BsstSlot, n);
    g_autofree BsstSlot *old = g_new(BsstSlot, n);
    unsigned k, replaced, seen = 0;

    for (k = 0; k < n; k++) {
        slots[k] = slot % 4 == 0 ? slot ^ k : slot % 4 == 1 ? slot
                                 : slot_in_row(block + k) + slot % 8 / 4;
    }
    replaced = indirect_map_insert_run(p->map, block, slots, n, old);
    for (k = 0; k < n; k++) {
        unsigned i = shadow_find(p, block + k);

        if (i < p->shadow->len && entry_at(p, i)->block == block + k) {
            g_assert_cmpuint(old[k], ==, entry_at(p, i)->slot);
            seen++;
            entry_at(p, i)->slot = slots[k];
        } else {
            Entry entry = { .block = block + k, .slot = slots[k] };

            g_assert_cmpuint(old[k], ==, BSST_SLOT_NONE);
            g_array_insert_val(p->shadow, i, entry);
        }
        check_lookup(p, block + k);
    }
    g_assert_cmpuint(replaced, ==, seen);
}

static void pair_remove(Pair *p, uint64_t block)
{
    unsigned i = shadow_find(p, block);
    BsstSlot old = indirect_map_remove(p->map, block);

    if (i < p->shadow->len && entry_at(p, i)->block == block) {
        g_assert_cmpuint(old, ==, entry_at(p, i)->slot);
        g_array_remove_index(p->shadow, i);
    } else {
        g_assert_cmpuint(old, ==, BSST_SLOT_NONE);
    }
}

/* The same as @n times pair_remove() */
static void pair_remove_run(Pair *p, uint64_t block, unsigned n)
{
    g_autofree BsstSlot *old = g_new(BsstSlot, n);
    unsigned removed;

    removed = indirect_map_remove_run(p->map, block, n, old);
    for (unsigned k = 0; k < n; k++) {
        unsigned i = shadow_find(p, block + k);

        if (i < p->shadow->len && entry_at(p, i)->block == block + k) {
            g_assert_cmpuint(old[k], ==, entry_at(p, i)->slot);
            g_array_remove_index(p->shadow, i);
            removed--;
        } else {
            g_assert_cmpuint(old[k], ==, BSST_SLOT_NONE);
        }
        check_lookup(p, block + k);
    }
    g_assert_cmpuint(removed, ==, 0);
}

/* Some of 64 blocks in one go: new slots, removals; both may change nothing */
static void pair_set_word(Pair *p, GRand *rand, uint64_t block)
{
    uint64_t mask = (uint64_t)g_rand_int(rand) << 32 | g_rand_int(rand);
    BsstSlot slot[BSST_WORD_BLOCKS];
    unsigned removed = g_rand_int(rand) % 4;
    bool in_a_row = g_rand_boolean(rand);

    block &= ~63ULL;
    if (g_rand_int(rand) % 4 == 0) {
        mask = ~0ULL >> g_rand_int(rand) % 64;
    }
    for (unsigned k = 0; k < BSST_WORD_BLOCKS; k++) {
        bool remove = removed == 3 || g_rand_int(rand) % 4 < removed;

        slot[k] = remove ? BSST_SLOT_NONE : in_a_row ? slot_in_row(block + k)
                                          : g_rand_int(rand) >> 1;
    }
    indirect_map_set_word(p->map, block, mask, slot);
    for (unsigned k = 0; k < BSST_WORD_BLOCKS; k++) {
        Entry entry = { .block = block + k, .slot = slot[k] };
        unsigned i = shadow_find(p, block + k);

        if (!(mask >> k & 1)) {
            continue;
        }
        if (i < p->shadow->len && entry_at(p, i)->block == block + k) {
            g_array_remove_index(p->shadow, i);
        }
        if (slot[k] != BSST_SLOT_NONE) {
            g_array_insert_val(p->shadow, i, entry);
        }
    }
}

static void pair_remove_all(Pair *p)
{
    while (p->shadow->len) {
        pair_remove(p, entry_at(p, p->shadow->len / 2)->block);
    }
    check_all(p);
    g_assert_cmpuint(indirect_map_bytes(p->map), ==, p->empty_bytes);
}

/* A block in one of a few neighbourhoods, on both sides of node borders */
static uint64_t random_block(GRand *rand)
{
    uint64_t offset = g_rand_int_range(rand, 0, 300);
    uint64_t base = g_rand_boolean(rand)
                    ? 0 : 1ULL << g_rand_int_range(rand, 5, 52);

    if (g_rand_int_range(rand, 0, 8) == 0) {
        offset += (uint64_t)g_rand_int(rand) << g_rand_int_range(rand, 0, 15);
    }
    return base < 150 ? offset : MIN(base - 150 + offset, LAST_BLOCK);
}

static void random_operation(Pair *p, GRand *rand, bool growing)
{
    uint64_t block = random_block(rand);
    uint64_t n = g_rand_int_range(rand, 0, 4) ? 1
                 : g_rand_int_range(rand, 1, 200);
    bool insert = g_rand_int_range(rand, 0, 4) != (growing ? 0 : 1);
    uint64_t max = 1 + ((uint64_t)g_rand_int(rand) >>
                        g_rand_int_range(rand, 0, 32));
    uint64_t i;

    if (!growing && g_rand_boolean(rand)) {
        insert = false;
    }
    n = MIN(n, LAST_BLOCK - block + 1);
    if (g_rand_int(rand) % 4 == 0) {
        pair_set_word(p, rand, block);
        check_around(p, block & ~63ULL, max);
        check_around(p, block | 63, max);
        n = 0;
    } else if (g_rand_boolean(rand)) {
        if (insert && g_rand_boolean(rand)) {
            pair_fill(p, block, g_rand_int(rand) >> 1, n);
        } else if (insert) {
            pair_insert_run(p, block, g_rand_int(rand) >> 1, n);
        } else {
            pair_remove_run(p, block, n);
        }
        check_around(p, block + n - 1, max);
        n = 0;
    }
    for (i = 0; i < n; i++) {
        if (insert) {
            pair_insert(p, block + i, g_rand_boolean(rand)
                                      ? slot_in_row(block + i)
                                      : g_rand_int(rand) & ~1u);
        } else {
            pair_remove(p, block + i);
        }
        check_around(p, block + i, max);
    }
    check_extent(p, block, max);
    check_around(p, random_block(rand), max);
}

static void test_random(void)
{
    GRand *rand = g_rand_new_with_seed(seed);
    Pair p;
    int round, i;

    pair_init(&p);
    for (round = 0; round < 16; round++) {
        for (i = 0; i < 200; i++) {
            random_operation(&p, rand, round % 4 < 2);
            if (i % 20 == 0) {
                check_all(&p);
            }
        }
        if (round % 8 == 7) {
            pair_remove_all(&p);
        }
    }
    pair_cleanup(&p);
    g_rand_free(rand);
}

static void test_empty(void)
{
    Pair p;

    pair_init(&p);
    check_all(&p);
    check_around(&p, 0, 1);
    check_around(&p, LAST_BLOCK, UINT64_MAX);
    pair_remove(&p, 0);
    pair_remove(&p, LAST_BLOCK);
    pair_cleanup(&p);
    indirect_map_free(NULL);
}

/* The first and the last block, alone and together, in either order */
static void test_edges(void)
{
    Pair p;
    int last_first;

    pair_init(&p);
    for (last_first = 0; last_first < 2; last_first++) {
        pair_insert(&p, last_first ? LAST_BLOCK : 0, 0);
        check_around(&p, 0, UINT64_MAX);
        check_around(&p, LAST_BLOCK, UINT64_MAX);
        pair_insert(&p, last_first ? 0 : LAST_BLOCK, BSST_SLOT_NONE - 1);
        check_all(&p);
        pair_remove(&p, last_first ? LAST_BLOCK : 0);
        check_all(&p);
        pair_remove_all(&p);
    }
    pair_cleanup(&p);
}

/* Entries survive each growth of the tree; when it is empty it is low again. */
static void test_height(void)
{
    size_t low_bytes;
    Pair p;
    int bit;

    pair_init(&p);
    pair_insert(&p, 0, 1000);
    low_bytes = indirect_map_bytes(p.map);
    for (bit = 0; bit < 51; bit++) {
        check_around(&p, 1ULL << bit, UINT64_MAX);
        pair_insert(&p, 1ULL << bit, bit);
        check_around(&p, 1ULL << bit, UINT64_MAX);
        check_all(&p);
    }
    while (bit-- > 0) {
        pair_remove(&p, 1ULL << bit);
        check_all(&p);
    }
    pair_remove_all(&p);
    pair_insert(&p, 0, 1000);
    g_assert_cmpuint(indirect_map_bytes(p.map), ==, low_bytes);
    pair_cleanup(&p);
}

/* A dense run, then a hole at every place in a node */
static void test_dense(void)
{
    const uint64_t start = 4096 - 70, n = 64 * 5;
    uint64_t i;
    Pair p;

    pair_init(&p);
    for (i = 0; i < n; i++) {
        pair_insert(&p, start + (i * 7) % n, i);
    }
    for (i = 0; i < n; i++) {
        pair_remove(&p, start + i);
        check_all(&p);
        check_around(&p, start, 100);
        pair_insert(&p, start + i, i);
        pair_insert(&p, start + i, i + 1);
        check_extent(&p, start + i, n);
        g_assert_cmpuint(check_extent(&p, start, UINT64_MAX), ==, n);
    }
    pair_remove_all(&p);
    pair_cleanup(&p);
}

/* What the head of indirect-map.c promises */
static void test_bytes(void)
{
    IndirectMap *map = indirect_map_new();
    size_t empty_bytes = indirect_map_bytes(map);
    const uint64_t n = 1 << 18;
    uint64_t i;

    for (i = 0; i < n; i++) {
        indirect_map_insert(map, i, i);
    }
    g_assert_cmpuint(indirect_map_bytes(map), <, n * 2 / 3);
    for (i = 0; i < n; i += 2) {
        indirect_map_remove(map, i);
    }
    g_assert_cmpuint(indirect_map_bytes(map), <, n * 2 / 3);
    for (i = 1; i < n; i += 2) {
        indirect_map_insert(map, i, i / 2);
    }
    g_assert_cmpuint(indirect_map_bytes(map), <, n / 2 * 11 / 2);
    for (i = 0; i < n; i++) {
        indirect_map_insert(map, i, i ^ 1);
    }
    g_assert_cmpuint(indirect_map_bytes(map), <, n * 47 / 10);
    for (i = 0; i < n; i++) {
        indirect_map_remove(map, i);
    }
    g_assert_cmpuint(indirect_map_bytes(map), ==, empty_bytes);

    for (i = 0; i < n; i++) {
        indirect_map_insert(map, i * 64, i);
    }
    g_assert_cmpuint(indirect_map_bytes(map), <, n * 41);
    indirect_map_free(map);
}

static void shuffle(GRand *rand, uint64_t *blocks, uint64_t n)
{
    uint64_t i, j, tmp;

    for (i = n - 1; i > 0; i--) {
        j = g_rand_int(rand) % (i + 1);
        tmp = blocks[i];
        blocks[i] = blocks[j];
        blocks[j] = tmp;
    }
}

/* Shuffles @blocks. */
static void perf_one(const char *name, GRand *rand, uint64_t *blocks,
                     uint64_t n)
{
    IndirectMap *map = indirect_map_new();
    GTimer *timer = g_timer_new();
    double insert_ns, lookup_ns, next_ns;
    uint64_t i, found = 0, entries;
    BsstSlot slot, sum = 0;

    for (i = 0; i < n; i++) {
        indirect_map_insert(map, blocks[i], i);
    }
    insert_ns = g_timer_elapsed(timer, NULL) * 1e9 / n;
    entries = indirect_map_count(map);

    shuffle(rand, blocks, n);
    g_timer_start(timer);
    for (i = 0; i < n; i++) {
        sum += indirect_map_lookup(map, blocks[i]);
    }
    lookup_ns = g_timer_elapsed(timer, NULL) * 1e9 / n;

    g_timer_start(timer);
    while (indirect_map_next(map, found, &found, &slot)) {
        sum += slot;
        found++;
    }
    next_ns = g_timer_elapsed(timer, NULL) * 1e9 / entries;

    g_test_message("%s: %" PRIu64 " entries (check %u), %.2f bytes/entry, "
                   "insert %.0f ns, random lookup %.0f ns, next %.0f ns", name,
                   entries, sum, (double)indirect_map_bytes(map) / entries,
                   insert_ns, lookup_ns, next_ns);
    g_timer_destroy(timer);
    indirect_map_free(map);
}

static void test_perf(void)
{
    const uint64_t n = 1000000, disk_blocks = 1 << 28;  /* of 1 TiB */
    GRand *rand = g_rand_new_with_seed(seed);
    g_autofree uint64_t *blocks = g_new(uint64_t, n);
    uint64_t i;

    for (i = 0; i < n; i++) {
        blocks[i] = i;
    }
    perf_one("dense", rand, blocks, n);
    for (i = 0; i < n; i++) {
        blocks[i] = i % 8 ? blocks[i - 1] + 1 : g_rand_int(rand) % disk_blocks;
    }
    perf_one("runs of 8 on 1 TiB", rand, blocks, n);
    for (i = 0; i < n; i++) {
        blocks[i] = g_rand_int(rand) % (disk_blocks / 16);
    }
    perf_one("random on 64 GiB", rand, blocks, n);
    for (i = 0; i < n; i++) {
        blocks[i] = g_rand_int(rand) % disk_blocks;
    }
    perf_one("random on 1 TiB", rand, blocks, n);
    g_rand_free(rand);
}

int main(int argc, char **argv)
{
    g_test_init(&argc, &argv, NULL);
    seed = bsst_test_seed();

    g_test_add_func("/indirect-map/empty", test_empty);
    g_test_add_func("/indirect-map/edges", test_edges);
    g_test_add_func("/indirect-map/height", test_height);
    g_test_add_func("/indirect-map/dense", test_dense);
    g_test_add_func("/indirect-map/bytes", test_bytes);
    g_test_add_func("/indirect-map/random", test_random);
    if (g_test_perf()) {
        g_test_add_func("/indirect-map/perf", test_perf);
    }
    return g_test_run();
}
