/*
 * Latency histogram: bins, percentiles, and their promised precision
 *
 * This work is licensed under the terms of the GNU GPL, version 2 or later.
 * See the COPYING file in the top-level directory.
 */

#include "qemu/osdep.h"
#include "bsst/latency.h"

static void test_empty(void)
{
    BsstLatency lat = { };
    g_autoptr(BsstLatencyInfo) info = bsst_latency_info(&lat);

    g_assert_cmpuint(info->count, ==, 0);
    g_assert_cmpuint(info->avg_ns, ==, 0);
    g_assert_cmpuint(info->p999_ns, ==, 0);
    g_assert_cmpuint(info->max_ns, ==, 0);
    g_assert_null(info->bins);
}

/* The value 1000 times and a longer one: return the median, a bin's bound. */
static uint64_t median_of(uint64_t ns)
{
    BsstLatency lat = { };
    g_autoptr(BsstLatencyInfo) info = NULL;
    int i;

    for (i = 0; i < 1000; i++) {
        bsst_latency_add(&lat, ns);
    }
    bsst_latency_add(&lat, 4 * ns + 256);
    info = bsst_latency_info(&lat);
    g_assert_cmpuint(info->count, ==, 1001);
    g_assert_cmpuint(info->bins->value->count, ==, 1000);
    g_assert_cmpuint(info->bins->next->value->count, ==, 1);
    g_assert_null(info->bins->next->next);
    g_assert_cmpuint(info->p50_ns, ==, info->bins->value->upto_ns);
    g_assert_cmpuint(info->p99_ns, ==, info->p50_ns);
    g_assert_cmpuint(info->max_ns, ==, 4 * ns + 256);
    return info->p50_ns;
}

static void test_precision(void)
{
    uint64_t ns, upto_ns;

    g_assert_cmpuint(median_of(0), ==, 63);
    g_assert_cmpuint(median_of(63), ==, 63);
    g_assert_cmpuint(median_of(64), ==, 67);
    g_assert_cmpuint(median_of(67), ==, 67);
    g_assert_cmpuint(median_of(68), ==, 71);
    for (ns = 64; ns < 40000000000ULL; ns += 1 + ns / 9) {
        upto_ns = median_of(ns);
        g_assert_cmpuint(ns, <=, upto_ns);
        g_assert_cmpuint(upto_ns - ns, <=, upto_ns / 17);
        g_assert_cmpuint(median_of(upto_ns), ==, upto_ns);
        g_assert_cmpuint(median_of(upto_ns + 1), >, upto_ns);
    }
}

static void test_percentiles(void)
{
    BsstLatency lat = { };
    g_autoptr(BsstLatencyInfo) info = NULL;
    int i;

    for (i = 0; i < 1000; i++) {
        bsst_latency_add(&lat, i < 500 ? 100 : i < 990 ? 1000
                               : i < 999 ? 10000 : 100000);
    }
    info = bsst_latency_info(&lat);
    g_assert_cmpuint(info->p50_ns, ==, 103);
    g_assert_cmpuint(info->p99_ns, ==, 1023);
    g_assert_cmpuint(info->p999_ns, ==, 10239);
    g_assert_cmpuint(info->max_ns, ==, 100000);
    g_assert_cmpuint(info->avg_ns, ==, (500 * 100 + 490 * 1000 + 9 * 10000 +
                                        100000) / 1000);
}

/* What is longer than the last bin's begin is told by the maximum. */
static void test_longest(void)
{
    BsstLatency lat = { };
    g_autoptr(BsstLatencyInfo) info = NULL;

    bsst_latency_add(&lat, 1ULL << 50);
    info = bsst_latency_info(&lat);
    g_assert_cmpuint(info->bins->value->upto_ns, ==, UINT64_MAX);
    g_assert_cmpuint(info->p50_ns, ==, 1ULL << 50);
    g_assert_cmpuint(info->max_ns, ==, 1ULL << 50);
}

static gpointer add_many(gpointer lat)
{
    int i;

    for (i = 1; i <= 100000; i++) {
        bsst_latency_add(lat, i);
    }
    return NULL;
}

static void test_threads(void)
{
    BsstLatency lat = { };
    g_autoptr(BsstLatencyInfo) info = NULL;
    GThread *thread[4];
    int i;

    for (i = 0; i < G_N_ELEMENTS(thread); i++) {
        thread[i] = g_thread_new("adder", add_many, &lat);
    }
    for (i = 0; i < G_N_ELEMENTS(thread); i++) {
        g_thread_join(thread[i]);
    }
    info = bsst_latency_info(&lat);
    g_assert_cmpuint(info->count, ==, 400000);
    g_assert_cmpuint(info->avg_ns, ==, 50000);
    g_assert_cmpuint(info->max_ns, ==, 100000);
}

int main(int argc, char **argv)
{
    g_test_init(&argc, &argv, NULL);
    g_test_add_func("/bsst-latency/empty", test_empty);
    g_test_add_func("/bsst-latency/precision", test_precision);
    g_test_add_func("/bsst-latency/percentiles", test_percentiles);
    g_test_add_func("/bsst-latency/longest", test_longest);
    g_test_add_func("/bsst-latency/threads", test_threads);
    return g_test_run();
}
