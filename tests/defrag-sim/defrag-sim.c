/*
 * defrag-sim: what would defragmentation have moved, and how much in vain?
 *
 * Usage: defrag-sim HISTORY...
 *
 * Replays each recorded history (replay.h) by several rules and prints a table.
 *
 * This work is licensed under the terms of the GNU GPL, version 2 or later.
 * See the COPYING file in the top-level directory.
 */

#include "qemu/osdep.h"
#include "replay.h"

typedef struct Rule {
    const char *name;
    ReplayRule rule;
    double age_s;
} Rule;

static const Rule rules[] = {
    { "nothing", REPLAY_NEVER },
    { "all at once", REPLAY_FORCE },
    { "all after 1 s", REPLAY_AGE, 1 },
    { "all after 5 s", REPLAY_AGE, 5 },
    { "all after 15 s", REPLAY_AGE, 15 },
    { "planner", REPLAY_PLAN },
};

static double percent(uint64_t part, uint64_t whole)
{
    return whole ? 100.0 * part / whole : 0;
}

static void print_rule(const GArray *events, const Rule *rule)
{
    /* As on a disk with 150 MB/s, where each run costs two seeks */
    const ReplayOptions options = {
        .rule = rule->rule,
        .age_ns = rule->age_s * 1e9,
        .run_ns = 200000,
        .block_ns = 10000,
    };
    ReplayResult res;

    replay(events, &options, &res);
    printf("%-15s %8" PRIu64 " %7.1f %6.1f %6.1f %8" PRIu64 " %8.0f %8" PRIu64
           " %6.1f\n", rule->name, res.moved,
           res.runs ? (double)res.moved / res.runs : 0,
           percent(res.wasted_1s, res.judged),
           percent(res.wasted_10s, res.judged), res.left, res.mean, res.peak,
           percent(res.split_reads, res.reads));
}

static void print_history(const char *path, const GArray *events)
{
    const ReplayOptions options = { .rule = REPLAY_NEVER };
    ReplayResult res;

    replay(events, &options, &res);
    printf("%s: %.0f s; %" PRIu64 " blocks indirected, of which %.1f %% were "
           "overwritten and %.1f %% discarded\n\n", path, res.seconds,
           res.indirected, percent(res.overwritten, res.indirected),
           percent(res.discarded, res.indirected));
    printf("%-15s %8s %7s %6s %6s %8s %8s %8s %6s\n", "", "moved", "blocks",
           "in", "vain %", "left", "mean", "peak", "reads");
    printf("%-15s %8s %7s %6s %6s %8s %8s %8s %6s\n", "rule", "blocks",
           "a run", "1 s", "10 s", "at end", "in store", "in store",
           "split%");
    for (unsigned i = 0; i < ARRAY_SIZE(rules); i++) {
        print_rule(events, &rules[i]);
    }
    printf("\n");
}

int main(int argc, char **argv)
{
    if (argc < 2) {
        fprintf(stderr, "usage: defrag-sim HISTORY...\n");
        return 2;
    }
    for (int i = 1; i < argc; i++) {
        g_autoptr(GError) error = NULL;
        GArray *events = history_load(argv[i], &error);

        if (!events) {
            fprintf(stderr, "defrag-sim: %s: %s\n", argv[i], error->message);
            return 1;
        }
        print_history(argv[i], events);
        g_array_unref(events);
    }
    return 0;
}
