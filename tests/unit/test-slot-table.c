/*
 * Slot table: random operations against plain arrays, and edge cases
 *
 * BSST_TEST_SEED=N repeats a run; "-m perf" adds measurements.
 *
 * This work is licensed under the terms of the GNU GPL, version 2 or later.
 * See the COPYING file in the top-level directory.
 */

#include "qemu/osdep.h"
#include "bsst/slot-table.h"
#include "bsst-seed.h"

typedef struct Cell {
    uint32_t refs;
    bool backed;
    bool punching;
    uint64_t checksum;
} Cell;

/* The table under test and its shadow */
typedef struct Pair {
    SlotTable *table;
    uint32_t nslots;
    uint32_t cursor;
    Cell *cell;
} Pair;

static uint32_t seed;

static void pair_init(Pair *p, uint32_t nslots)
{
    p->table = slot_table_new(nslots);
    p->nslots = nslots;
    p->cursor = 0;
    p->cell = g_new0(Cell, nslots);
}

static void pair_cleanup(Pair *p)
{
    slot_table_free(p->table);
    g_free(p->cell);
}

static bool cell_free(const Pair *p, uint32_t i)
{
    return !p->cell[i].refs && !p->cell[i].punching;
}

static bool cell_punchable(const Pair *p, uint32_t i)
{
    return cell_free(p, i) && p->cell[i].backed;
}

static uint32_t shadow_run(const Pair *p, uint32_t i,
                           bool (*is)(const Pair *, uint32_t))
{
    uint32_t n = 0;

    while (i + n < p->nslots && is(p, i + n)) {
        n++;
    }
    return n;
}

static void check_all(const Pair *p)
{
    uint32_t i, nfree = 0, nbacked = 0;

    for (i = 0; i < p->nslots; i++) {
        g_assert_cmpuint(slot_table_refs(p->table, i), ==, p->cell[i].refs);
        if (p->cell[i].refs) {
            g_assert_cmpuint(slot_table_checksum(p->table, i), ==,
                             p->cell[i].checksum);
        }
        nfree += cell_free(p, i);
        nbacked += p->cell[i].backed;
    }
    g_assert_cmpuint(slot_table_nfree(p->table), ==, nfree);
    g_assert_cmpuint(slot_table_nbacked(p->table), ==, nbacked);
    g_assert_cmpuint(slot_table_size(p->table), ==, p->nslots);
}

/* Where the contract of slot_table_alloc() wants the next run of @want */
static uint32_t expect_alloc(const Pair *p, uint32_t want, uint32_t *first)
{
    uint32_t i, longest = 0;

    for (i = 0; i < p->nslots; i++) {
        longest = MAX(longest, shadow_run(p, i, cell_free));
        if (longest >= want) {
            longest = want;
            break;
        }
    }
    for (i = p->cursor; longest && i < p->nslots; i++) {
        if (shadow_run(p, i, cell_free) >= longest) {
            *first = i;
            return longest;
        }
    }
    for (i = 0; longest && i < p->nslots; i++) {
        if (shadow_run(p, i, cell_free) >= longest) {
            *first = i;
            return longest;
        }
    }
    return 0;
}

static uint32_t pair_alloc(Pair *p, uint32_t want, uint64_t checksum)
{
    uint32_t first = 0, expected_first = 0, i;
    uint32_t expected = expect_alloc(p, want, &expected_first);
    uint32_t n = slot_table_alloc(p->table, want, &first);

    g_assert_cmpuint(n, ==, expected);
    g_assert_cmpuint(first, ==, expected_first);
    for (i = first; i < first + n; i++) {
        g_assert_true(cell_free(p, i));
        g_assert_cmpuint(slot_table_refs(p->table, i), ==, 1);
        slot_table_set_checksum(p->table, i, checksum + i);
        p->cell[i].refs = 1;
        p->cell[i].backed = true;
        p->cell[i].checksum = checksum + i;
    }
    if (n) {
        p->cursor = first + n;
    }
    return n;
}

/* Where slot_table_alloc_low() has to go: the first place that does */
static uint32_t expect_alloc_low(const Pair *p, uint32_t want, uint32_t min,
                                 uint32_t limit, uint32_t *first)
{
    uint32_t i, n, least;

    limit = MIN(limit, p->nslots);
    for (least = want; ; least = min) {
        for (i = 0; i < limit; i++) {
            n = MIN(shadow_run(p, i, cell_free), limit - i);
            if (n >= least) {
                *first = i;
                return MIN(n, want);
            }
        }
        if (least == min) {
            return 0;
        }
    }
}

static void pair_alloc_low(Pair *p, uint32_t want, uint32_t min,
                           uint32_t limit, uint64_t checksum)
{
    uint32_t first = 0, expected_first = 0, i;
    uint32_t expected = expect_alloc_low(p, want, min, limit, &expected_first);
    uint32_t n = slot_table_alloc_low(p->table, want, min, limit, &first);

    g_assert_cmpuint(n, ==, expected);
    g_assert_cmpuint(first, ==, expected_first);
    for (i = first; i < first + n; i++) {
        g_assert_true(cell_free(p, i));
        slot_table_set_checksum(p->table, i, checksum + i);
        p->cell[i].refs = 1;
        p->cell[i].backed = true;
        p->cell[i].checksum = checksum + i;
    }
}

static void pair_unref(Pair *p, uint32_t i)
{
    bool last = slot_table_unref(p->table, i);

    p->cell[i].refs--;
    g_assert_cmpint(last, ==, !p->cell[i].refs);
}

static void pair_punch_begin(Pair *p, uint32_t pos, uint32_t min, uint32_t max)
{
    uint32_t first = 0, i, n = 0, after = pos;

    for (i = pos; i < p->nslots; i += MAX(1, n)) {
        n = 0;
        if (cell_punchable(p, i)) {
            n = MIN(max, shadow_run(p, i, cell_free));
            while (!p->cell[i + n - 1].backed) {
                n--;
            }
        }
        if (n >= min) {
            break;
        }
    }
    if (i >= p->nslots) {
        g_assert_cmpuint(slot_table_punch_begin(p->table, &after, min, max,
                                                &first), ==, 0);
        g_assert_cmpuint(after, ==, p->nslots);
        return;
    }
    g_assert_cmpuint(slot_table_punch_begin(p->table, &after, min, max,
                                            &first), ==, n);
    g_assert_cmpuint(first, ==, i);
    g_assert_cmpuint(after, ==, i + n);
    for (i = first; i < first + n; i++) {
        p->cell[i].punching = true;
    }
}

/* End the punching of some of the slots at or after @pos. */
static void pair_punch_end(Pair *p, uint32_t pos, uint32_t max, bool punched)
{
    uint32_t i = pos, n = 0;

    while (i < p->nslots && !p->cell[i].punching) {
        i++;
    }
    while (i + n < p->nslots && n < max && p->cell[i + n].punching) {
        p->cell[i + n].punching = false;
        p->cell[i + n].backed &= !punched;
        n++;
    }
    if (n) {
        slot_table_punch_end(p->table, i, n, punched);
    }
}

static void random_operation(Pair *p, GRand *rand, bool filling)
{
    uint32_t i = g_rand_int(rand) % p->nslots;
    uint32_t n = g_rand_int_range(rand, 0, 8)
                 ? g_rand_int_range(rand, 1, 16)
                 : g_rand_int_range(rand, 1, 2 * p->nslots + 1);
    int dice = g_rand_int_range(rand, 0, 10);

    if (dice < (filling ? 5 : 1)) {
        if (g_rand_boolean(rand)) {
            pair_alloc(p, n, g_rand_int(rand) * 0x100000001ULL);
        } else {
            pair_alloc_low(p, n, 1 + g_rand_int(rand) % n, i + n,
                           g_rand_int(rand) * 0x100000001ULL);
        }
    } else if (dice < 8) {
        for (; n && i < p->nslots; i++, n--) {
            if (p->cell[i].refs && g_rand_int_range(rand, 0, 4)) {
                pair_unref(p, i);
            }
        }
    } else if (dice == 8) {
        g_autofree BsstSlot *list = g_new(BsstSlot, n);
        uint32_t len = 0;

        for (; n && i < p->nslots; i += g_rand_boolean(rand), n--) {
            if (p->cell[i].refs) {
                list[len++] = i;
                p->cell[i].refs++;
            }
        }
        slot_table_ref_list(p->table, list, len);
    } else if (g_rand_boolean(rand)) {
        pair_punch_begin(p, i, 1 + g_rand_int(rand) % MIN(n, 8), MAX(8, n));
    } else {
        pair_punch_end(p, i, n, g_rand_boolean(rand));
    }
}

static void test_random(void)
{
    const uint32_t sizes[] = { 1, 2, 63, 64, 65, 128, 200, 513, 2000 };
    GRand *rand = g_rand_new_with_seed(seed);
    uint32_t i, op, nops;
    Pair p;

    for (i = 0; i < G_N_ELEMENTS(sizes); i++) {
        pair_init(&p, sizes[i]);
        nops = MIN(20000, 8000000 / sizes[i]);
        for (op = 0; op < nops; op++) {
            random_operation(&p, rand, op / 100 % 2 == 0);
            check_all(&p);
        }
        pair_cleanup(&p);
    }
    g_rand_free(rand);
}

/* Runs follow one another; after the end the search starts again at 0. */
static void test_next_fit(void)
{
    Pair p;
    uint32_t i;

    pair_init(&p, 300);
    for (i = 0; i < 3; i++) {
        g_assert_cmpuint(pair_alloc(&p, 80, 0), ==, 80);
        g_assert_cmpuint(p.cursor, ==, 80 * (i + 1));
    }
    pair_unref(&p, 5);                      /* behind the cursor */
    g_assert_cmpuint(pair_alloc(&p, 1, 0), ==, 1);
    g_assert_cmpuint(p.cursor, ==, 241);
    for (i = 100; i < 170; i++) {
        pair_unref(&p, i);
    }
    g_assert_cmpuint(pair_alloc(&p, 65, 0), ==, 65);    /* wraps */
    g_assert_cmpuint(p.cursor, ==, 165);
    g_assert_cmpuint(pair_alloc(&p, 100, 0), ==, 59);   /* the longest */
    g_assert_cmpuint(p.cursor, ==, 300);
    g_assert_cmpuint(pair_alloc(&p, 100, 0), ==, 5);
    check_all(&p);
    pair_cleanup(&p);
}

/* A run that begins before the cursor and goes on behind it is one run. */
static void test_run_across_cursor(void)
{
    Pair p;
    uint32_t i;

    pair_init(&p, 256);
    pair_alloc(&p, 128, 0);
    for (i = 64; i < 128; i++) {
        pair_unref(&p, i);
    }
    g_assert_cmpuint(pair_alloc(&p, 192, 0), ==, 192);
    g_assert_cmpuint(slot_table_nfree(p.table), ==, 0);
    check_all(&p);
    pair_cleanup(&p);
}

static void test_full(void)
{
    const uint32_t nslots = 1000;
    Pair p;
    uint32_t i;

    pair_init(&p, nslots);
    g_assert_cmpuint(pair_alloc(&p, UINT32_MAX, 7), ==, nslots);
    g_assert_cmpuint(pair_alloc(&p, 1, 0), ==, 0);
    g_assert_cmpuint(slot_table_nfree(p.table), ==, 0);
    for (i = 0; i < nslots; i++) {
        pair_unref(&p, i);
        g_assert_cmpuint(pair_alloc(&p, 1 + i, i), ==, 1);
        g_assert_cmpuint(pair_alloc(&p, 1, i), ==, 0);
    }
    check_all(&p);
    pair_cleanup(&p);
}

static void test_refs(void)
{
    Pair p;
    int i;

    pair_init(&p, 70);
    pair_alloc(&p, 70, 0);
    for (i = 0; i < 5; i++) {
        slot_table_ref(p.table, 69);
        p.cell[69].refs++;
    }
    for (i = 0; i < 5; i++) {
        pair_unref(&p, 69);
        g_assert_cmpuint(pair_alloc(&p, 1, 0), ==, 0);
    }
    pair_unref(&p, 69);
    g_assert_cmpuint(pair_alloc(&p, 1, 0), ==, 1);
    check_all(&p);
    pair_cleanup(&p);
}

/* A slot that is being punched cannot be allocated; then it is not backed. */
static void test_punch(void)
{
    Pair p;
    uint32_t i;

    pair_init(&p, 128);
    pair_punch_begin(&p, 0, 1, 128);                    /* nothing is backed */
    pair_alloc(&p, 128, 0);
    pair_punch_begin(&p, 0, 1, 128);                    /* nothing is free */
    for (i = 60; i < 70; i++) {
        pair_unref(&p, i);
    }
    pair_punch_begin(&p, 0, 11, 128);                   /* too short */
    pair_punch_begin(&p, 0, 10, 128);
    g_assert_true(p.cell[60].punching && p.cell[69].punching);
    g_assert_cmpuint(slot_table_nfree(p.table), ==, 0);
    g_assert_cmpuint(pair_alloc(&p, 1, 0), ==, 0);
    g_assert_cmpuint(slot_table_nbacked(p.table), ==, 128);

    pair_punch_end(&p, 60, 4, true);
    pair_punch_end(&p, 64, 6, false);
    g_assert_cmpuint(slot_table_nbacked(p.table), ==, 124);
    g_assert_cmpuint(slot_table_nfree(p.table), ==, 10);
    pair_punch_begin(&p, 60, 6, 6);                     /* 64 to 69 again */
    g_assert_true(p.cell[64].punching && p.cell[69].punching);
    pair_punch_end(&p, 64, 2, false);
    pair_punch_end(&p, 66, 2, true);
    pair_punch_end(&p, 68, 2, false);
    pair_punch_begin(&p, 60, 6, 128);                   /* over a gap */
    g_assert_true(p.cell[64].punching && p.cell[69].punching);
    pair_punch_begin(&p, 128, 1, 1);
    pair_punch_end(&p, 0, 128, true);
    g_assert_cmpuint(pair_alloc(&p, 10, 0), ==, 10);
    g_assert_cmpuint(slot_table_nbacked(p.table), ==, 128);
    check_all(&p);
    pair_cleanup(&p);
}

/* A table that was restored is as one that came there by itself. */
static void test_restore(void)
{
    const uint32_t sizes[] = { 1, 63, 64, 65, 128, 513, 2000 };
    GRand *rand = g_rand_new_with_seed(seed);
    uint64_t sum[2000];
    BsstSlot slot[100];
    uint32_t i, k, n;
    Pair p;

    for (i = 0; i < 4 * G_N_ELEMENTS(sizes); i++) {
        bool backed = i % 2;

        pair_init(&p, sizes[i / 4]);
        for (k = g_rand_int(rand) % 20; k > 0; k--) {
            uint32_t count = g_rand_int(rand) % (ARRAY_SIZE(slot) + 1);

            for (n = 0; n < count; n++) {
                slot[n] = g_rand_int(rand) % p.nslots;
                p.cell[slot[n]].refs++;
            }
            slot_table_restore_refs(p.table, slot, n);
        }
        slot_table_restore_done(p.table, backed);
        for (k = 0; k < p.nslots; k++) {
            sum[k] = g_rand_int(rand);
            p.cell[k].checksum = p.cell[k].refs ? sum[k] : 0;
        }
        n = g_rand_int(rand) % p.nslots;
        slot_table_restore_checksums(p.table, 0, n, sum);
        slot_table_restore_checksums(p.table, n, p.nslots - n, sum + n);
        for (k = 0; k < p.nslots; k++) {
            p.cell[k].backed = backed || p.cell[k].refs;
        }
        check_all(&p);
        for (k = 0; k < 200; k++) {
            random_operation(&p, rand, k / 20 % 2 == 0);
            check_all(&p);
        }
        pair_cleanup(&p);
    }
    g_rand_free(rand);
}

/* 256 GiB: memory is bounded, and no operation walks the table. */
static void test_large(void)
{
    const uint32_t nslots = 1u << 26;
    SlotTable *t = slot_table_new(nslots);
    BsstSlot first;
    uint32_t i;

    g_assert_cmpuint(slot_table_bytes(t), <, 16ull * nslots);
    for (i = 0; i < 10000; i++) {
        g_assert_cmpuint(slot_table_alloc(t, 100, &first), ==, 100);
        g_assert_cmpuint(first, ==, i * 100);
    }
    g_assert_true(slot_table_unref(t, 4711));
    g_assert_cmpuint(slot_table_nfree(t), ==, nslots - 999999);
    slot_table_free(t);
    slot_table_free(NULL);
}

/* Our own invariants are asserts: each of these must die. */
static void fatal_unref_free(void)
{
    slot_table_unref(slot_table_new(10), 3);
}

static void fatal_ref_free(void)
{
    slot_table_ref(slot_table_new(10), 3);
}

static void fatal_ref_list_free(void)
{
    SlotTable *t = slot_table_new(10);
    BsstSlot list[2];

    slot_table_alloc(t, 1, &list[0]);
    list[1] = list[0] + 1;
    slot_table_ref_list(t, list, 2);
}

static void fatal_out_of_range(void)
{
    slot_table_refs(slot_table_new(10), 10);
}

static void fatal_checksum_free(void)
{
    slot_table_set_checksum(slot_table_new(10), 3, 1);
}

static void fatal_restore_late(void)
{
    SlotTable *t = slot_table_new(10);
    BsstSlot first;

    slot_table_alloc(t, 1, &first);
    slot_table_restore_done(t, false);
}

static void fatal_punch_end_free(void)
{
    slot_table_punch_end(slot_table_new(10), 0, 1, true);
}

static void fatal_punch_end_in_use(void)
{
    SlotTable *t = slot_table_new(10);
    BsstSlot first;

    slot_table_alloc(t, 1, &first);
    slot_table_punch_end(t, first, 1, true);
}

static void test_asserts(gconstpointer fatal)
{
    if (g_test_subprocess()) {
        ((void (*)(void))fatal)();
        return;
    }
    g_test_trap_subprocess(NULL, 0, 0);
    g_test_trap_assert_failed();
    g_test_trap_assert_stderr("*Assertion*");
}

static void test_perf_restore(void)
{
    const uint32_t nslots = 10000000;
    SlotTable *t = slot_table_new(nslots);
    GTimer *timer = g_timer_new();
    uint32_t i;

    for (i = 0; i < nslots; i += 3) {
        slot_table_restore_refs(t, &i, 1);
    }
    g_test_message("restore of %u slots: references %.1f ms", nslots,
                   g_timer_elapsed(timer, NULL) * 1e3);
    g_timer_start(timer);
    slot_table_restore_done(t, true);
    g_test_message("done: %.1f ms", g_timer_elapsed(timer, NULL) * 1e3);
    g_timer_destroy(timer);
    slot_table_free(t);
}

static void test_perf(void)
{
    const uint32_t nslots = 1u << 26, rounds = 1000000;
    SlotTable *t = slot_table_new(nslots);
    GRand *rand = g_rand_new_with_seed(seed);
    GTimer *timer = g_timer_new();
    BsstSlot slot;
    uint32_t i, n, got = 0;

    for (i = 0; i < nslots; i += n) {
        n = slot_table_alloc(t, 64, &slot);
    }
    g_test_message("fill by 64: %.1f ns a slot, %.2f bytes a slot",
                   g_timer_elapsed(timer, NULL) * 1e9 / nslots,
                   (double)slot_table_bytes(t) / nslots);

    for (i = 0; i < nslots / 128; i++) {
        slot = g_rand_int(rand) % nslots;
        if (slot_table_refs(t, slot)) {
            slot_table_unref(t, slot);
        }
    }
    g_timer_start(timer);
    for (i = 0; i < rounds; i++) {
        slot = g_rand_int(rand) % nslots;
        if (slot_table_refs(t, slot)) {
            slot_table_unref(t, slot);
            got += slot_table_alloc(t, 8, &slot);
        }
    }
    g_test_message("nearly full and fragmented: unref + alloc of 8 (got %.2f) "
                   "%.0f ns", (double)got / rounds,
                   g_timer_elapsed(timer, NULL) * 1e9 / rounds);
    g_timer_destroy(timer);
    g_rand_free(rand);
    slot_table_free(t);
}

int main(int argc, char **argv)
{
    g_test_init(&argc, &argv, NULL);
    seed = bsst_test_seed();

    g_test_add_func("/slot-table/next-fit", test_next_fit);
    g_test_add_func("/slot-table/run-across-cursor", test_run_across_cursor);
    g_test_add_func("/slot-table/full", test_full);
    g_test_add_func("/slot-table/refs", test_refs);
    g_test_add_func("/slot-table/punch", test_punch);
    g_test_add_func("/slot-table/restore", test_restore);
    g_test_add_func("/slot-table/large", test_large);
    g_test_add_func("/slot-table/random", test_random);
    g_test_add_data_func("/slot-table/asserts/unref-free",
                         fatal_unref_free, test_asserts);
    g_test_add_data_func("/slot-table/asserts/ref-free",
                         fatal_ref_free, test_asserts);
    g_test_add_data_func("/slot-table/asserts/ref-list-free",
                         fatal_ref_list_free, test_asserts);
    g_test_add_data_func("/slot-table/asserts/out-of-range",
                         fatal_out_of_range, test_asserts);
    g_test_add_data_func("/slot-table/asserts/checksum-free",
                         fatal_checksum_free, test_asserts);
    g_test_add_data_func("/slot-table/asserts/restore-late",
                         fatal_restore_late, test_asserts);
    g_test_add_data_func("/slot-table/asserts/punch-end-free",
                         fatal_punch_end_free, test_asserts);
    g_test_add_data_func("/slot-table/asserts/punch-end-in-use",
                         fatal_punch_end_in_use, test_asserts);
    if (g_test_perf()) {
        g_test_add_func("/slot-table/perf", test_perf);
        g_test_add_func("/slot-table/perf-restore", test_perf_restore);
    }
    return g_test_run();
}
