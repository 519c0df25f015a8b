/*
 * Life table: counts tick by tick, rates, and what it foretells
 *
 * BSST_TEST_SEED=N repeats a run.
 *
 * This work is licensed under the terms of the GNU GPL, version 2 or later.
 * See the COPYING file in the top-level directory.
 */

#include "qemu/osdep.h"
#include <math.h>
#include "bsst/defrag-life.h"
#include "bsst-seed.h"

#define HORIZON DEFRAG_TICKS(10000000000LL)

static uint32_t seed;

/* The bins, as the header tells it. */
static unsigned naive_bin(int64_t age)
{
    unsigned bin = 0;

    while (bin < DEFRAG_BINS - 1 && age >= 16 << bin) {
        bin++;
    }
    return bin;
}

static void test_bins(void)
{
    for (int64_t age = 0; age < 3 * DEFRAG_OLD_AGE; age++) {
        g_assert_cmpuint(defrag_life_bin(age), ==, naive_bin(age));
    }
    for (unsigned bin = 0; bin < DEFRAG_BINS; bin++) {
        int64_t start = defrag_life_bin_start(bin);

        g_assert_cmpuint(naive_bin(start), ==, bin);
        g_assert_true(!bin || naive_bin(start - 1) == bin - 1);
    }
    g_assert_cmpint(defrag_life_bin_start(DEFRAG_BINS - 1), ==,
                    DEFRAG_OLD_AGE);
}

/* What counts there are after any events, and H from the rates. */
static void test_counts(void)
{
    GRand *rand = g_rand_new_with_seed(seed);
    double deaths[DEFRAG_BINS] = { }, exposure[DEFRAG_BINS] = { };
    double passed[DEFRAG_BINS] = { };
    DefragLife life;
    double sum = 0;

    defrag_life_init(&life);
    for (unsigned i = 0; i < 300; i++) {
        int64_t from = g_rand_int_range(rand, 0, 1 << g_rand_int_range(rand, 1,
                                                                       16));
        int64_t to = from + g_rand_int_range(rand, -5, 3000);
        unsigned n = g_rand_int_range(rand, 0, 300);

        defrag_life_expose(&life, from, to, n);
        for (int64_t age = from; age < to; age++) {
            exposure[naive_bin(age)] += n;
            if (naive_bin(age + 1) > naive_bin(age)) {
                passed[naive_bin(age)] += n;
            }
        }
        if (g_rand_boolean(rand)) {
            defrag_life_die(&life, from);
            deaths[naive_bin(from)]++;
        }
    }
    for (unsigned j = 0; j < DEFRAG_BINS; j++) {
        g_assert_cmpfloat(life.deaths[j], ==, deaths[j]);
        g_assert_cmpfloat(life.exposure[j], ==, exposure[j]);
        g_assert_cmpfloat(life.passed[j], ==, passed[j]);
    }

    defrag_life_update(&life);
    for (int64_t age = 0; age < 2 * DEFRAG_OLD_AGE; age++) {
        if (age % 97 == 0) {
            g_assert_cmpfloat_with_epsilon(defrag_life_hazard(&life, age), sum,
                                           0.000001);
        }
        sum += life.rate[naive_bin(age)];
    }

    defrag_life_halve(&life);
    for (unsigned j = 0; j < DEFRAG_BINS; j++) {
        g_assert_cmpfloat(life.deaths[j], ==, deaths[j] / 2);
        g_assert_cmpfloat(life.exposure[j], ==, exposure[j] / 2);
        g_assert_cmpfloat(life.passed[j], ==, passed[j] / 2);
    }
    g_rand_free(rand);
}

/* Entries whose life has a given distribution: the rates find it out. */
static void test_rates(void)
{
    GRand *rand = g_rand_new_with_seed(seed);
    const double per_tick = 1.0 / 300;          /* a mean life of 5 s */
    DefragLife life;

    defrag_life_init(&life);
    for (unsigned i = 0; i < 100000; i++) {
        int64_t age = 0;

        while (age < 2000 && g_rand_double(rand) >= per_tick) {
            age += 1;
        }
        defrag_life_expose(&life, 0, age, 1);
        if (age < 2000) {               /* else it was lost from sight */
            defrag_life_die(&life, age);
        }
    }
    defrag_life_update(&life);
    for (unsigned j = 0; j < 7; j++) {
        g_assert_cmpfloat_with_epsilon(life.rate[j], per_tick, per_tick / 10);
        g_assert_true(life.known[j]);
    }
    g_assert_cmpfloat_with_epsilon(defrag_life_hazard(&life, 600), 2, 0.1);
    /* nobody has been there */
    g_assert_false(life.known[10]);
    g_rand_free(rand);
}

/* As the definition says it: ripe where the hazard to come is at most 3 %. */
static unsigned naive_ripe(const DefragLife *life, double factor)
{
    unsigned ripe = 1u << (DEFRAG_BINS - 1);

    for (unsigned j = 0; j < DEFRAG_BINS - 1; j++) {
        int64_t start = j ? 8 << j : 0;
        double sum = 0;

        for (int64_t age = start; age < start + HORIZON; age++) {
            unsigned bin = naive_bin(age);

            sum += life->rate[bin] *
                   (life->known[bin] || factor > 1 ? factor : 1);
        }
        ripe |= (sum <= 0.03) << j;
    }
    return ripe;
}

static void test_ripe(void)
{
    GRand *rand = g_rand_new_with_seed(seed);

    for (unsigned round = 0; round < 300; round++) {
        double factor = g_rand_double_range(rand, 0, round % 2 ? 3 : 0.05);
        double mean = exp2(g_rand_double_range(rand, 2, 24));
        DefragLife life;

        defrag_life_init(&life);
        for (unsigned i = 0; i < 2000; i++) {
            int64_t age = -log(1 - g_rand_double(rand)) * mean;
            int64_t seen = g_rand_int_range(rand, 0, 20000);

            defrag_life_expose(&life, 0, MIN(age, seen), 1);
            if (age <= seen) {
                defrag_life_die(&life, age);
            }
        }
        defrag_life_update(&life);
        g_assert_cmphex(defrag_life_ripe(&life, factor, HORIZON), ==,
                        naive_ripe(&life, factor));
    }
    g_rand_free(rand);
}

/* With nothing known, two minutes have to pass: calm regions or not. */
static void test_nothing_known(void)
{
    DefragLife life;
    unsigned ripe;

    defrag_life_init(&life);
    ripe = defrag_life_ripe(&life, 1, HORIZON);
    g_assert_cmphex(defrag_life_ripe(&life, 0.001, HORIZON), ==, ripe);
    g_assert_false(ripe >> defrag_life_bin(100 * DEFRAG_SECOND) & 1);
    g_assert_true(ripe >> defrag_life_bin(150 * DEFRAG_SECOND) & 1);
    g_assert_true(ripe >> (DEFRAG_BINS - 1) & 1);

    /* A crowd that has not reached the end of a bin proves nothing */
    defrag_life_expose(&life, 0, 30 * DEFRAG_SECOND, 100000);
    defrag_life_update(&life);
    ripe = defrag_life_ripe(&life, 0.001, HORIZON);
    g_assert_false(ripe >> defrag_life_bin(30 * DEFRAG_SECOND) & 1);
    /* When it has, it does */
    defrag_life_expose(&life, 0, 36 * DEFRAG_SECOND, 100000);
    defrag_life_update(&life);
    ripe = defrag_life_ripe(&life, 0.001, HORIZON);
    g_assert_true(ripe >> defrag_life_bin(20 * DEFRAG_SECOND) & 1);
    g_assert_false(ripe >> defrag_life_bin(36 * DEFRAG_SECOND) & 1);
}

/* Some have to pass a bin, or to die in it, before its rate is believed. */
static void test_enough(void)
{
    for (unsigned n = 1; n < 100; n++) {
        DefragLife life;

        defrag_life_init(&life);
        defrag_life_expose(&life, 0, 16, n);
        for (unsigned i = 0; i < n; i++) {
            defrag_life_die(&life, 20);
        }
        defrag_life_update(&life);
        g_assert_cmpint(life.known[0], ==, n >= 32);
        g_assert_cmpint(life.known[1], ==, n >= 32);
        g_assert_false(life.known[2]);
    }
}

/* A calm region counts at ages that others have reached, and only there. */
static void test_calm(void)
{
    DefragLife life;
    unsigned bin = defrag_life_bin(2 * DEFRAG_SECOND), ripe;

    /* Of 1000, 200 die at 8 s */
    defrag_life_init(&life);
    defrag_life_expose(&life, 0, 8 * DEFRAG_SECOND, 200);
    for (unsigned i = 0; i < 200; i++) {
        defrag_life_die(&life, 8 * DEFRAG_SECOND);
    }
    defrag_life_expose(&life, 0, 18 * DEFRAG_SECOND, 800);
    defrag_life_update(&life);
    g_assert_false(defrag_life_ripe(&life, 1, HORIZON) >> bin & 1);
    ripe = defrag_life_ripe(&life, 0.05, HORIZON);
    g_assert_true(ripe >> bin & 1);

    /* Where deaths are common, the last bin is ripe all the same */
    ripe = defrag_life_ripe(&life, 1000, HORIZON);
    g_assert_cmphex(ripe, ==, 1u << (DEFRAG_BINS - 1));
}

int main(int argc, char **argv)
{
    g_test_init(&argc, &argv, NULL);
    seed = bsst_test_seed();

    g_test_add_func("/defrag-life/bins", test_bins);
    g_test_add_func("/defrag-life/counts", test_counts);
    g_test_add_func("/defrag-life/rates", test_rates);
    g_test_add_func("/defrag-life/ripe", test_ripe);
    g_test_add_func("/defrag-life/nothing-known", test_nothing_known);
    g_test_add_func("/defrag-life/enough", test_enough);
    g_test_add_func("/defrag-life/calm", test_calm);
    return g_test_run();
}
