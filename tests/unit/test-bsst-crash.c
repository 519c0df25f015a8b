/*
 * Crash enumeration for the journal of the block-swap store
 *
 * A random history of writes, evictions, flushes, errors, crashes runs in a
 * small world (crash-world.h).  Whenever something has changed that a crash
 * may leave behind, states after a crash are built: all of them if they are
 * few, else a random choice.  Each is recovered and compared with the model.
 *
 * A history that fails is shrunk, and printed with its seed.
 *
 *   BSST_TEST_SEED=N       seed of the first history
 *   BSST_CRASH_STATES=N    how many states to try
 *
 * This work is licensed under the terms of the GNU GPL, version 2 or later.
 * See the COPYING file in the top-level directory.
 */

#include "qemu/osdep.h"
#include "crash-world.h"
#include "qapi/error.h"
#include "qemu/main-loop.h"

#define DEFAULT_STATES      60000
/* Each seeded bug must be found within this CPU time */
#define BITE_SECONDS        60
#define SHRINK_SECONDS      20
/* States to try at one point, at most */
#define POINT_STATES        8
#define BITE_STATES         2
#define SHRINK_STATES       400

typedef struct History {
    uint32_t seed;
    Params params;
    GArray *ops;                /* of Op */
} History;

/* What has been tried */
typedef struct Tally {
    uint64_t states, commits, journal_blocks, checkpoints, errors;
    unsigned histories, lives;
} Tally;

typedef struct Run {
    World *w;
    unsigned point_states;      /* to try at each point ... */
    unsigned first_op;          /* ... from this op on */
    GRand *rand;                /* for these */
    Tally *tally;
    uint64_t version;           /* that has been looked at */
    unsigned op;
} Run;


/* The history that runs; for the message when an assertion fails */
static uint32_t current_seed;

/* States at one point */

static bool seen_before(uint64_t *seen, unsigned n, uint64_t hash)
{
    unsigned i;

    for (i = 0; i < n; i++) {
        if (seen[i] == hash) {
            return true;
        }
    }
    seen[n] = hash;
    return false;
}

static void try_state(Run *r, const Choices *c)
{
    choices_apply(c);
    world_verify(r->w);
    choices_undo(c);
    r->tally->states++;
}

static void try_states(Run *r)
{
    uint64_t count, i, seen[SHRINK_STATES];
    unsigned n = 0;
    Choices c;

    if (r->w->version == r->version || r->w->violation ||
        r->op < r->first_op) {
        return;
    }
    r->version = r->w->version;
    choices_init(&c, r->w->disks, r->w->params.nimages + 1);
    count = choices_count(&c, r->point_states + 1);
    for (i = 0; i < MIN(count, r->point_states) && !r->w->violation; i++) {
        if (count <= r->point_states) {
            choices_select(&c, i);
            try_state(r, &c);
        } else if (!seen_before(seen, n, choices_select_random(&c, r->rand))) {
            n++;
            try_state(r, &c);
        }
    }
    choices_clear(&c);
}

/* One history */

static void run_steps(Run *r, unsigned n)
{
    while (n-- && !r->w->violation && world_step(r->w)) {
        try_states(r);
    }
}

static void power_cut(Run *r)
{
    World *w = r->w;
    Choices c;
    unsigned i;

    choices_init(&c, w->disks, w->params.nimages + 1);
    choices_select_random(&c, r->rand);
    choices_apply(&c);
    choices_clear(&c);
    world_die(w);
    for (i = 0; i <= w->params.nimages; i++) {
        disk_power_cut(w->disks[i]);
    }
}

static void kill_process(Run *r)
{
    unsigned i;

    world_die(r->w);
    for (i = 0; i <= r->w->params.nimages; i++) {
        disk_kill(r->w->disks[i], r->rand);
    }
}

/* An interesting moment for a crash */
static void run_until_append(Run *r)
{
    unsigned i;

    for (i = 0; i < r->w->params.nimages; i++) {
        world_op(r->w, &(Op) { .kind = OP_FLUSH, .image = i });
    }
    for (i = 0; i < 40 && !world_appends(r->w); i++) {
        run_steps(r, 1);
    }
}

static void run_end_of_life(Run *r, OpKind kind)
{
    World *w = r->w;

    if (kind == OP_REOPEN) {
        run_steps(r, UINT_MAX);
    }
    if (kind != OP_REOPEN && g_rand_boolean(r->rand)) {
        run_until_append(r);
    }
    if (w->violation) {
        return;
    }
    if (kind == OP_POWER_CUT) {
        power_cut(r);
    } else {
        kill_process(r);
    }
    world_reopen(w, kind == OP_POWER_CUT);
    try_states(r);
    while (w->opening && !w->violation) {
        run_steps(r, 1);
    }
}

static void run_op(Run *r, const Op *op)
{
    g_rand_set_seed(r->w->rand, op->seed);
    g_rand_set_seed(r->rand, ~op->seed);
    switch (op->kind) {
    case OP_KILL:
    case OP_POWER_CUT:
    case OP_REOPEN:
        run_end_of_life(r, op->kind);
        break;
    default:
        world_op(r->w, op);
        if (op->kind == OP_ERROR) {
            /* The image has something that may fail. */
            world_op(r->w, &(Op) { .kind = OP_FLUSH, .image = op->image });
        }
        try_states(r);
        run_steps(r, op->steps);
        break;
    }
}

static void run_to_end(Run *r)
{
    run_steps(r, UINT_MAX);
    if (!r->w->violation && r->w->params.bug == BUG_NONE) {
        world_check_references(r->w);
    }
    if (r->w->journal) {
        world_die(r->w);
    }
}

/*
 * Try up to @point_states at each point from op @first_op on.
 * Returns what was wrong, or NULL, and the number of ops until then.
 */
static char *run_history(const History *h, unsigned point_states,
                         unsigned first_op, Tally *tally, unsigned *nops)
{
    Tally unused = { 0 };
    Run r = {
        .w = world_new(&h->params),
        .tally = tally ?: &unused,
        .point_states = point_states,
        .first_op = first_op,
        .rand = g_rand_new_with_seed(1),
    };
    char *violation;

    current_seed = h->seed;
    world_begin(r.w);
    for (r.op = 0; r.op < h->ops->len && !r.w->violation; r.op++) {
        run_op(&r, &g_array_index(h->ops, Op, r.op));
    }
    run_to_end(&r);
    r.tally->histories++;
    r.tally->lives += r.w->lives;
    r.tally->commits += r.w->total.commits;
    r.tally->journal_blocks += r.w->total.journal_bytes /
                               BSST_JOURNAL_BLOCK_BYTES;
    r.tally->checkpoints += r.w->total.checkpoints;
    r.tally->errors += r.w->total.errors;
    if (nops) {
        *nops = r.op;
    }
    violation = g_steal_pointer(&r.w->violation);
    g_rand_free(r.rand);
    world_free(r.w);
    current_seed = 0;
    return violation;
}

/* Random histories */

/* Of 100 ops, errors and ends of life aside */
static const unsigned op_weight[OP__MAX] = {
    [OP_WRITE] = 27,
    [OP_PARTIAL] = 4,
    [OP_DISCARD] = 3,
    [OP_DRAIN] = 1,
    [OP_MOVE_OUT] = 4,
    [OP_RELAY] = 4,
    [OP_FLUSH] = 20,
    [OP_EVICT] = 20,
    [OP_TOUCH] = 8,
    [OP_SWAP_IN] = 3,
    [OP_CHECKPOINT] = 1,
    [OP_CHECK] = 3,
    [OP_DETACH] = 1,
    [OP_FORGET] = 1,
};

/* @trouble: how often things go wrong, in percent */
static OpKind random_kind(GRand *rand, int trouble)
{
    static const OpKind troubles[] = {
        OP_ERROR, OP_ERROR, OP_ERROR, OP_ERROR, OP_KILL, OP_POWER_CUT,
        OP_POWER_CUT, OP_REOPEN,
    };
    unsigned k;
    int pick;

    if (g_rand_int_range(rand, 0, 100) < trouble) {
        return troubles[g_rand_int_range(rand, 0, ARRAY_SIZE(troubles))];
    }
    pick = g_rand_int_range(rand, 0, 100);
    for (k = 0; pick >= (int)op_weight[k]; k++) {
        pick -= op_weight[k];
    }
    return k;
}

static void history_init(History *h, uint32_t seed, Bug bug)
{
    g_autoptr(GRand) rand = g_rand_new_with_seed(seed);
    unsigned i, nops = g_rand_int_range(rand, 20, 300);
    unsigned hurry = g_rand_int_range(rand, 3, 25);
    int trouble = g_rand_int_range(rand, 0, g_rand_boolean(rand) ? 3 : 15);

    h->seed = seed;
    h->params = (Params) {
        .nimages = g_rand_int_range(rand, 1, MAX_IMAGES + 1),
        .nblocks = g_rand_int_range(rand, 4, MAX_BLOCKS / 2),
        .npages = g_rand_int_range(rand, 2, MAX_PAGES + 1),
        .nslots = g_rand_int_range(rand, 6, 48),
        .nplaces = g_rand_int_range(rand, 1, MAX_IMAGES + 2),
        .journal_blocks = g_rand_int_range(rand, 0, 3) ?
                          g_rand_int_range(rand, 3, 12) :
                          g_rand_int_range(rand, 1, 4),
        .final_flush_errors = g_rand_int_range(rand, 0, 4) == 0,
        .tight = g_rand_int_range(rand, 0, 6) == 0,
        .bug = bug,
    };
    h->ops = g_array_new(false, false, sizeof(Op));
    for (i = 0; i < nops; i++) {
        Op op = {
            .kind = random_kind(rand, trouble),
            .image = g_rand_int(rand) % MAX_IMAGES,
            .at = g_rand_int(rand) % MAX_BLOCKS,
            .n = g_rand_int(rand) % 8,
            .page = g_rand_int(rand) % MAX_PAGES,
            .steps = g_rand_int_range(rand, 0, hurry),
            .seed = g_rand_int(rand),
        };
        g_array_append_val(h->ops, op);
    }
}

static void history_clear(History *h)
{
    g_array_unref(h->ops);
}

/* A shorter history that fails with the same op, its last one */

static bool fails_without(History *h, unsigned first, unsigned n)
{
    GArray *all = h->ops;
    g_autofree char *violation = NULL;

    h->ops = g_array_sized_new(false, false, sizeof(Op), all->len);
    g_array_append_vals(h->ops, all->data, first);
    g_array_append_vals(h->ops, &g_array_index(all, Op, first + n),
                        all->len - first - n);
    violation = run_history(h, SHRINK_STATES, h->ops->len - 1, NULL, NULL);
    if (violation) {
        g_array_unref(all);
        return true;
    }
    g_array_unref(h->ops);
    h->ops = all;
    return false;
}

static void shrink(History *h)
{
    int64_t end = g_get_monotonic_time() + SHRINK_SECONDS * G_USEC_PER_SEC;
    unsigned n, i;
    bool shorter;

    do {
        shorter = false;
        for (n = MAX(h->ops->len / 2, 1); n; n /= 2) {
            for (i = 0; i + n < h->ops->len; ) {
                if (g_get_monotonic_time() > end) {
                    return;
                }
                if (fails_without(h, i, n)) {
                    shorter = true;
                } else {
                    i += n;
                }
            }
        }
    } while (shorter);
}

static void print_history(const History *h)
{
    const Params *p = &h->params;
    unsigned i;

    g_printerr("# %u images of %u blocks, %u pages, %u slots, %u places, "
               "%u journal blocks, flush errors are %sfinal\n", p->nimages,
               p->nblocks, p->npages, p->nslots, p->nplaces,
               p->journal_blocks, p->final_flush_errors ? "" : "not ");
    for (i = 0; i < h->ops->len; i++) {
        const Op *op = &g_array_index(h->ops, Op, i);

        g_printerr("# %3u %-10s image %u at %2u n %u page %2u, then %u steps\n",
                   i, op_name[op->kind], op->image % p->nimages,
                   op->at % p->nblocks, 1 + op->n, op->page % p->npages,
                   op->steps);
    }
}

static void report(History *h, unsigned nops, const char *violation)
{
    g_autofree char *again = NULL;

    g_printerr("# BSST_TEST_SEED=%u: %s\n", h->seed, violation);
    g_array_set_size(h->ops, nops);
    shrink(h);
    again = run_history(h, SHRINK_STATES, h->ops->len - 1, NULL, NULL);
    g_printerr("# shrunk to %u ops: %s\n", h->ops->len,
               again ?: "(fails at random)");
    print_history(h);
}

/* Tests */

static uint64_t env_number(const char *name, uint64_t value)
{
    const char *env = g_getenv(name);

    return env ? g_ascii_strtoull(env, NULL, 0) : value;
}

static double cpu_seconds(void)
{
    return clock() / (double)CLOCKS_PER_SEC;
}

static double seconds_since(int64_t start)
{
    return (g_get_monotonic_time() - start) / (double)G_USEC_PER_SEC;
}

static void progress(int64_t start, int64_t *last, const Tally *t,
                     uint32_t seed)
{
    if (seconds_since(*last) >= 10) {
        *last = g_get_monotonic_time();
        g_printerr("# %" PRIu64 " states in %.0f s, seed %u\n", t->states,
                   seconds_since(start), seed);
    }
}

static void test_enumerate(void)
{
    uint64_t wanted = env_number("BSST_CRASH_STATES", DEFAULT_STATES);
    uint32_t first = env_number("BSST_TEST_SEED", 1), seed = first;
    int64_t start = g_get_monotonic_time(), last = start;
    double cpu = cpu_seconds();
    unsigned nops;
    Tally t = { 0 };

    while (t.states < wanted) {
        g_autofree char *violation = NULL;
        History h;

        history_init(&h, seed++, BUG_NONE);
        violation = run_history(&h, POINT_STATES, 0, &t, &nops);
        if (violation) {
            report(&h, nops, violation);
            g_test_fail();
        }
        history_clear(&h);
        if (violation) {
            return;
        }
        progress(start, &last, &t, seed);
    }
    g_test_message("%u histories, %u lives, %" PRIu64 " commits, %" PRIu64
                   " journal blocks, %" PRIu64 " checkpoints, %" PRIu64
                   " I/O errors", t.histories, t.lives, t.commits,
                   t.journal_blocks, t.checkpoints, t.errors);
    g_test_message("%" PRIu64 " states, BSST_TEST_SEED=%u to %u, in %.1f s: "
                   "%.0f states a second of CPU time", t.states, first,
                   seed - 1, seconds_since(start),
                   t.states / (cpu_seconds() - cpu));
}

static void test_bite(gconstpointer opaque)
{
    Bug bug = GPOINTER_TO_INT(opaque);
    uint32_t seed = env_number("BSST_TEST_SEED", 1);
    double start = cpu_seconds();
    Tally t = { 0 };

    while (cpu_seconds() - start < BITE_SECONDS) {
        g_autofree char *violation = NULL;
        History h;

        history_init(&h, seed++, bug);
        violation = run_history(&h, BITE_STATES, 0, &t, NULL);
        history_clear(&h);
        if (violation) {
            g_test_message("%s: found after %.2f s, %" PRIu64 " states, %u "
                           "histories: %s", bug_name[bug],
                           cpu_seconds() - start, t.states, t.histories,
                           violation);
            return;
        }
    }
    g_test_message("%s: not found in %" PRIu64 " states", bug_name[bug],
                   t.states);
    g_test_fail();
}

/* J6: no mixture of a block and of a scrub is a block. */
static void test_scrub(void)
{
    g_autoptr(GRand) rand = g_rand_new_with_seed(env_number("BSST_TEST_SEED",
                                                            1));
    const size_t bytes = BSST_JOURNAL_BLOCK_BYTES;
    BsstRecord records[BSST_JOURNAL_RECORDS], got[BSST_JOURNAL_RECORDS];
    uint8_t block[BSST_JOURNAL_BLOCK_BYTES], mix[BSST_JOURNAL_BLOCK_BYTES];
    BsstBlockHeader h = { .sequence = 1 }, got_h;
    unsigned round, mask, i, n, got_n;
    uint64_t checksum;

    for (round = 0; round < 200; round++) {
        n = g_rand_int_range(rand, 1, BSST_JOURNAL_RECORDS + 1);
        for (i = 0; i < n; i++) {
            /* The largest numbers look most like a scrub. */
            records[i] = (BsstRecord) {
                .block = BSST_MAX_BLOCK - BSST_RECORD_MAX_BLOCKS,
                .n = BSST_RECORD_MAX_BLOCKS,
                .slot = BSST_SLOT_NONE,
            };
        }
        h.chain = g_rand_int(rand);
        bsst_block_encode(&h, records, n, block);
        for (mask = 0; mask < 1 << BLOCK_SECTORS; mask++) {
            memcpy(mix, block, bytes);
            for (i = 0; i < BLOCK_SECTORS; i++) {
                if (mask & 1 << i) {
                    memset(mix + i * SECTOR_BYTES, 0xff, SECTOR_BYTES);
                }
            }
            g_assert_cmpint(bsst_block_decode(mix, &h, 1, 1, 1, &got_h, got,
                                              &got_n, &checksum), ==,
                            mask ? BSST_BLOCK_END : BSST_BLOCK_VALID);
        }
    }
}

static void on_abort(int signal_number)
{
    char text[80];

    if (current_seed) {
        snprintf(text, sizeof(text), "# aborted in the history with "
                 "BSST_TEST_SEED=%u\n", current_seed);
        if (write(STDERR_FILENO, text, strlen(text)) < 0) {
            _exit(1);
        }
    }
}

int main(int argc, char **argv)
{
    struct sigaction action = { .sa_handler = on_abort };
    unsigned i;

    qemu_init_main_loop(&error_abort);
    sigaction(SIGABRT, &action, NULL);

    g_test_init(&argc, &argv, NULL);
    g_test_add_func("/bsst-crash/scrub", test_scrub);
    g_test_add_func("/bsst-crash/enumerate", test_enumerate);
    for (i = BUG_NONE + 1; i < BUG__MAX; i++) {
        g_autofree char *path = g_strdup_printf("/bsst-crash/bites/%s",
                                                bug_name[i]);

        g_test_add_data_func(path, GINT_TO_POINTER(i), test_bite);
    }
    return g_test_run();
}
