/*
 * Pager: real faults on memory of our own, a real store, no VM
 *
 * Pages belong to one thread each, which knows the generation it wrote last.
 *
 * This work is licensed under the terms of the GNU GPL, version 2 or later.
 * See the COPYING file in the top-level directory.
 */

#include "qemu/osdep.h"
#include "block/aio.h"
#include "block/aio-wait.h"
#include "pager-fixture.h"
#include "qemu/memalign.h"
#include "qemu/units.h"

/* Threads that touch */

typedef struct Toucher {
    Fixture *f;
    QemuThread thread;
    uint64_t first, step;   /* its pages */
    unsigned write_percent;
    uint32_t seed;
    bool sweep;             /* each of its pages once, not for a while */
    bool *stop;
    uint64_t touches;
} Toucher;

static void touch(Toucher *t, uint64_t page, GRand *rand)
{
    Fixture *f = t->f;
    uint64_t *at = page_at(f, page);

    if (g_rand_int_range(rand, 0, 100) >= t->write_percent) {
        check(at, page, f->gen[page]);
    } else if (g_rand_boolean(rand)) {
        /* Read and rewrite */
        check(at, page, f->gen[page]);
        put(f, page, f->gen[page] + 1);
    } else {
        /* Blind, from the end: the first touch is a write */
        f->gen[page]++;
        for (unsigned i = WORDS; i-- > 0; ) {
            at[i] = word(page, f->gen[page], i);
        }
    }
    t->touches++;
}

static void *toucher_run(void *opaque)
{
    Toucher *t = opaque;
    uint64_t mine = (t->f->npages - t->first + t->step - 1) / t->step;
    GRand *rand = g_rand_new_with_seed(t->seed);

    for (uint64_t i = 0; t->sweep ? i < mine : !qatomic_read(t->stop); i++) {
        uint64_t k = t->sweep ? i : g_rand_int_range(rand, 0, mine);

        touch(t, t->first + k * t->step, rand);
    }
    g_rand_free(rand);
    return NULL;
}

static void start_touchers(Fixture *f, Toucher *t, unsigned n,
                           unsigned write_percent, bool *stop)
{
    for (unsigned i = 0; i < n; i++) {
        t[i] = (Toucher) {
            .f = f, .first = i, .step = n, .write_percent = write_percent,
            .seed = seed + i, .sweep = !stop, .stop = stop,
        };
        qemu_thread_create(&t[i].thread, "toucher", toucher_run, &t[i],
                           QEMU_THREAD_JOINABLE);
    }
}

static uint64_t join_touchers(Toucher *t, unsigned n)
{
    uint64_t touches = 0;

    for (unsigned i = 0; i < n; i++) {
        qemu_thread_join(&t[i].thread);
        touches += t[i].touches;
    }
    return touches;
}

/* Tests */

static void test_evict(Fixture *f)
{
    Toucher t[4];

    put_all(f, 1);
    for (int round = 0; round < 4; round++) {
        bool to_store = round & 1;

        evict(f, 0, f->npages, to_store);
        g_assert_cmpuint(count(f, PAGE_RESIDENT), ==, 0);
        g_assert_cmpuint(count(f, to_store ? PAGE_SWAPPED : PAGE_VICTIM), ==,
                         f->npages);
        /* From the second on, what was only read keeps its slot. */
        check_slots(f, round ? f->npages : 0);
        start_touchers(f, t, ARRAY_SIZE(t), round < 2 ? 0 : 50, NULL);
        join_touchers(t, ARRAY_SIZE(t));
        check_all(f);
    }
    /* From victim to store, and a write of one byte to an absent page */
    evict(f, 0, f->npages, false);
    evict(f, 0, f->npages, true);
    for (uint64_t i = 0; i < f->npages; i++) {
        *((uint8_t *)page_at(f, i) + 77) ^= 0xff;
    }
    for (uint64_t i = 0; i < f->npages; i++) {
        *((uint8_t *)page_at(f, i) + 77) ^= 0xff;
    }
    check_all(f);
}

static void test_zero(Fixture *f)
{
    Toucher t[2];

    /* Never touched, read once (the kernel's zero page), and zeroed */
    for (uint64_t i = 0; i < f->npages; i++) {
        if (i % 3 == 1) {
            check(page_at(f, i), i, 0);
        } else if (i % 3 == 2) {
            put(f, i, 1);
            put(f, i, 0);
        }
    }
    pager_evict_range(f->p, 0, f->npages, true);
    check_slots(f, 0);
    g_assert_cmpuint(count(f, PAGE_SWAPPED), ==, 0);
    /* The zero page may refuse to move. */
    g_assert_cmpuint(count(f, PAGE_ZERO), >=, f->npages - f->npages / 3 - 1);
    check_all(f);
    pager_evict_range(f->p, 0, f->npages, true);
    start_touchers(f, t, ARRAY_SIZE(t), 50, NULL);
    join_touchers(t, ARRAY_SIZE(t));
    check_all(f);
}

/* Time for which what is resident was more than the limit and 1 % */
typedef struct Excess {
    int64_t since_us, longest_us;
    uint64_t peak;
} Excess;

static void sample_excess(Fixture *f, uint64_t limit, Excess *e)
{
    uint64_t n = present_pages(f->mem, f->npages) +
                 present_pages(f->p->frames.base, f->p->frames.n);
    int64_t now = g_get_monotonic_time();

    e->peak = MAX(e->peak, n);
    if (n <= limit + limit / 100) {
        e->since_us = 0;
        return;
    }
    e->since_us = e->since_us ?: now;
    e->longest_us = MAX(e->longest_us, now - e->since_us);
}

static void touch_under_limit(Fixture *f, uint64_t limit_bytes,
                              unsigned seconds)
{
    bool stop = false;
    Excess e = { 0 };
    Toucher t[4];
    int64_t end = g_get_monotonic_time() + seconds * 1000000ll;
    uint64_t touches;
    PagerCounters n;

    pager_set_limit(f->p, limit_bytes);
    start_touchers(f, t, ARRAY_SIZE(t), 40, &stop);
    while (g_get_monotonic_time() < end) {
        run_main_loop(5);
        if (qatomic_read(&f->p->base.armed)) {
            sample_excess(f, PAGES(limit_bytes), &e);
        }
    }
    qatomic_set(&stop, true);
    touches = join_touchers(t, ARRAY_SIZE(t));
    n = counters(f);
    g_test_message("limit %" PRIu64 " pages: peak %" PRIu64 ", above by more "
                   "than 1 %% for at most %" PRId64 " ms; %" PRIu64 " touches, "
                   "%" PRIu64 " pages out, %" PRIu64 " in", PAGES(limit_bytes),
                   e.peak, e.longest_us / 1000, touches, n.swap_outs,
                   n.swap_ins);
    g_assert_cmpint(e.longest_us, <, 1000000 * slower);
    g_assert(qatomic_read(&f->p->base.armed));
    check_all(f);
}

static void test_limit(Fixture *f)
{
    uint64_t ram = f->npages * BSST_PAGE_SIZE;

    put_all(f, 1);
    touch_under_limit(f, ram / 2, load_seconds);
    touch_under_limit(f, ram / 4, load_seconds);
    touch_under_limit(f, ram / 2, 1);
    g_assert_cmpuint(counters(f).swap_outs, >, 0);
    g_assert_cmpuint(counters(f).swap_ins, >, 0);
}

/* All pages come back, the pager lets go, and starts again. */
static void test_off_and_on(Fixture *f)
{
    uint64_t ram = f->npages * BSST_PAGE_SIZE;
    bool stop = false;
    Toucher t[2];

    put_all(f, 1);
    for (int round = 0; round < 3; round++) {
        touch_under_limit(f, ram / 4, 1);
        start_touchers(f, t, ARRAY_SIZE(t), 30, &stop);
        bring_all_back(f);
        check_slots(f, 0);
        g_assert_cmpuint(count(f, PAGE_NONE), ==, f->p->pages.npages);
        g_assert_cmpuint(present_pages(f->p->frames.base, f->p->frames.n), ==,
                         0);
        qatomic_set(&stop, true);
        join_touchers(t, ARRAY_SIZE(t));
        stop = false;
        check_all(f);
    }
    /* Taken back halfway */
    touch_under_limit(f, ram / 4, 1);
    pager_set_limit(f->p, 0);
    run_main_loop(2);
    touch_under_limit(f, ram / 4, 1);
}

typedef struct SlotRead {
    Fixture *f;
    BsstSlot slot;
    void *buf;
    int ret;
} SlotRead;

static void coroutine_fn slot_read_co_entry(void *opaque)
{
    SlotRead *r = opaque;

    r->ret = bsst_store_co_read(r->f->store, r->slot, 1, r->buf);
}

static void read_slot(Fixture *f, BsstSlot slot, void *buf)
{
    SlotRead r = { .f = f, .slot = slot, .buf = buf, .ret = -EINPROGRESS };

    qemu_coroutine_enter(qemu_coroutine_create(slot_read_co_entry, &r));
    AIO_WAIT_WHILE_UNLOCKED(NULL, r.ret == -EINPROGRESS);
    g_assert_cmpint(r.ret, ==, 0);
}

static BsstPageClaim claim(Fixture *f, uint64_t page)
{
    void *addr = page_at(f, page);
    BsstPageClaim c;

    f->p->base.ops->claim(&f->p->base, &addr, &c, 1);
    return c;
}

static void release(Fixture *f, const BsstPageClaim *c)
{
    f->p->base.ops->release(&f->p->base, c, 1);
    if (c->kind == BSST_PAGE_SLOT) {
        bsst_slot_unref(f->store, &c->slot, 1);
    }
}

static void check_claim(Fixture *f, const BsstPageClaim *c, uint64_t page,
                        uint64_t gen)
{
    void *buf;

    switch (c->kind) {
    case BSST_PAGE_SLOT:
        buf = qemu_memalign(BSST_PAGE_SIZE, BSST_PAGE_SIZE);
        read_slot(f, c->slot, buf);
        check(buf, page, gen);
        qemu_vfree(buf);
        break;
    case BSST_PAGE_BUFFER:
        check(c->buf, page, gen);
        break;
    case BSST_PAGE_ZERO:
        g_assert_cmpuint(gen, ==, 0);
        break;
    case BSST_PAGE_PRESENT:
        break;
    }
}

static void test_claim(Fixture *f)
{
    uint64_t quarter = f->npages / 4;
    static const BsstPageKind kind[] = {
        BSST_PAGE_SLOT, BSST_PAGE_BUFFER, BSST_PAGE_ZERO, BSST_PAGE_PRESENT,
    };
    g_autofree BsstPageClaim *c = g_new(BsstPageClaim, f->npages);
    uint64_t i;

    for (i = 0; i < f->npages; i++) {
        if (i / quarter != 2) {
            put(f, i, 1);
        }
    }
    evict(f, 0, quarter, true);
    evict(f, quarter, quarter, false);
    for (i = 0; i < f->npages; i++) {
        c[i] = claim(f, i);
        g_assert_cmpint(c[i].kind, ==, kind[i / quarter]);
        check_claim(f, &c[i], i, f->gen[i]);
    }
    g_assert_cmpuint(counters(f).intercepted, ==, quarter);
    /* A claim outlives the page's content. */
    for (i = 0; i < f->npages; i++) {
        put(f, i, 2);
    }
    evict(f, 0, f->npages, true);
    for (i = 0; i < 2 * quarter; i++) {
        check_claim(f, &c[i], i, 1);
    }
    /* And the page itself has the new one, also while claims of it exist. */
    check_all(f);
    for (i = 0; i < f->npages; i++) {
        release(f, &c[i]);
    }
    check_slots(f, f->npages);      /* pages that were read keep theirs */
}

/*
 * Claim @n pages, @page and then each @step further on, if all are in slots.
 * @extra is one more, which may be NULL.
 */
static bool claim_slots_step(Fixture *f, uint64_t page, int step, unsigned n,
                             void *const *extra)
{
    g_autofree void **addr = g_new(void *, n + 1);
    g_autofree BsstSlot *slot = g_new(BsstSlot, n + 1);
    bool ok;

    for (unsigned i = 0; i < n; i++) {
        addr[i] = page_at(f, page + (int)i * step);
    }
    if (extra) {
        addr[n] = *extra;
    }
    ok = f->p->base.ops->claim_slots(&f->p->base, addr, slot, n + !!extra);
    for (unsigned i = 0; ok && i < n + !!extra; i++) {
        BsstPageClaim c = { .kind = BSST_PAGE_SLOT, .slot = slot[i] };
        uint64_t at = addr[i] - (void *)f->mem;

        check_claim(f, &c, PAGES(at), 1);
        release(f, &c);
    }
    return ok;
}

static bool claim_slots(Fixture *f, uint64_t page, unsigned n,
                        void *const *extra)
{
    return claim_slots_step(f, page, 1, n, extra);
}

/* All or nothing: a claim that fails takes no reference. */
static void test_claim_slots(Fixture *f)
{
    uint64_t quarter = f->npages / 4, i;
    void *const none = NULL;

    for (i = 0; i < f->npages; i++) {
        if (i / quarter != 2) {
            put(f, i, 1);
        }
    }
    evict(f, 0, quarter, true);
    evict(f, quarter, quarter, false);
    g_assert(claim_slots(f, 0, 0, NULL));
    g_assert(claim_slots(f, 0, quarter, NULL));
    g_assert(claim_slots_step(f, quarter - 1, -1, quarter, NULL));
    g_assert(claim_slots_step(f, 1, 3, quarter / 4, NULL));
    g_assert_cmpuint(counters(f).intercepted, ==, 2 * quarter + quarter / 4);
    g_assert(!claim_slots(f, 0, quarter, &none));
    for (i = quarter; i < f->npages; i += quarter) {
        void *other = page_at(f, i);

        g_assert(!claim_slots(f, 0, quarter, &other));
        g_assert(!claim_slots(f, i - 1, 2, NULL));
    }
    g_assert_cmpuint(counters(f).intercepted, ==, 2 * quarter + quarter / 4);
    check_slots(f, quarter);
    check_all(f);
    bring_all_back(f);
    check_slots(f, 0);
}

/* Pages that are neighbours in memory, but of two regions */
static void test_claim_regions(Fixture *f)
{
    const uint64_t a = 5;
    PagerRegion list[] = {
        { .host = (uint8_t *)page_at(f, 0), .npages = a },
        { .host = (uint8_t *)page_at(f, a), .npages = f->npages - a },
    };
    uint64_t page;

    pager_set_regions(f->p, list, ARRAY_SIZE(list));
    for (uint64_t i = 0; i < 2 * a; i++) {
        put(f, i, 1);
    }
    for (uint64_t i = 0; i < 2 * a; i++) {
        g_assert(pager_lookup(f->p, page_at(f, i), &page));
        g_assert_cmpint(page == i, ==, i < a);
        while (!pager_evict_range(f->p, page, 1, true)) {
            g_usleep(1000);
        }
    }
    g_assert(claim_slots(f, 0, 2 * a, NULL));
    g_assert(claim_slots(f, a - 1, 2, NULL));
    bring_all_back(f);
    check_slots(f, 0);
}

/* Claims at any moment, WRITING and LOADING included. */
static void test_claim_under_load(Fixture *f)
{
    uint64_t kinds[BSST_PAGE_ZERO + 1] = { 0 }, writing = 0, loading = 0;
    GRand *rand = g_rand_new_with_seed(seed);
    bool stop = false;
    Toucher t[3];
    int64_t end;

    put_all(f, 1);
    pager_set_limit(f->p, f->npages * BSST_PAGE_SIZE / 2);
    start_touchers(f, t, ARRAY_SIZE(t), 0, &stop);
    end = g_get_monotonic_time() + load_seconds * 1000000ll;
    for (uint64_t n = 0; g_get_monotonic_time() < end ||
         !kinds[BSST_PAGE_PRESENT] || !kinds[BSST_PAGE_SLOT] ||
         !kinds[BSST_PAGE_BUFFER]; n++) {
        uint64_t page = g_rand_int_range(rand, 0, f->npages);
        PageState before = state_of(f, page);
        BsstPageClaim c = claim(f, page);
        PageState after = state_of(f, page);

        kinds[c.kind]++;
        writing += before == PAGE_WRITING && after == PAGE_WRITING;
        loading += before == PAGE_LOADING && after == PAGE_LOADING;
        check_claim(f, &c, page, 1);
        release(f, &c);
        claim_slots(f, page & ~3ull, 4, NULL);
        if (n % 64 == 0) {
            aio_poll(qemu_get_aio_context(), false);
        }
    }
    qatomic_set(&stop, true);
    join_touchers(t, ARRAY_SIZE(t));
    g_rand_free(rand);
    g_test_message("claims: %" PRIu64 " present, %" PRIu64 " slots (%" PRIu64
                   " loading), %" PRIu64 " buffers (%" PRIu64 " writing), %"
                   PRIu64 " zero", kinds[BSST_PAGE_PRESENT],
                   kinds[BSST_PAGE_SLOT], loading, kinds[BSST_PAGE_BUFFER],
                   writing, kinds[BSST_PAGE_ZERO]);
    g_assert_cmpuint(kinds[BSST_PAGE_ZERO], ==, 0);
    check_all(f);
}

static void test_install(Fixture *f)
{
    const BsstPagerOps *ops = f->p->base.ops;
    uint64_t quarter = f->npages / 4;
    uint64_t *buf = qemu_memalign(BSST_PAGE_SIZE, BSST_PAGE_SIZE);
    uint64_t loads;

    for (uint64_t i = 0; i < f->npages; i++) {
        if (i / quarter != 2) {
            put(f, i, 1);
        }
    }
    evict(f, 0, quarter, true);
    evict(f, quarter, quarter, false);
    loads = counters(f).swap_ins;
    for (uint64_t i = 0; i < f->npages; i++) {
        void *addr = page_at(f, i);
        bool is_absent;

        ops->absent(&f->p->base, &addr, &is_absent, 1);
        g_assert(is_absent == (i / quarter != 3));
        fill(buf, i, 2);
        g_assert(ops->install(&f->p->base, addr, buf) == is_absent);
        f->gen[i] = is_absent ? 2 : 1;
        g_assert_cmpint(state_of(f, i), ==, PAGE_RESIDENT);
    }
    g_assert_cmpuint(counters(f).swap_ins, ==, loads);
    g_assert_cmpuint(counters(f).installed, ==, 3 * quarter);
    check_slots(f, 0);
    check_all(f);
    qemu_vfree(buf);
}

/* The owner of a page installs it while others load and evict around it. */
static void test_install_under_load(Fixture *f)
{
    const BsstPagerOps *ops = f->p->base.ops;
    int64_t end = g_get_monotonic_time() + load_seconds * 1000000ll;
    uint64_t *buf = qemu_memalign(BSST_PAGE_SIZE, BSST_PAGE_SIZE);
    GRand *rand = g_rand_new_with_seed(seed);
    uint64_t installed = 0;
    bool stop = false;
    Toucher t[2];

    put_all(f, 1);
    pager_set_limit(f->p, f->npages * BSST_PAGE_SIZE / 2);
    /* They have two thirds of the pages, we every third. */
    for (unsigned i = 0; i < 2; i++) {
        t[i] = (Toucher) { .f = f, .first = i, .step = 3, .write_percent = 40,
                           .seed = seed + i, .stop = &stop };
        qemu_thread_create(&t[i].thread, "toucher", toucher_run, &t[i],
                           QEMU_THREAD_JOINABLE);
    }
    while (g_get_monotonic_time() < end || !installed) {
        uint64_t page = g_rand_int_range(rand, 0, f->npages / 3) * 3 + 2;

        fill(buf, page, f->gen[page] + 1);
        if (ops->install(&f->p->base, page_at(f, page), buf)) {
            f->gen[page]++;
            installed++;
        }
        if (g_rand_boolean(rand)) {
            check(page_at(f, page), page, f->gen[page]);
        }
        aio_poll(qemu_get_aio_context(), false);
    }
    qatomic_set(&stop, true);
    join_touchers(t, ARRAY_SIZE(t));
    g_test_message("%" PRIu64 " installed", installed);
    check_all(f);
    g_rand_free(rand);
    qemu_vfree(buf);
}

static void test_written(Fixture *f)
{
    const BsstPagerOps *ops = f->p->base.ops;
    g_autofree void **addr = g_new(void *, f->npages);
    g_autofree BsstPageClaim *c = g_new(BsstPageClaim, f->npages);

    put_all(f, 1);
    evict(f, 0, f->npages, true);
    for (uint64_t i = 0; i < f->npages; i++) {
        addr[i] = page_at(f, i);
    }
    ops->claim(&f->p->base, addr, c, f->npages);
    ops->written(&f->p->base, addr, f->npages);
    ops->release(&f->p->base, c, f->npages);
    while (count(f, PAGE_RESIDENT) < f->npages) {
        run_main_loop(1);
    }
    g_assert_cmpuint(counters(f).intercepted, ==, f->npages);
    g_assert_cmpuint(counters(f).intercepted_restored, ==, f->npages);
    g_assert_cmpuint(counters(f).intercepted_faults, ==, 0);
    for (uint64_t i = 0; i < f->npages; i++) {
        g_assert(present(f, i));
        bsst_slot_unref(f->store, &c[i].slot, 1);
    }
    g_assert_cmpuint(counters(f).faults_store, ==, 0);
    check_all(f);
}

/* Who left together with a page that was written comes back with it. */
static void test_written_neighbours(Fixture *f)
{
    const BsstPagerOps *ops = f->p->base.ops;
    void *addr = page_at(f, PAGER_WINDOW + 3);
    BsstPageClaim c;

    put_all(f, 1);
    evict(f, 0, f->npages, true);
    ops->claim(&f->p->base, &addr, &c, 1);
    ops->written(&f->p->base, &addr, 1);
    while (count(f, PAGE_RESIDENT) < PAGER_WINDOW) {
        run_main_loop(1);
    }
    /* In one request, and not what is in other windows */
    g_assert_cmpuint(counters(f).swap_in_requests, ==, 1);
    g_assert_cmpuint(count(f, PAGE_RESIDENT), ==, PAGER_WINDOW);
    for (uint64_t i = 0; i < PAGER_WINDOW; i++) {
        g_assert(present(f, PAGER_WINDOW + i));
    }
    g_assert_cmpuint(counters(f).intercepted_restored, ==, 1);
    g_assert_cmpuint(counters(f).intercepted_restore_pages, ==, PAGER_WINDOW);
    g_assert_cmpuint(counters(f).faults_store, ==, 0);
    bsst_slot_unref(f->store, &c.slot, 1);
    check_all(f);
}

static void test_discard(Fixture *f)
{
    uint64_t third = f->npages / 3;

    put_all(f, 1);
    evict(f, 0, third, true);
    evict(f, third, third, false);
    discard(f, 0, f->npages);
    memset(f->gen, 0, f->npages * sizeof(f->gen[0]));
    check_slots(f, 0);
    check_all(f);
    put_all(f, 2);
    check_all(f);
}

typedef struct DiscardRace {
    Fixture *f;
    bool stop;
    /* Pages [0, n) are discarded by the main thread, which alone writes them */
    uint64_t n;
    uint64_t *min_gen;
} DiscardRace;

/*
 * Reads pages that are being discarded: after a discard has returned, no
 * generation from before it may be seen again.
 */
static void *discard_reader(void *opaque)
{
    DiscardRace *r = opaque;
    GRand *rand = g_rand_new_with_seed(seed + 1);

    while (!qatomic_read(&r->stop)) {
        uint64_t page = g_rand_int_range(rand, 0, r->n);
        uint64_t min = qatomic_load_acquire(&r->min_gen[page]);
        uint64_t raw = qatomic_read(page_at(r->f, page));
        uint64_t gen = raw ? (raw ^ 0x9e3779b97f4a7c15ull) >> 16 & 0xffffff
                           : 0;

        if (gen && gen < min) {
            g_error("page %" PRIu64 ": generation %" PRIu64 " came back after "
                    "%" PRIu64 " had been discarded", page, gen, min - 1);
        }
    }
    g_rand_free(rand);
    return NULL;
}

/* Its first touches populate the neighbours that are being discarded. */
static void *discard_neighbour(void *opaque)
{
    DiscardRace *r = opaque;
    GRand *rand = g_rand_new_with_seed(seed + 2);

    while (!qatomic_read(&r->stop)) {
        uint64_t page = g_rand_int_range(rand, 0, r->n / 32) * 32 + r->n;

        check(page_at(r->f, page), page, 0);
        put(r->f, page, 1);
        put(r->f, page, 0);
        discard(r->f, page, 1);
    }
    g_rand_free(rand);
    return NULL;
}

static void test_discard_races(Fixture *f)
{
    int64_t end = g_get_monotonic_time() + 2 * load_seconds * 1000000ll;
    DiscardRace r = { .f = f, .n = f->npages / 2 };
    GRand *rand = g_rand_new_with_seed(seed);
    QemuThread reader[2], neighbour;
    uint64_t gen = 1, rounds = 0;

    r.min_gen = g_new0(uint64_t, f->npages);
    put_all(f, 0);
    for (uint64_t i = 0; i < r.n; i++) {
        put(f, i, gen);
    }
    pager_set_limit(f->p, f->npages * BSST_PAGE_SIZE / 4);
    for (int i = 0; i < 2; i++) {
        qemu_thread_create(&reader[i], "reader", discard_reader, &r,
                           QEMU_THREAD_JOINABLE);
    }
    qemu_thread_create(&neighbour, "neighbour", discard_neighbour, &r,
                       QEMU_THREAD_JOINABLE);
    while (g_get_monotonic_time() < end) {
        uint64_t n = g_rand_int_range(rand, 1, r.n / 4);
        uint64_t page = g_rand_int_range(rand, 0, r.n - n);

        discard(f, page, n);
        gen++;
        for (uint64_t i = page; i < page + n; i++) {
            qatomic_store_release(&r.min_gen[i], gen);
        }
        for (uint64_t i = page; i < page + n; i++) {
            check(page_at(f, i), i, 0);
            f->gen[i] = 0;
            if (g_rand_boolean(rand)) {
                put(f, i, gen);
            }
        }
        if (rounds++ % 4 == 0) {
            pager_evict_range(f->p, page, n, rounds & 4);
        }
        aio_poll(qemu_get_aio_context(), false);
    }
    qatomic_set(&r.stop, true);
    qemu_thread_join(&reader[0]);
    qemu_thread_join(&reader[1]);
    qemu_thread_join(&neighbour);
    g_test_message("%" PRIu64 " discards, %" PRIu64 " absent pages among them",
                   rounds, counters(f).discarded);
    check_all(f);
    g_rand_free(rand);
    g_free(r.min_gen);
}

/*
 * A page that a fault populates, or that is evicted, between the discard and
 * the unmapping: other threads write next to a large range that is discarded.
 */
typedef struct Adjacent {
    Fixture *f;
    bool stop;
    uint64_t step;
} Adjacent;

static void *adjacent_run(void *opaque)
{
    Adjacent *a = opaque;
    Fixture *f = a->f;

    while (!qatomic_read(&a->stop)) {
        for (uint64_t page = 0; page < f->npages; page += a->step) {
            discard(f, page, 1);
            put(f, page, 3);
        }
        g_usleep(100);
    }
    return NULL;
}

static void *evict_all_run(void *opaque)
{
    Adjacent *a = opaque;

    while (!qatomic_read(&a->stop)) {
        pager_evict(a->f->p, PAGER_WINDOW);
        g_usleep(100);
    }
    return NULL;
}

static void test_discard_populate(Fixture *f)
{
    int64_t end = g_get_monotonic_time() + load_seconds * 1000000ll;
    Adjacent a = { .f = f, .step = PAGER_WINDOW };
    QemuThread adjacent, evicter;
    uint64_t rounds = 0;

    put_all(f, 1);
    /* Armed, and by no means near the limit */
    pager_evict_range(f->p, 0, 1, true);
    qemu_thread_create(&adjacent, "adjacent", adjacent_run, &a,
                       QEMU_THREAD_JOINABLE);
    qemu_thread_create(&evicter, "evicter", evict_all_run, &a,
                       QEMU_THREAD_JOINABLE);
    while (g_get_monotonic_time() < end) {
        /* All but the pages of the other thread, one after the other */
        for (uint64_t i = 0; i < f->npages; i += a.step) {
            pager_discard(f->p, page_at(f, i + 1),
                          (a.step - 1) * BSST_PAGE_SIZE);
        }
        for (uint64_t i = 0; i < f->npages; i += a.step) {
            madvise(page_at(f, i + 1), (a.step - 1) * BSST_PAGE_SIZE,
                    MADV_DONTNEED);
        }
        for (uint64_t i = 0; i < f->npages; i++) {
            if (i % a.step) {
                check(page_at(f, i), i, 0);
                put(f, i, 1);
            }
        }
        rounds++;
        aio_poll(qemu_get_aio_context(), false);
    }
    qatomic_set(&a.stop, true);
    qemu_thread_join(&adjacent);
    qemu_thread_join(&evicter);
    g_test_message("%" PRIu64 " rounds", rounds);
}

static bool store_full(Fixture *f)
{
    QEMU_LOCK_GUARD(&f->p->lock);
    return f->p->store_full;
}

static uint64_t charged(Fixture *f)
{
    QEMU_LOCK_GUARD(&f->p->lock);
    return pager_charged_locked(f->p);
}

/* RAM 64 MiB, limit 32 MiB, store 4 MiB: the limit must yield. */
static void test_store_full(Fixture *f)
{
    uint64_t limit = f->npages / 2, slots = bsst_store_nslots(f->store);
    bool stop = false;
    Toucher t[3];

    g_assert_cmpuint(slots, <, f->npages / 4);
    pager_set_limit(f->p, limit * BSST_PAGE_SIZE);
    start_touchers(f, t, ARRAY_SIZE(t), 100, NULL);
    join_touchers(t, ARRAY_SIZE(t));
    while (!store_full(f)) {
        run_main_loop(5);
    }
    g_assert_cmpuint(counters(f).refused_store_full, >, 0);
    start_touchers(f, t, ARRAY_SIZE(t), 50, &stop);
    run_main_loop(load_seconds * 1000);
    qatomic_set(&stop, true);
    join_touchers(t, ARRAY_SIZE(t));
    check_all(f);

    /* Space returns: what is left fits into limit and store. */
    discard(f, 0, limit - slots / 4);
    memset(f->gen, 0, (limit - slots / 4) * sizeof(f->gen[0]));
    while (store_full(f) || charged(f) > limit) {
        run_main_loop(5);
    }
    check_all(f);
    evict(f, f->npages - slots / 4, slots / 4, true);
    check_all(f);
}

/* Two regions with sizes that fit nothing, and addresses beside them */
static void test_regions(Fixture *f)
{
    uint64_t a = f->npages / 3 + 5, b = f->npages - a - 3;
    PagerRegion list[] = {
        { .host = (uint8_t *)page_at(f, 0), .npages = a },
        { .host = (uint8_t *)page_at(f, a + 3), .npages = b },
    };
    uint64_t page;

    pager_set_regions(f->p, list, ARRAY_SIZE(list));
    put_all(f, 1);
    for (uint64_t i = 0; i < f->npages; i++) {
        bool ours = i < a || i >= a + 3;

        g_assert(pager_lookup(f->p, page_at(f, i), &page) == ours);
        if (ours) {
            g_assert(pager_addr(f->p, page) == page_at(f, i));
        }
    }
    g_assert(!pager_lookup(f->p, f->mem - 1, &page));
    g_assert(!pager_lookup(f->p, page_at(f, f->npages), &page));
    touch_under_limit(f, f->npages * BSST_PAGE_SIZE / 3, load_seconds);
    g_assert(present(f, a) && present(f, a + 1) && present(f, a + 2));
    /* RAM that goes away while it is armed */
    pager_remove_region(f->p, list[0].host);
    g_assert(!pager_lookup(f->p, list[0].host, &page));
}

/* Running them */

static const Case test_case[] = {
    { "/pager/evict/threads", test_evict, { 4 * MiB, 64 * MiB, "threads" } },
    { "/pager/evict/native", test_evict, { 4 * MiB, 64 * MiB, "native" } },
    { "/pager/evict/io_uring", test_evict, { 4 * MiB, 64 * MiB, "io_uring" } },
    { "/pager/evict/one-shard", test_evict,
      { 4 * MiB, 64 * MiB, .shards = 1, .cluster = 1 } },
    { "/pager/zero", test_zero, { 4 * MiB, 64 * MiB } },
    { "/pager/regions", test_regions, { 96 * MiB, 256 * MiB } },
    { "/pager/limit/threads", test_limit, { 64 * MiB, 256 * MiB, "threads" } },
    { "/pager/limit/native", test_limit, { 64 * MiB, 256 * MiB, "native" } },
    { "/pager/limit/io_uring", test_limit,
      { 64 * MiB, 256 * MiB, "io_uring", .shards = 3, .cluster = 32 } },
    { "/pager/off-and-on", test_off_and_on,
      { 64 * MiB, 256 * MiB, "io_uring" } },
    { "/pager/claim/states", test_claim, { 4 * MiB, 64 * MiB } },
    { "/pager/claim/slots", test_claim_slots, { 4 * MiB, 64 * MiB } },
    { "/pager/claim/regions", test_claim_regions, { 4 * MiB, 64 * MiB } },
    { "/pager/claim/load", test_claim_under_load, { 64 * MiB, 256 * MiB } },
    { "/pager/install/states", test_install, { 4 * MiB, 64 * MiB } },
    { "/pager/install/load", test_install_under_load,
      { 64 * MiB, 256 * MiB } },
    { "/pager/written", test_written, { 1 * MiB, 64 * MiB } },
    { "/pager/written-neighbours", test_written_neighbours,
      { 1 * MiB, 64 * MiB } },
    { "/pager/discard/states", test_discard, { 4 * MiB, 64 * MiB } },
    { "/pager/discard/races", test_discard_races, { 64 * MiB, 256 * MiB } },
    { "/pager/discard/populate", test_discard_populate,
      { 1 * MiB, 64 * MiB } },
    { "/pager/store-full", test_store_full, { 64 * MiB, 4 * MiB } },
};

int main(int argc, char **argv)
{
    return pager_test_main(argc, argv, test_case, ARRAY_SIZE(test_case));
}
