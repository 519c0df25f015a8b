/*
 * Clean pages keep their slot: real faults, a real store, no VM
 *
 * The moment between the kernel's answer that a page has not been written and
 * what is made of it is held by a pread() of our own, which /proc/self/pagemap
 * is read with.
 *
 * This work is licensed under the terms of the GNU GPL, version 2 or later.
 * See the COPYING file in the top-level directory.
 */

#include "qemu/osdep.h"
#include <sys/syscall.h>
#include <sys/uio.h>
#ifdef CONFIG_LINUX_IO_URING
#include <liburing.h>
#endif
#include "block/aio.h"
#include "block/aio-wait.h"
#include "hw/swapper/uffd.h"
#include "pager-fixture.h"
#include "qemu/memalign.h"
#include "qemu/units.h"

/* What happens around the next look at the page table's entry of @at */
typedef struct LookHook {
    Fixture *f;
    uint64_t page;
    void (*before)(Fixture *f, uint64_t page);
    void (*after)(Fixture *f, uint64_t page);
    unsigned calls;
} LookHook;

static LookHook *look_hook;

ssize_t pread(int fd, void *buf, size_t bytes, off_t offset)
{
    LookHook *h = qatomic_read(&look_hook);
    ssize_t ret;

    if (h && fd == h->f->p->pagemap_fd) {
        off_t at = (uintptr_t)page_at(h->f, h->page) / BSST_PAGE_SIZE * 8;

        if (at < offset || at >= offset + bytes) {
            h = NULL;
        } else {
            qatomic_set(&look_hook, NULL);
            h->calls++;
            if (h->before) {
                h->before(h->f, h->page);
            }
        }
    } else {
        h = NULL;
    }
    ret = syscall(SYS_pread64, fd, buf, bytes, offset);
    if (h && h->after) {
        h->after(h->f, h->page);
    }
    return ret;
}

static uint64_t written_bytes(const Fixture *f)
{
    BsstStoreStats *st = bsst_store_query(f->store);
    uint64_t n = st->write_bytes;

    qapi_free_BsstStoreStats(st);
    return n;
}

static uint64_t bound(Fixture *f)
{
    QEMU_LOCK_GUARD(&f->p->lock);
    return f->p->pages.nbound;
}

static bool is_bound(Fixture *f, uint64_t page)
{
    QEMU_LOCK_GUARD(&f->p->lock);
    return page_is_bound(&f->p->pages, page);
}

/* Whoever touches a page goes on before its state says so; and neighbours. */
static void settle(Fixture *f)
{
    while (count(f, PAGE_LOADING) || count(f, PAGE_INSTALLING)) {
        run_main_loop(1);
    }
}

/* The pages come back for a read, and stay. */
static void read_pages(Fixture *f, uint64_t page, uint64_t n)
{
    for (uint64_t i = page; i < page + n; i++) {
        check(page_at(f, i), i, f->gen[i]);
    }
    settle(f);
}

/* All pages are resident, bound and clean. */
static void bind_all(Fixture *f)
{
    put_all(f, 1);
    evict(f, 0, f->npages, true);
    read_pages(f, 0, f->npages);
    g_assert_cmpuint(count(f, PAGE_RESIDENT), ==, f->npages);
    g_assert_cmpuint(bound(f), ==, f->npages);
    check_slots(f, f->npages);
}

/* Pages that were only read leave again without a byte written. */
static void test_read_only(Fixture *f)
{
    uint64_t bytes;

    bind_all(f);
    bytes = written_bytes(f);
    for (unsigned round = 1; round <= 3; round++) {
        evict(f, 0, f->npages, true);
        g_assert_cmpuint(count(f, PAGE_SWAPPED), ==, f->npages);
        g_assert_cmpuint(counters(f).clean_outs, ==, round * f->npages);
        read_pages(f, 0, f->npages);
    }
    g_assert_cmpuint(written_bytes(f), ==, bytes);
    g_assert_cmpuint(counters(f).unbound_written, ==, 0);
    check_slots(f, f->npages);
}

/* The same, as the policy evicts: under a limit. */
static void test_limit(Fixture *f)
{
    uint64_t outs, bytes;

    put_all(f, 1);
    evict(f, 0, f->npages, true);
    bytes = written_bytes(f);
    pager_set_limit(f->p, f->npages * BSST_PAGE_SIZE / 2);
    for (unsigned round = 0; round < 4; round++) {
        read_pages(f, 0, f->npages);
    }
    outs = counters(f).clean_outs;
    g_assert_cmpuint(outs, >=, f->npages);
    g_assert_cmpuint(written_bytes(f), ==, bytes);
    /* What is written is told from what is not. */
    for (uint64_t i = 0; i < f->npages; i += 2) {
        put(f, i, 2);
    }
    for (unsigned round = 0; round < 4; round++) {
        read_pages(f, 0, f->npages);
    }
    g_assert_cmpuint(written_bytes(f), >, bytes);
    /* Once each; those that leave while put() still fills them, once more. */
    g_assert_cmpuint(written_bytes(f) - bytes, <=,
                     (f->npages / 2 + f->npages / 100) * BSST_PAGE_SIZE);
}

/* Off: every page is written each time. */
static void test_not_kept(Fixture *f)
{
    uint64_t bytes;

    f->p->keep_clean = false;
    put_all(f, 1);
    evict(f, 0, f->npages, true);
    read_pages(f, 0, f->npages);
    g_assert_cmpuint(bound(f), ==, 0);
    check_slots(f, 0);
    bytes = written_bytes(f);
    evict(f, 0, f->npages, true);
    g_assert_cmpuint(written_bytes(f), ==, 2 * bytes);
    check_all(f);
}

/* What comes for a write is not bound; its neighbours are. */
static void test_write_fault(Fixture *f)
{
    put_all(f, 1);
    evict(f, 0, f->npages, true);
    put(f, 3, 2);
    settle(f);
    for (uint64_t i = 0; i < 8; i++) {
        g_assert(is_bound(f, i) == (i != 3));
    }
    check_slots(f, f->npages - 1);
    check_all(f);
}

/* How a page is written */

static void write_cpu(Fixture *f, uint64_t page)
{
    put(f, page, 2);
}

/* The kernel copies */
static void write_syscall(Fixture *f, uint64_t page)
{
    g_autofree uint64_t *buf = g_malloc(BSST_PAGE_SIZE);
    int fd[2];

    fill(buf, page, 2);
    g_assert(g_unix_open_pipe(fd, FD_CLOEXEC, NULL));
    g_assert_cmpint(write(fd[1], buf, BSST_PAGE_SIZE), ==, BSST_PAGE_SIZE);
    g_assert_cmpint(read(fd[0], page_at(f, page), BSST_PAGE_SIZE), ==,
                    BSST_PAGE_SIZE);
    close(fd[0]);
    close(fd[1]);
    f->gen[page] = 2;
}

/* The kernel pins the page, as it does for another process */
static void write_vm(Fixture *f, uint64_t page)
{
    g_autofree uint64_t *buf = g_malloc(BSST_PAGE_SIZE);
    struct iovec from = { buf, BSST_PAGE_SIZE };
    struct iovec to = { page_at(f, page), BSST_PAGE_SIZE };

    fill(buf, page, 2);
    g_assert_cmpint(process_vm_writev(getpid(), &from, 1, &to, 1, 0), ==,
                    BSST_PAGE_SIZE);
    f->gen[page] = 2;
}

/* A file of one page with what is to be read; O_DIRECT: DMA */
static int open_source(Fixture *f, uint64_t page)
{
    g_autofree char *path = g_build_filename(f->dir, "source", NULL);
    uint64_t *buf = qemu_memalign(BSST_PAGE_SIZE, BSST_PAGE_SIZE);
    int fd;

    fill(buf, page, 2);
    g_assert(g_file_set_contents(path, (char *)buf, BSST_PAGE_SIZE, NULL));
    qemu_vfree(buf);
    fd = open(path, O_RDONLY | O_DIRECT | O_CLOEXEC);
    if (fd < 0) {
        g_test_message("no O_DIRECT here: %s", strerror(errno));
        fd = open(path, O_RDONLY | O_CLOEXEC);
    }
    g_assert_cmpint(fd, >=, 0);
    unlink(path);
    return fd;
}

static void write_preadv(Fixture *f, uint64_t page)
{
    struct iovec to = { page_at(f, page), BSST_PAGE_SIZE };
    int fd = open_source(f, page);

    g_assert_cmpint(preadv(fd, &to, 1, 0), ==, BSST_PAGE_SIZE);
    close(fd);
    f->gen[page] = 2;
}

static void write_io_uring(Fixture *f, uint64_t page)
{
#ifdef CONFIG_LINUX_IO_URING
    int fd = open_source(f, page);
    struct io_uring_cqe *cqe;
    struct io_uring ring;

    if (io_uring_queue_init(1, &ring, 0) == 0) {
        io_uring_prep_read(io_uring_get_sqe(&ring), fd, page_at(f, page),
                           BSST_PAGE_SIZE, 0);
        g_assert_cmpint(io_uring_submit(&ring), ==, 1);
        g_assert_cmpint(io_uring_wait_cqe(&ring, &cqe), ==, 0);
        g_assert_cmpint(cqe->res, ==, BSST_PAGE_SIZE);
        io_uring_queue_exit(&ring);
        close(fd);
        f->gen[page] = 2;
        return;
    }
    close(fd);
#endif
    g_test_message("no io_uring here");
    write_cpu(f, page);
}

static const struct {
    const char *name;
    void (*write)(Fixture *f, uint64_t page);
} writer[] = {
    { "processor", write_cpu },
    { "read", write_syscall },
    { "process_vm_writev", write_vm },
    { "preadv", write_preadv },
    { "io_uring", write_io_uring },
};

/* Whoever writes, the page is written to the store. */
static void test_written(Fixture *f)
{
    bind_all(f);
    for (unsigned i = 0; i < ARRAY_SIZE(writer); i++) {
        uint64_t page = 8 * i + 5;
        uint64_t bytes = written_bytes(f);

        g_test_message("%s", writer[i].name);
        writer[i].write(f, page);
        check(page_at(f, page), page, 2);
        evict(f, page, 1, true);
        g_assert_cmpuint(written_bytes(f), ==, bytes + BSST_PAGE_SIZE);
        g_assert_cmpuint(counters(f).unbound_written, ==, i + 1);
        read_pages(f, page, 1);
        g_assert(is_bound(f, page));
    }
    check_slots(f, f->npages);
    evict(f, 0, f->npages, true);
    g_assert_cmpuint(counters(f).unbound_written, ==, ARRAY_SIZE(writer));
    /* The look at memory was enough: no checksum had to tell. */
    g_assert_cmpuint(counters(f).clean_refuted, ==, 0);
    check_all(f);
}

/* P9: a write after the look and before the move */
static void test_written_between(Fixture *f)
{
    LookHook h = { .f = f, .page = 5, .after = write_cpu };

    bind_all(f);
    qatomic_set(&look_hook, &h);
    evict(f, 0, 8, true);
    g_assert_cmpuint(h.calls, ==, 1);
    g_assert_cmpuint(counters(f).clean_refuted, ==, 1);
    g_assert_cmpuint(counters(f).unbound_written, ==, 1);
    g_assert_cmpuint(counters(f).clean_outs, ==, 7);
    g_assert_cmpuint(f->gen[5], ==, 2);
    check_all(f);
    check_slots(f, f->npages);
}

static void test_discard(Fixture *f)
{
    uint64_t third = f->npages / 3;

    bind_all(f);
    evict(f, 0, third, true);
    evict(f, third, third, false);
    discard(f, 0, f->npages);
    memset(f->gen, 0, f->npages * sizeof(f->gen[0]));
    g_assert_cmpuint(bound(f), ==, 0);
    /* What frames have goes when these are reused. */
    pager_reclaim_frames(f->p);
    check_slots(f, 0);
    check_all(f);
}

/* A disk read fills pages that left clean, and that are victims. */
static void test_install(Fixture *f)
{
    uint64_t *buf = qemu_memalign(BSST_PAGE_SIZE, BSST_PAGE_SIZE);

    bind_all(f);
    evict(f, 0, 8, true);
    evict(f, 8, 8, false);
    for (uint64_t i = 0; i < 16; i++) {
        fill(buf, i, 2);
        g_assert(pager_install(&f->p->base, page_at(f, i), buf));
        f->gen[i] = 2;
        g_assert(!is_bound(f, i));
    }
    pager_reclaim_frames(f->p);
    check_slots(f, f->npages - 16);
    check_all(f);
    qemu_vfree(buf);
}

/* The second chance: from the victim cache, for a read or for a write */
static void test_victim(Fixture *f)
{
    uint64_t bytes;

    bind_all(f);
    bytes = written_bytes(f);
    evict(f, 0, 16, false);
    g_assert_cmpuint(count(f, PAGE_VICTIM), ==, 16);
    read_pages(f, 0, 8);
    for (uint64_t i = 8; i < 16; i++) {
        put(f, i, 2);
    }
    settle(f);
    for (uint64_t i = 0; i < 16; i++) {
        g_assert_cmpint(state_of(f, i), ==, PAGE_RESIDENT);
        g_assert(is_bound(f, i) == (i < 8));
    }
    evict(f, 0, 16, true);
    g_assert_cmpuint(written_bytes(f), ==, bytes + 8 * BSST_PAGE_SIZE);
    check_all(f);
    pager_reclaim_frames(f->p);
    check_slots(f, f->npages);
}

/* A page that may not leave stays as it was: bound. */
static void test_refused(Fixture *f)
{
    uint64_t bytes;

    bind_all(f);
    bytes = written_bytes(f);
    /* Locked, and not touched (which would be for writing) */
    g_assert_cmpint(mlock2(page_at(f, 5), BSST_PAGE_SIZE, MLOCK_ONFAULT), ==,
                    0);
    pager_evict_range(f->p, 4, 4, true);
    g_assert_cmpuint(counters(f).refused_other, >, 0);
    g_assert_cmpint(state_of(f, 5), ==, PAGE_RESIDENT);
    g_assert(is_bound(f, 5));
    g_assert_cmpint(munlock(page_at(f, 5), BSST_PAGE_SIZE), ==, 0);
    evict(f, 4, 4, true);
    g_assert_cmpuint(written_bytes(f), ==, bytes);
    check_all(f);
}

/* Claims */

static BsstPageClaim claim(Fixture *f, uint64_t page)
{
    void *addr = page_at(f, page);
    BsstPageClaim c;

    f->p->base.ops->claim(&f->p->base, &addr, &c, 1);
    return c;
}

static void drop(Fixture *f, const BsstPageClaim *c)
{
    f->p->base.ops->release(&f->p->base, c, 1);
    if (c->kind == BSST_PAGE_SLOT) {
        bsst_slot_unref(f->store, &c->slot, 1);
    }
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

static void check_slot(Fixture *f, BsstSlot slot, uint64_t page, uint64_t gen)
{
    SlotRead r = { .f = f, .slot = slot, .ret = -EINPROGRESS };

    r.buf = qemu_memalign(BSST_PAGE_SIZE, BSST_PAGE_SIZE);
    qemu_coroutine_enter(qemu_coroutine_create(slot_read_co_entry, &r));
    AIO_WAIT_WHILE_UNLOCKED(NULL, r.ret == -EINPROGRESS);
    g_assert_cmpint(r.ret, ==, 0);
    check(r.buf, page, gen);
    qemu_vfree(r.buf);
}

static void test_claim(Fixture *f)
{
    g_autofree void **addr = g_new(void *, f->npages);
    g_autofree BsstPageClaim *c = g_new(BsstPageClaim, f->npages);
    uint64_t i, dirty = 0;

    bind_all(f);
    for (i = 0; i < f->npages; i++) {
        addr[i] = page_at(f, i);
        if (i % 7 == 3) {
            put(f, i, 2);
            dirty++;
        }
    }
    evict(f, 64, 8, false);         /* clean victims, but for one or two */
    f->p->base.ops->claim(&f->p->base, addr, c, f->npages);
    for (i = 0; i < f->npages; i++) {
        bool victim = i >= 64 && i < 72;

        if (f->gen[i] == 2) {
            g_assert_cmpint(c[i].kind, ==, victim ? BSST_PAGE_BUFFER
                                                  : BSST_PAGE_PRESENT);
        } else {
            g_assert_cmpint(c[i].kind, ==, BSST_PAGE_SLOT);
            g_assert(c[i].bound == !victim);
            check_slot(f, c[i].slot, i, 1);
        }
        /* What was found to be written is not bound any more. */
        g_assert(is_bound(f, i) == (f->gen[i] == 1 && !victim));
    }
    g_assert_cmpuint(counters(f).unbound_written, ==, dirty);
    /* A claim outlives the page's content. */
    for (i = 0; i < f->npages; i++) {
        put(f, i, 3);
    }
    evict(f, 0, f->npages, true);
    for (i = 0; i < f->npages; i++) {
        if (c[i].kind == BSST_PAGE_SLOT) {
            check_slot(f, c[i].slot, i, 1);
        }
        drop(f, &c[i]);
    }
    check_slots(f, f->npages);
    check_all(f);
}

static void evict_and_read(Fixture *f, uint64_t page)
{
    evict(f, page, 1, true);
    read_pages(f, page, 1);
    g_assert(is_bound(f, page));
}

/*
 * P8: the page was written, and before we look it leaves and comes back, bound to
 * another slot: it is protected, but what we have referenced is old.
 */
static void test_claim_other_slot(Fixture *f)
{
    LookHook h = { .f = f, .page = 5, .before = evict_and_read };
    BsstPageClaim c;

    bind_all(f);
    put(f, 5, 2);
    qatomic_set(&look_hook, &h);
    c = claim(f, 5);
    g_assert_cmpuint(h.calls, ==, 1);
    g_assert_cmpint(c.kind, ==, BSST_PAGE_PRESENT);
    drop(f, &c);
    check_slots(f, f->npages);
    /* And now it is clean. */
    c = claim(f, 5);
    g_assert_cmpint(c.kind, ==, BSST_PAGE_SLOT);
    check_slot(f, c.slot, 5, 2);
    drop(f, &c);
}

static void discard_one(Fixture *f, uint64_t page)
{
    discard(f, page, 1);
    f->gen[page] = 0;
}

/* Discarded while we look */
static void test_claim_discarded(Fixture *f)
{
    LookHook h = { .f = f, .page = 5, .after = discard_one };
    BsstPageClaim c;

    bind_all(f);
    qatomic_set(&look_hook, &h);
    c = claim(f, 5);
    g_assert_cmpuint(h.calls, ==, 1);
    g_assert_cmpint(c.kind, ==, BSST_PAGE_PRESENT);
    drop(f, &c);
    check_slots(f, f->npages - 1);
    check_all(f);
}

static void tell_written(Fixture *f, uint64_t page)
{
    void *addr = page_at(f, page);

    f->p->base.ops->written(&f->p->base, &addr, 1);
}

/* A clean victim that is written to a disk comes back. */
static void test_recall(Fixture *f)
{
    BsstPageClaim c;

    bind_all(f);
    evict(f, 5, 1, false);
    c = claim(f, 5);
    g_assert_cmpint(c.kind, ==, BSST_PAGE_SLOT);
    g_assert(!c.bound);
    tell_written(f, 5);
    while (state_of(f, 5) != PAGE_RESIDENT) {
        run_main_loop(1);
    }
    g_assert(is_bound(f, 5));
    g_assert_cmpuint(counters(f).intercepted_restored, ==, 1);
    g_assert_cmpuint(counters(f).faults_victim, ==, 0);
    drop(f, &c);
    put(f, 5, 2);
    evict(f, 5, 1, true);
    g_assert_cmpuint(counters(f).restored[1][RESTORE_WRITTEN], ==, 1);
    check_all(f);
}

/* What becomes of pages that come back unasked is counted, once. */
static void test_restored(Fixture *f)
{
    const uint64_t first = PAGER_WINDOW, end = 2 * PAGER_WINDOW;
    void *addr[] = { page_at(f, first + 6), page_at(f, first + 7) };
    PagerCounters n;
    BsstPageClaim c;
    bool absent[2];

    put_all(f, 1);
    evict(f, 0, f->npages, true);
    c = claim(f, first + 3);
    tell_written(f, first + 3);
    while (count(f, PAGE_RESIDENT) < PAGER_WINDOW) {
        run_main_loop(1);
    }
    put(f, first + 3, 2);
    put(f, first + 4, 2);
    discard(f, first + 5, 1);
    f->gen[first + 5] = 0;
    put(f, first + 7, 2);
    f->p->base.ops->absent(&f->p->base, addr, absent, 2);
    g_assert(!absent[0] && !absent[1]);
    for (int round = 0; round < 2; round++) {
        pager_evict_range(f->p, first, end - first, true);
        read_pages(f, first, end - first);
    }
    n = counters(f);
    for (int i = 0; i < RESTORE_OUTCOME__MAX; i++) {
        static const uint64_t neighbours[RESTORE_OUTCOME__MAX] = {
            [RESTORE_WRITTEN] = 2,
            [RESTORE_DISCARDED] = 1,
            [RESTORE_READ_OVER] = 1,
            [RESTORE_UNWRITTEN] = PAGER_WINDOW - 5,
        };

        g_assert_cmpuint(n.restored[0][i], ==, neighbours[i]);
        g_assert_cmpuint(n.restored[1][i], ==, i == RESTORE_WRITTEN);
    }
    drop(f, &c);
    check_all(f);
}

/* Slots of pages that were written come back without anybody asking. */
static void test_sweep(Fixture *f)
{
    bind_all(f);
    pager_set_limit(f->p, 2 * f->npages * BSST_PAGE_SIZE);
    for (uint64_t i = 0; i < f->npages; i += 2) {
        put(f, i, 2);
    }
    check_slots(f, f->npages / 2);
    g_assert_cmpuint(bound(f), ==, f->npages / 2);
    g_assert_cmpuint(counters(f).unbound_written, ==, f->npages / 2);
    for (uint64_t i = 0; i < f->npages; i++) {
        g_assert(is_bound(f, i) == i % 2);
    }
    check_all(f);
}

/* P10: the store has as many slots as half of the pages. */
static void test_store_short(Fixture *f)
{
    uint64_t half = bsst_store_nslots(f->store);

    g_assert_cmpuint(half, <, f->npages * 3 / 4);
    put_all(f, 1);
    evict(f, 0, half, true);
    read_pages(f, 0, half);
    /* Its ticks may have begun to give up: the store has no reserve. */
    evict(f, f->npages - half, half, true);
    g_assert_cmpuint(counters(f).refused_store_full, ==, 0);
    g_assert_cmpuint(counters(f).unbound_given_up, >, 0);
    g_assert_cmpuint(bound(f), ==, 0);
    check_all(f);
}

/* Under load */

typedef struct Toucher {
    Fixture *f;
    QemuThread thread;
    unsigned index, of;
    bool *stop;
} Toucher;

static void *toucher_run(void *opaque)
{
    Toucher *t = opaque;
    Fixture *f = t->f;
    GRand *rand = g_rand_new_with_seed(seed + t->index);

    while (!qatomic_read(t->stop)) {
        uint64_t page = g_rand_int_range(rand, 0, f->npages / t->of) * t->of +
                        t->index;

        check(page_at(f, page), page, f->gen[page]);
        if (g_rand_int_range(rand, 0, 10) == 0) {
            put(f, page, f->gen[page] + 1);
        }
    }
    g_rand_free(rand);
    return NULL;
}

/*
 * Threads read and seldom write under a limit, while the pages that are ours are
 * claimed, written, evicted and discarded.
 */
static void test_load(Fixture *f)
{
    int64_t end = g_get_monotonic_time() + 2 * load_seconds * 1000000ll;
    GRand *rand = g_rand_new_with_seed(seed + 100);
    uint64_t slots = 0;
    bool stop = false;
    PagerCounters n;
    Toucher t[3];

    put_all(f, 1);
    pager_set_limit(f->p, f->npages * BSST_PAGE_SIZE / 2);
    for (unsigned i = 0; i < ARRAY_SIZE(t); i++) {
        t[i] = (Toucher) { .f = f, .index = i, .of = 4, .stop = &stop };
        qemu_thread_create(&t[i].thread, "toucher", toucher_run, &t[i],
                           QEMU_THREAD_JOINABLE);
    }
    while (g_get_monotonic_time() < end || !counters(f).clean_claims) {
        uint64_t page = g_rand_int_range(rand, 0, f->npages / 4) * 4 + 3;
        BsstPageClaim c;

        switch (g_rand_int_range(rand, 0, 4)) {
        case 0:
            put(f, page, f->gen[page] + 1);
            break;
        case 1:
            if (g_rand_int_range(rand, 0, 64) == 0) {
                discard_one(f, page);
            }
            break;
        case 2:
            pager_evict_range(f->p, page, 1, g_rand_boolean(rand));
            break;
        default:
            check(page_at(f, page), page, f->gen[page]);
            break;
        }
        c = claim(f, page);
        if (c.kind == BSST_PAGE_SLOT) {
            check_slot(f, c.slot, page, f->gen[page]);
            slots++;
        }
        drop(f, &c);
        aio_poll(qemu_get_aio_context(), false);
    }
    qatomic_set(&stop, true);
    for (unsigned i = 0; i < ARRAY_SIZE(t); i++) {
        qemu_thread_join(&t[i].thread);
    }
    n = counters(f);
    g_test_message("%" PRIu64 " pages out clean and %" PRIu64 " written, %"
                   PRIu64 " written while they moved; %" PRIu64 " claims of "
                   "slots, %" PRIu64 " of them of resident pages", n.clean_outs,
                   n.swap_outs, n.clean_refuted, slots, n.clean_claims);
    g_assert_cmpuint(n.clean_outs, >, 0);
    check_all(f);
    g_rand_free(rand);
}

/* Running them */

#define TEST(name, function, ram_mib, store_mib) \
    { "/pager-bound/" name, function, { ram_mib * MiB, store_mib * MiB } }

static const Case test_case[] = {
    TEST("read-only", test_read_only, 4, 64),
    TEST("limit", test_limit, 64, 256),
    TEST("not-kept", test_not_kept, 1, 64),
    TEST("write-fault", test_write_fault, 1, 64),
    TEST("written", test_written, 1, 64),
    TEST("written-between", test_written_between, 1, 64),
    TEST("discard", test_discard, 4, 64),
    TEST("install", test_install, 1, 64),
    TEST("victim", test_victim, 1, 64),
    TEST("refused", test_refused, 1, 64),
    TEST("claim", test_claim, 1, 64),
    TEST("claim-other-slot", test_claim_other_slot, 1, 64),
    TEST("claim-discarded", test_claim_discarded, 1, 64),
    TEST("recall", test_recall, 1, 64),
    TEST("restored", test_restored, 1, 64),
    TEST("sweep", test_sweep, 16, 64),
    TEST("store-short", test_store_short, 32, 16),
    TEST("load", test_load, 64, 256),
};

int main(int argc, char **argv)
{
    return pager_test_main(argc, argv, test_case, ARRAY_SIZE(test_case));
}
