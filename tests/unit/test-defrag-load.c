/*
 * How much defragmentation the foreground can bear: a disk with one arm is
 * simulated, and what is promised is measured
 *
 * BSST_TEST_SEED=N repeats a run.
 *
 * This work is licensed under the terms of the GNU GPL, version 2 or later.
 * See the COPYING file in the top-level directory.
 */

#include "qemu/osdep.h"
#include "bsst/defrag-load.h"
#include "bsst-seed.h"

#define US      INT64_C(1000)
#define MS      INT64_C(1000000)
#define SECOND  INT64_C(1000000000)

#define REQUESTS    100000

static uint32_t seed;

/* A closed loop of one request, and slices whenever they may be */
typedef struct Sim {
    DefragLoad load;
    GRand *rand;
    int64_t now;
    int64_t slice_end;          /* 0: none in flight */
    int64_t think_ns;           /* between two requests, on average */
    int64_t service_ns;         /* of an undisturbed request, at most twice */
    double penalty;             /* times the service time if disturbed */
    bool with;                  /* slices at all */

    uint64_t requests, disturbed, slices;
    GArray *latency;
} Sim;

static void sim_init(Sim *s, double penalty, int64_t think_ns)
{
    *s = (Sim) {
        .rand = g_rand_new_with_seed(seed),
        .now = SECOND,
        .think_ns = think_ns,
        .service_ns = 200 * US,
        .penalty = penalty,
        .with = true,
        .latency = g_array_new(false, false, sizeof(int64_t)),
    };
    defrag_load_init(&s->load, s->now);
}

static void sim_cleanup(Sim *s)
{
    g_rand_free(s->rand);
    g_array_unref(s->latency);
}

/* Time passes; the slice in flight ends, others begin. */
static void sim_advance(Sim *s, int64_t to)
{
    int64_t wait_ns;

    for (;;) {
        if (s->slice_end && s->slice_end <= to) {
            defrag_load_slice_end(&s->load, s->slice_end);
            s->now = MAX(s->now, s->slice_end);
            s->slice_end = 0;
        }
        if (s->slice_end || !s->with ||
            !defrag_load_may_slice(&s->load, s->now, &wait_ns)) {
            if (s->slice_end || !s->with || s->now + wait_ns > to) {
                break;
            }
            g_assert_cmpint(wait_ns, >, 0);
            s->now += wait_ns;
            continue;
        }
        s->slice_end = s->now + 2 * US *
                       defrag_load_slice_begin(&s->load, s->now);
        s->slices++;
    }
    s->now = MAX(s->now, to);
}

static int64_t sim_random(Sim *s, int64_t mean)
{
    return mean ? g_rand_double(s->rand) * 2 * mean : 0;
}

static void sim_request(Sim *s)
{
    DefragLoadReq req;
    int64_t start, ns = s->service_ns + sim_random(s, s->service_ns / 2);
    bool stop, disturbed;

    sim_advance(s, s->now + sim_random(s, s->think_ns));
    start = s->now;
    stop = defrag_load_begin(&s->load, &req, s->now);
    if (stop) {
        s->slice_end = MIN(s->slice_end, s->now + 10 * US);
    }
    if (s->slice_end) {
        ns *= s->penalty;
    }
    sim_advance(s, s->now + ns);
    disturbed = defrag_load_end(&s->load, &req, true, s->now);
    ns = s->now - start;
    g_array_append_val(s->latency, ns);
    s->requests++;
    s->disturbed += disturbed;
}

static int compare(gconstpointer a, gconstpointer b)
{
    int64_t x = *(const int64_t *)a, y = *(const int64_t *)b;

    return (x > y) - (x < y);
}

static int64_t sim_p99(Sim *s)
{
    g_array_sort(s->latency, compare);
    return g_array_index(s->latency, int64_t, s->latency->len * 99 / 100);
}

static int64_t run(double penalty, int64_t think_ns, bool with, unsigned n,
                   Sim *s)
{
    unsigned i;

    sim_init(s, penalty, think_ns);
    s->with = with;
    for (i = 0; i < n; i++) {
        sim_request(s);
    }
    return sim_p99(s);
}

/* However much a slice hurts, few requests are hurt. */
static void test_percentile(void)
{
    static const double penalty[] = { 1, 1.03, 1.2, 2, 10, 100 };
    static const int64_t think[] = { 0, 100 * US, 2 * MS };
    unsigned i, k;

    for (i = 0; i < G_N_ELEMENTS(penalty); i++) {
        for (k = 0; k < G_N_ELEMENTS(think); k++) {
            Sim with, without;
            int64_t a = run(penalty[i], think[k], false, REQUESTS,
                            &without);
            int64_t b = run(penalty[i], think[k], true, REQUESTS, &with);

            g_test_message("penalty %g, think %" PRId64 " us: p99 %" PRId64
                           " -> %" PRId64 " us, %" PRIu64 " of %" PRIu64
                           " disturbed, %" PRIu64 " slices, share %g",
                           penalty[i], think[k] / US, a / US, b / US,
                           with.disturbed, with.requests, with.slices,
                           with.load.share);
            g_assert_cmpfloat(b, <=, 1.15 * a);
            g_assert_cmpint(with.slices, >, 0);
            sim_cleanup(&with);
            sim_cleanup(&without);
        }
    }
}

/* Where slices do no harm they become the rule; where they do, they do not. */
static void test_share(void)
{
    Sim s;

    /* It takes some looks, and a look may err */
    run(1, 0, true, 10 * REQUESTS, &s);
    g_assert_cmpfloat(s.load.share, >, 0.01);
    sim_cleanup(&s);
    run(3, 0, true, REQUESTS, &s);
    g_assert_cmpfloat(s.load.share, <, 0.01);
    /* In the long run what is disturbed has been earned */
    g_assert_cmpfloat(s.disturbed, <, 0.01 * s.requests);
    sim_cleanup(&s);
}

/* Nobody is there: slices follow each other, and grow. */
static void test_idle(void)
{
    int64_t wait_ns, now = SECOND;
    DefragLoadReq req;
    DefragLoad l;
    unsigned i, n = 0, blocks = 0;

    defrag_load_init(&l, now);
    g_assert_false(defrag_load_is_idle(&l, now));
    defrag_load_begin(&l, &req, now);
    g_assert_false(defrag_load_may_slice(&l, now, &wait_ns));
    defrag_load_end(&l, &req, true, now + MS);
    l.tokens = -5;
    g_assert_false(defrag_load_may_slice(&l, now + 400 * MS, &wait_ns));
    now += 600 * MS;
    g_assert_true(defrag_load_may_slice(&l, now, &wait_ns));
    for (i = 0; i < 1000 && now < 3 * SECOND; i++) {
        g_assert_true(defrag_load_may_slice(&l, now, &wait_ns));
        blocks = defrag_load_slice_begin(&l, now);
        n += blocks;
        now += 20 * US * blocks;
        defrag_load_slice_end(&l, now);
    }
    g_assert_true(defrag_load_is_idle(&l, now));
    g_assert_cmpuint(blocks, >, 256);
    g_assert_cmpuint(blocks * 20, <=, 2 * 250000);
    g_assert_cmpuint(n, >, 50000);

    /* Somebody comes: it has to stop, and becomes small again. */
    blocks = defrag_load_slice_begin(&l, now);
    g_assert_true(defrag_load_begin(&l, &req, now));
    now += MS;
    defrag_load_slice_end(&l, now);
    g_assert_cmpuint(l.blocks, <, blocks);
    g_assert_false(defrag_load_may_slice(&l, now, &wait_ns));
    g_assert_true(defrag_load_end(&l, &req, true, now));
    g_assert_false(defrag_load_may_slice(&l, now + 100 * MS, &wait_ns));
    g_assert_true(defrag_load_may_slice(&l, now + 600 * MS, &wait_ns));
}

/* A slice that began and ended while a request was in flight disturbs it. */
static void test_disturbed(void)
{
    int64_t now = SECOND;
    DefragLoadReq a, b;
    DefragLoad l;

    defrag_load_init(&l, now);
    l.tokens = 10;
    defrag_load_begin(&l, &a, now);
    defrag_load_slice_begin(&l, now + 1);
    g_assert_cmpfloat(l.tokens, ==, 9);
    defrag_load_slice_end(&l, now + 2);
    defrag_load_begin(&l, &b, now + 3);
    g_assert_true(defrag_load_end(&l, &a, true, now + 4));
    g_assert_false(defrag_load_end(&l, &b, true, now + 5));
    g_assert_cmpuint(l.alone.n, ==, 1);
    g_assert_cmpuint(l.disturbed.n, ==, 1);
    /* Failed requests tell nothing of the disk */
    defrag_load_begin(&l, &b, now + 6);
    defrag_load_end(&l, &b, false, now + 7);
    g_assert_cmpuint(l.alone.n, ==, 1);
}

int main(int argc, char **argv)
{
    g_test_init(&argc, &argv, NULL);
    seed = bsst_test_seed();
    g_test_add_func("/defrag-load/percentile", test_percentile);
    g_test_add_func("/defrag-load/share", test_share);
    g_test_add_func("/defrag-load/idle", test_idle);
    g_test_add_func("/defrag-load/disturbed", test_disturbed);
    return g_test_run();
}
