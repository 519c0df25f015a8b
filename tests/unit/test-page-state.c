/*
 * Page states: every transition against an independent table
 *
 * The table below was written from the diagram in the header, not from the
 * code: one row an operation, with the states it may start from.  Whatever it
 * does not list must assert, which each such pair shows in a child process.
 *
 * BSST_TEST_SEED=N repeats a run.
 *
 * This work is licensed under the terms of the GNU GPL, version 2 or later.
 * See the COPYING file in the top-level directory.
 */

#include "qemu/osdep.h"
#include <fcntl.h>
#include <sys/wait.h>
#include "bsst/page-state.h"
#include "bsst-seed.h"

#define NPAGES      64
#define STEPS       200000

#define BIT_OF(s)   (1u << PAGE_##s)
#define ABSENT      (BIT_OF(VICTIM) | BIT_OF(WRITING) | BIT_OF(SWAPPED) | \
                     BIT_OF(LOADING) | BIT_OF(ZERO))
#define FLAGS       (PAGE_FLAG_FAULTED | PAGE_FLAG_INTERCEPTED | \
                     PAGE_FLAG_RESTORING)
#define ALL_FLAGS   (FLAGS | PAGE_FLAG_BOUND)
#define OF_BOUND    (PAGE_FLAG_BOUND | PAGE_FLAG_INTERCEPTED | \
                     PAGE_FLAG_RESTORING)
#define POLICY_BITS 0xffffff00u

typedef enum RefRule {
    REF_NONE,       /* the page has no slot or frame afterwards */
    REF_KEPT,
    REF_GIVEN,      /* by the caller */
} RefRule;

typedef enum BoundRule {
    BOUND_EITHER,
    BOUND_NOT,      /* the page must not be bound */
    BOUND_MUST,
} BoundRule;

typedef struct Operation {
    const char *name;
    /* Returns what the operation returns; false if that is nothing. */
    bool (*run)(PageTable *t, uint64_t page, uint32_t ref);
    bool tells_fault;
    unsigned from;
    PageState to;
    RefRule ref;
    uint32_t keeps;
    BoundRule bound;
    uint32_t sets;
} Operation;

static uint32_t seed;

#define OP_VOID(name, call)                                             \
    static bool name(PageTable *t, uint64_t page, uint32_t ref)         \
    {                                                                   \
        call;                                                           \
        return false;                                                   \
    }
#define OP_BOOL(name, call)                                             \
    static bool name(PageTable *t, uint64_t page, uint32_t ref)         \
    {                                                                   \
        return call;                                                    \
    }

OP_VOID(control_present, page_control(t, page, true))
OP_VOID(control_absent, page_control(t, page, false))
OP_VOID(release, page_release(t, page))
OP_VOID(evict_begin, page_evict_begin(t, page, ref))
OP_BOOL(evict_done, page_evict_done(t, page))
OP_BOOL(refused_present, page_evict_refused(t, page, false))
OP_BOOL(refused_absent, page_evict_refused(t, page, true))
OP_VOID(write_begin, page_write_begin(t, page))
OP_VOID(write_done, page_write_done(t, page, ref))
OP_VOID(write_failed, page_write_failed(t, page))
OP_VOID(write_zero, page_write_zero(t, page))
OP_VOID(load_begin, page_load_begin(t, page))
OP_VOID(load_failed, page_load_failed(t, page))
OP_VOID(install_begin, page_install_begin(t, page))
OP_VOID(refill_begin, page_refill_begin(t, page))
OP_VOID(install_done, page_install_done(t, page))
OP_VOID(discard, page_discard(t, page))
OP_VOID(install_bound, page_install_bound(t, page, ref))
OP_VOID(clean_out, page_clean_out(t, page, ref))
OP_VOID(bind_page, page_bind(t, page, ref))

static bool unbind_page(PageTable *t, uint64_t page, uint32_t ref)
{
    uint32_t had = page_ref(t, page);

    g_assert_cmpuint(page_unbind(t, page), ==, had);
    return false;
}

static const Operation operation[] = {
    { "control-present", control_present, false,
      BIT_OF(NONE), PAGE_RESIDENT, REF_NONE, 0 },
    { "control-absent", control_absent, false,
      BIT_OF(NONE), PAGE_ZERO, REF_NONE, 0 },
    { "release", release, false,
      BIT_OF(RESIDENT) | BIT_OF(ZERO), PAGE_NONE, REF_NONE, 0, BOUND_NOT },
    { "evict-begin", evict_begin, false,
      BIT_OF(RESIDENT), PAGE_EVICTING, REF_GIVEN, 0, BOUND_NOT },
    { "evict-done", evict_done, true,
      BIT_OF(EVICTING), PAGE_VICTIM, REF_KEPT, 0 },
    { "evict-refused-present", refused_present, true,
      BIT_OF(EVICTING), PAGE_RESIDENT, REF_NONE, 0 },
    { "evict-refused-absent", refused_absent, true,
      BIT_OF(EVICTING), PAGE_ZERO, REF_NONE, 0 },
    { "write-begin", write_begin, false,
      BIT_OF(VICTIM), PAGE_WRITING, REF_KEPT, PAGE_FLAG_INTERCEPTED },
    { "write-done", write_done, false,
      BIT_OF(WRITING), PAGE_SWAPPED, REF_GIVEN, PAGE_FLAG_INTERCEPTED },
    { "write-failed", write_failed, false,
      BIT_OF(WRITING), PAGE_VICTIM, REF_KEPT, PAGE_FLAG_INTERCEPTED },
    { "write-zero", write_zero, false,
      BIT_OF(VICTIM) | BIT_OF(WRITING), PAGE_ZERO, REF_NONE, 0 },
    { "load-begin", load_begin, false,
      BIT_OF(SWAPPED), PAGE_LOADING, REF_KEPT, PAGE_FLAG_INTERCEPTED },
    { "load-failed", load_failed, false,
      BIT_OF(LOADING), PAGE_SWAPPED, REF_KEPT, PAGE_FLAG_INTERCEPTED },
    { "install-begin", install_begin, false,
      ABSENT, PAGE_INSTALLING, REF_NONE, 0 },
    { "refill-begin", refill_begin, false,
      BIT_OF(RESIDENT), PAGE_INSTALLING, REF_KEPT, OF_BOUND },
    { "install-done", install_done, false,
      BIT_OF(INSTALLING), PAGE_RESIDENT, REF_KEPT, OF_BOUND },
    { "discard", discard, false,
      BIT_OF(RESIDENT) | ABSENT, PAGE_ZERO, REF_NONE, 0, BOUND_NOT },
    { "install-bound", install_bound, false,
      BIT_OF(VICTIM) | BIT_OF(LOADING), PAGE_INSTALLING, REF_GIVEN,
      PAGE_FLAG_INTERCEPTED | PAGE_FLAG_RESTORING, BOUND_EITHER,
      PAGE_FLAG_BOUND },
    { "clean-out", clean_out, false,
      BIT_OF(VICTIM), PAGE_SWAPPED, REF_GIVEN, PAGE_FLAG_INTERCEPTED },
    { "bind", bind_page, false,
      BIT_OF(RESIDENT), PAGE_RESIDENT, REF_GIVEN, 0, BOUND_NOT,
      PAGE_FLAG_BOUND },
    { "unbind", unbind_page, false,
      BIT_OF(RESIDENT), PAGE_RESIDENT, REF_NONE, 0, BOUND_MUST },
};

/* The shortest way from NONE to each state: indices of operation[] */
static const char *const way[PAGE_STATE__MAX][6] = {
    [PAGE_NONE] = { NULL },
    [PAGE_RESIDENT] = { "control-present" },
    [PAGE_EVICTING] = { "control-present", "evict-begin" },
    [PAGE_VICTIM] = { "control-present", "evict-begin", "evict-done" },
    [PAGE_WRITING] = { "control-present", "evict-begin", "evict-done",
                       "write-begin" },
    [PAGE_SWAPPED] = { "control-present", "evict-begin", "evict-done",
                       "write-begin", "write-done" },
    [PAGE_LOADING] = { "control-present", "evict-begin", "evict-done",
                       "write-begin", "write-done", "load-begin" },
    [PAGE_INSTALLING] = { "control-absent", "install-begin" },
    [PAGE_ZERO] = { "control-absent" },
};

static const Operation *find_operation(const char *name)
{
    for (size_t i = 0; i < ARRAY_SIZE(operation); i++) {
        if (g_str_equal(operation[i].name, name)) {
            return &operation[i];
        }
    }
    g_assert_not_reached();
}

static void bring_to(PageTable *t, uint64_t page, PageState state)
{
    for (int i = 0; i < ARRAY_SIZE(way[0]) && way[state][i]; i++) {
        find_operation(way[state][i])->run(t, page, 7);
    }
    g_assert_cmpint(page_state(t, page), ==, state);
}

/* The naive oracle of one page */
typedef struct Shadow {
    PageState state;
    uint32_t ref;
    uint32_t flags;
    uint32_t policy;
} Shadow;

static bool shadow_bound(const Shadow *s)
{
    return (s->state == PAGE_RESIDENT || s->state == PAGE_INSTALLING) &&
           (s->flags & PAGE_FLAG_BOUND);
}

static bool allowed(const Operation *op, const Shadow *s)
{
    return op->from >> s->state & 1 &&
           !(op->bound == BOUND_NOT && shadow_bound(s)) &&
           !(op->bound == BOUND_MUST && !shadow_bound(s));
}

static void check_page(const PageTable *t, uint64_t page, const Shadow *s)
{
    bool transit = s->state == PAGE_EVICTING || s->state == PAGE_INSTALLING;

    g_assert_cmpint(page_state(t, page), ==, s->state);
    g_assert_cmpuint(page_ref(t, page), ==, s->ref);
    g_assert_cmpuint(t->word[page] & ALL_FLAGS, ==, s->flags);
    g_assert(page_is_bound(t, page) == shadow_bound(s));
    g_assert_cmpuint(t->word[page] & POLICY_BITS, ==, s->policy);
    g_assert(page_in_transit(t, page) == transit);
    g_assert(page_is_out(t, page) == !!(ABSENT >> s->state & 1));
}

static void check_counts(const PageTable *t, const Shadow *shadow)
{
    uint64_t count[PAGE_STATE__MAX] = { 0 }, nbound = 0;

    for (int i = 0; i < NPAGES; i++) {
        count[shadow[i].state]++;
        nbound += shadow_bound(&shadow[i]);
    }
    g_assert_cmpuint(t->nbound, ==, nbound);
    for (int s = 0; s < PAGE_STATE__MAX; s++) {
        g_assert_cmpuint(t->count[s], ==, count[s]);
    }
}

static void step(PageTable *t, uint64_t page, Shadow *s, const Operation *op,
                 uint32_t ref)
{
    bool faulted = s->flags & PAGE_FLAG_FAULTED;
    bool told = op->run(t, page, ref);

    g_assert(told == (op->tells_fault && faulted));
    s->state = op->to;
    s->flags = (s->flags & op->keeps) | op->sets;
    if (op->ref != REF_KEPT) {
        s->ref = op->ref == REF_GIVEN ? ref : 0;
    }
}

static void random_flag(PageTable *t, uint64_t page, Shadow *s, GRand *rand)
{
    /* Of a page that is LOADING it is an intention; else it is not ours. */
    uint32_t flag = 1u << g_rand_int_range(rand, 4, s->state == PAGE_LOADING
                                                    ? 8 : 7);

    if (g_rand_boolean(rand)) {
        page_set_flag(t, page, flag);
        s->flags |= flag;
    } else {
        page_clear_flag(t, page, flag);
        s->flags &= ~flag;
    }
    g_assert(page_flag(t, page, flag) == !!(s->flags & flag));
}

static void test_random_walk(void)
{
    GRand *rand = g_rand_new_with_seed(seed);
    Shadow shadow[NPAGES] = { 0 };
    PageTable t;

    page_table_init(&t, NPAGES);
    for (int i = 0; i < NPAGES; i++) {
        shadow[i].policy = g_rand_int(rand) & POLICY_BITS;
        t.word[i] |= shadow[i].policy;
    }
    for (int n = 0; n < STEPS; n++) {
        uint64_t page = g_rand_int_range(rand, 0, NPAGES);
        const Operation *op =
            &operation[g_rand_int_range(rand, 0, ARRAY_SIZE(operation))];
        Shadow *s = &shadow[page];

        if (allowed(op, s)) {
            step(&t, page, s, op, g_rand_int(rand));
        } else {
            random_flag(&t, page, s, rand);
        }
        check_page(&t, page, s);
        /* Its neighbours have not changed. */
        check_page(&t, (page + 1) % NPAGES, &shadow[(page + 1) % NPAGES]);
        check_page(&t, (page + NPAGES - 1) % NPAGES,
                   &shadow[(page + NPAGES - 1) % NPAGES]);
        check_counts(&t, shadow);
    }
    page_table_destroy(&t);
    g_rand_free(rand);
}

/* Each operation from each of its states, with all flags set before. */
static void test_legal(void)
{
    for (size_t i = 0; i < ARRAY_SIZE(operation); i++) {
        const Operation *op = &operation[i];

        for (PageState from = 0; from < PAGE_STATE__MAX; from++) {
            Shadow s = { .state = from, .flags = FLAGS, .policy = 0xa5a5a500 };
            PageTable t;

            if (!(op->from >> from & 1)) {
                continue;
            }
            page_table_init(&t, 1);
            bring_to(&t, 0, from);
            if (op->bound == BOUND_MUST) {
                page_bind(&t, 0, 7);
            }
            if (from == PAGE_LOADING || op->bound == BOUND_MUST) {
                s.flags |= PAGE_FLAG_BOUND;
            }
            page_set_flag(&t, 0, s.flags | s.policy);
            s.ref = page_ref(&t, 0);
            step(&t, 0, &s, op, 0xfffffffe);
            check_page(&t, 0, &s);
            page_table_destroy(&t);
        }
    }
}

/* True if @op, tried in @from, asserts.  @bound: of a bound page */
static bool asserts(const Operation *op, PageState from, bool bound)
{
    int status;
    pid_t pid = fork();

    g_assert_cmpint(pid, >=, 0);
    if (pid == 0) {
        int null = open("/dev/null", O_WRONLY);
        PageTable t;

        dup2(null, STDOUT_FILENO);
        dup2(null, STDERR_FILENO);
        page_table_init(&t, 1);
        bring_to(&t, 0, from);
        if (bound) {
            page_bind(&t, 0, 7);
        }
        op->run(&t, 0, 9);
        _exit(0);
    }
    g_assert_cmpint(waitpid(pid, &status, 0), ==, pid);
    return WIFSIGNALED(status) && WTERMSIG(status) == SIGABRT;
}

static void test_illegal(void)
{
    int n = 0;

    for (size_t i = 0; i < ARRAY_SIZE(operation); i++) {
        const Operation *op = &operation[i];

        for (PageState from = 0; from < PAGE_STATE__MAX; from++) {
            Shadow s = { .state = from };

            if (allowed(op, &s)) {
                continue;
            }
            if (!asserts(op, from, false)) {
                g_test_message("%s of a page that is %s does not assert",
                               op->name, page_state_str(from));
                g_test_fail();
            }
            n++;
        }
        if (op->bound == BOUND_NOT) {
            if (!asserts(op, PAGE_RESIDENT, true)) {
                g_test_message("%s of a bound page does not assert", op->name);
                g_test_fail();
            }
            n++;
        }
    }
    g_test_message("%d illegal pairs", n);
}

static void test_names(void)
{
    for (int a = 0; a < PAGE_STATE__MAX; a++) {
        for (int b = 0; b < a; b++) {
            g_assert_cmpstr(page_state_str(a), !=, page_state_str(b));
        }
    }
    g_assert_cmpstr(page_state_str(PAGE_STATE__MAX), ==, "?");
}

int main(int argc, char **argv)
{
    g_test_init(&argc, &argv, NULL);
    seed = bsst_test_seed();

    g_test_add_func("/page-state/names", test_names);
    g_test_add_func("/page-state/legal", test_legal);
    g_test_add_func("/page-state/illegal", test_illegal);
    g_test_add_func("/page-state/random-walk", test_random_walk);
    return g_test_run();
}
