/*
 * The defragmentation planner against what real guests have done
 *
 * demo.history       make demo: a guest that pages to a disk of 1 GiB
 * small-swap.history the same with a swap disk of 224 MiB, which is so full
 *                    that its blocks are used again at once
 *
 * Both have one MiB of the disk in twelve.
 *
 * This work is licensed under the terms of the GNU GPL, version 2 or later.
 * See the COPYING file in the top-level directory.
 */

#include "qemu/osdep.h"
#include "replay.h"

#define SECOND_NS 1000000000LL

/* A disk without seeks: whatever the rule wants moved is moved at once. */
static const ReplayOptions quick = { .run_ns = 200000, .block_ns = 10000 };

static void run_rule(const GArray *events, ReplayRule rule, int64_t age_ns,
                     ReplayResult *res)
{
    ReplayOptions options = quick;

    options.rule = rule;
    options.age_ns = age_ns;
    replay(events, &options, res);
    g_test_message("rule %d, %g s: %" PRIu64 " moved in %" PRIu64 " runs, %.1f "
                   "%% in vain, %.0f in the store in the mean, %" PRIu64
                   " at the end", rule, age_ns / 1e9, res->moved, res->runs,
                   res->judged ? 100.0 * res->wasted_10s / res->judged : 0,
                   res->mean, res->left);

    /* Everything is accounted for, and the planner's own books agree */
    g_assert_cmpuint(res->indirected, ==, res->overwritten + res->discarded +
                                          res->moved + res->left);
    g_assert_cmpuint(res->plan.indirected, ==, res->indirected);
    g_assert_cmpuint(res->plan.overwritten, ==, res->overwritten);
    g_assert_cmpuint(res->plan.discarded, ==, res->discarded);
    g_assert_cmpuint(res->plan.moved, ==, res->moved);
    /* ... but for its ticks of 17 ms */
    g_assert_cmpfloat(res->plan.wasted_10s, >=, 0.95 * res->wasted - 5);
    g_assert_cmpfloat(res->plan.wasted_10s, <=, 1.05 * res->wasted + 5);
}

static GArray *load(const char *name)
{
    g_autofree char *path = g_build_filename(HISTORY_DIR, name, NULL);
    g_autoptr(GError) error = NULL;
    GArray *events = history_load(path, &error);

    g_assert_no_error(error);
    return events;
}

/* In the demo hardly anything is moved in vain, and hardly anything is left. */
static void test_demo(void)
{
    GArray *events = load("demo.history");
    ReplayResult plan, never;

    run_rule(events, REPLAY_NEVER, 0, &never);
    run_rule(events, REPLAY_PLAN, 0, &plan);
    g_assert_cmpuint(never.moved, ==, 0);
    g_assert_cmpuint(20 * plan.wasted_10s, <, plan.judged);
    g_assert_cmpuint(20 * plan.left, <, never.left);
    g_assert_cmpfloat(4 * plan.mean, <, never.mean);
    g_assert_cmpuint(3 * plan.split_reads, <, never.split_reads);
    g_array_unref(events);
}

/* Who does not look moves a third in vain: at once, or after any time. */
static void test_small_swap(void)
{
    GArray *events = load("small-swap.history");
    ReplayResult plan, naive;

    for (unsigned age_s = 0; age_s < 20; age_s += 5) {
        run_rule(events, REPLAY_AGE, age_s * SECOND_NS, &naive);
        g_assert_cmpuint(4 * naive.wasted_10s, >, naive.judged);
    }
    run_rule(events, REPLAY_FORCE, 0, &naive);
    g_assert_cmpuint(4 * naive.wasted_10s, >, naive.judged);
    g_assert_cmpuint(naive.left, ==, 0);

    run_rule(events, REPLAY_PLAN, 0, &plan);
    g_assert_cmpuint(plan.moved, >, 0);
    g_assert_cmpuint(20 * plan.wasted_10s, <, plan.judged);
    g_assert_cmpuint(100 * plan.wasted_10s, <, naive.wasted_10s);
    g_assert_cmpuint(10 * plan.plan.spared, >, 9 * plan.overwritten);
    g_array_unref(events);
}

/* The books: a history of a few lines, gone through by hand */
static void test_books(void)
{
    /* The clock of the mover starts at 0, and each run takes it 1 s */
    const ReplayOptions options = { .rule = REPLAY_FORCE,
                                    .run_ns = SECOND_NS };
    g_autoptr(GError) error = NULL;
    GArray *events = history_parse("# comment\n"
                                   "100 i 10 4\n"    /*  0.1 s */
                                   "100 r 10 4\n"    /* one piece */
                                   "0 r 8 4\n"       /* split */
                                   "500 w 12 1\n"    /* 0.7: moved at 0.1? */
                                   "4300 i 10 1\n"   /* 5.0: in vain */
                                   "0 i 100 2\n"
                                   "100 d 100 1\n"   /* 5.1 */
                                   "14900 w 11 1\n", /* 20: late enough */
                                   &error);
    ReplayResult res;

    g_assert_no_error(error);
    g_assert_cmpuint(events->len, ==, 8);
    replay(events, &options, &res);
    g_assert_cmpfloat(res.seconds, ==, 20);
    g_assert_cmpuint(res.indirected, ==, 7);
    g_assert_cmpuint(res.moved, ==, 6);
    g_assert_cmpuint(res.judged, ==, 6);
    g_assert_cmpuint(res.runs, ==, 3);
    g_assert_cmpuint(res.wasted, ==, 2);
    g_assert_cmpuint(res.wasted_1s, ==, 1);
    g_assert_cmpuint(res.wasted_10s, ==, 2);
    g_assert_cmpuint(res.discarded, ==, 1);
    g_assert_cmpuint(res.left, ==, 0);
    g_assert_cmpuint(res.peak, ==, 4);
    g_array_unref(events);
}

static void test_parse(void)
{
    const char *bad[] = {
        "1 i 5", "1 x 5 1", "-1 i 5 1", "1 i 5 0", "1 i 5 1 1", "i 5 1",
        "1 i 99999999999 1", "1 i 5 99999999999", "99999999999 i 5 1",
        "1 i 16777215 2", " ",
    };
    GArray *events;

    for (unsigned i = 0; i < ARRAY_SIZE(bad); i++) {
        g_autofree char *text = g_strdup_printf("0 i 5 1\n%s\n", bad[i]);
        g_autoptr(GError) error = NULL;

        g_assert_null(history_parse(text, &error));
        g_assert_nonnull(error);
        g_assert_nonnull(strstr(error->message, "line 2"));
    }
    events = history_parse("", NULL);
    g_assert_cmpuint(events->len, ==, 0);
    g_array_unref(events);
    g_assert_null(history_load("/nonexistent", NULL));
}

int main(int argc, char **argv)
{
    g_test_init(&argc, &argv, NULL);
    g_test_add_func("/defrag-sim/parse", test_parse);
    g_test_add_func("/defrag-sim/books", test_books);
    g_test_add_func("/defrag-sim/demo", test_demo);
    g_test_add_func("/defrag-sim/small-swap", test_small_swap);
    return g_test_run();
}
