/*
 * Pager: a store that fails behind its back, and recovers
 *
 * Who touches a page that cannot be read waits; nobody sees wrong data, others
 * go on, and so does who waited once the store can be read again.
 *
 * What is done to the store is real: its bytes are changed past the page
 * cache, its file is cut off, or its descriptor is replaced by one that cannot
 * be read (or written), so that every way of I/O gets the kernel's own error.
 *
 * This work is licensed under the terms of the GNU GPL, version 2 or later.
 * See the COPYING file in the top-level directory.
 */

#include "qemu/osdep.h"
#include "block/aio-wait.h"
#include "pager-fixture.h"
#include "qemu/memalign.h"
#include "qemu/timer.h"
#include "qemu/units.h"

#define BAD         101     /* the page that cannot be read */
#define CLUSTER     8       /* pages that are loaded together */
#define RESIDENT    512     /* pages from here on that are not in the store */
#define VICTIMS     600
#define END         640

/* Damage */

typedef struct Damage {
    Fixture *f;
    int fd;
    int64_t offset;         /* of the page in the store's file */
    size_t bytes;           /* that were saved from there on */
    uint8_t *saved;
    int replaced, original; /* descriptors */
} Damage;

/* Where the store has the content of @page. */
static int64_t find_page(Damage *d, uint64_t page)
{
    uint64_t *want = qemu_memalign(BSST_PAGE_SIZE, BSST_PAGE_SIZE);
    uint64_t *buf = qemu_memalign(BSST_PAGE_SIZE, BSST_PAGE_SIZE);
    int64_t found = -1, at = 0;

    fill(want, page, d->f->gen[page]);
    while ((at = lseek(d->fd, at, SEEK_DATA)) >= 0) {
        at &= -(int64_t)BSST_PAGE_SIZE;
        if (pread(d->fd, buf, BSST_PAGE_SIZE, at) == BSST_PAGE_SIZE &&
            memcmp(buf, want, BSST_PAGE_SIZE) == 0) {
            g_assert_cmpint(found, ==, -1);
            found = at;
        }
        at += BSST_PAGE_SIZE;
    }
    g_assert_cmpint(found, >=, 0);
    qemu_vfree(want);
    qemu_vfree(buf);
    return found;
}

static void damage_init(Damage *d, Fixture *f)
{
    *d = (Damage) { .f = f, .replaced = -1, .original = -1 };
    d->fd = open(f->path, O_RDWR | O_DIRECT | O_CLOEXEC);
    if (d->fd < 0) {
        d->fd = open(f->path, O_RDWR | O_CLOEXEC);
    }
    g_assert_cmpint(d->fd, >=, 0);
}

static void damage_save(Damage *d, uint64_t page, size_t bytes)
{
    d->offset = find_page(d, page);
    d->bytes = bytes ?: lseek(d->fd, 0, SEEK_END) - d->offset;
    d->saved = qemu_memalign(BSST_PAGE_SIZE, d->bytes);
    g_assert_cmpint(pread(d->fd, d->saved, d->bytes, d->offset), ==, d->bytes);
}

static void damage_undo(Damage *d)
{
    if (d->saved) {
        g_assert_cmpint(pwrite(d->fd, d->saved, d->bytes, d->offset), ==,
                        d->bytes);
        qemu_vfree(d->saved);
    }
    if (d->replaced >= 0) {
        g_assert_cmpint(dup2(d->original, d->replaced), ==, d->replaced);
        close(d->original);
    }
    close(d->fd);
}

/* One bit, so that it takes a checksum to see it */
static void damage_bit(Damage *d)
{
    damage_save(d, BAD, BSST_PAGE_SIZE);
    d->saved[1000] ^= 4;
    g_assert_cmpint(pwrite(d->fd, d->saved, d->bytes, d->offset), ==,
                    d->bytes);
    d->saved[1000] ^= 4;
}

/* From the middle of the page on, nothing is left. */
static void damage_cut(Damage *d)
{
    damage_save(d, BAD, 0);
    g_assert_cmpint(ftruncate(d->fd, d->offset + BSST_PAGE_SIZE / 2), ==, 0);
}

/*
 * Let the store's own descriptor, which keeps its number, be one with @flags.
 * It is the only one that goes past the page cache.
 */
static bool damage_descriptor(Damage *d, int flags)
{
    int replacement;

    for (int fd = 0; fd < 256 && d->replaced < 0; fd++) {
        g_autofree char *name = g_strdup_printf("/proc/self/fd/%d", fd);
        g_autofree char *path = fd != d->fd ? g_file_read_link(name, NULL)
                                            : NULL;

        if (path && g_str_equal(path, d->f->path) &&
            fcntl(fd, F_GETFL) & O_DIRECT) {
            d->replaced = fd;
        }
    }
    if (d->replaced < 0) {
        return false;
    }
    /* Keeps the locks, too. */
    d->original = fcntl(d->replaced, F_DUPFD_CLOEXEC, 0);
    replacement = open(d->f->path, flags | O_DIRECT | O_CLOEXEC);
    g_assert_cmpint(replacement, >=, 0);
    g_assert_cmpint(dup2(replacement, d->replaced), ==, d->replaced);
    close(replacement);
    return true;
}

/* What the pager and the store say of it */

static uint64_t store_errors(Fixture *f)
{
    BsstStoreStats *st = bsst_store_query(f->store);
    uint64_t n = st->checksum_errors + st->io_errors;

    qapi_free_BsstStoreStats(st);
    return n;
}

static bool read_error(Fixture *f)
{
    QEMU_LOCK_GUARD(&f->p->lock);
    return f->p->read_error;
}

static bool write_error(Fixture *f)
{
    QEMU_LOCK_GUARD(&f->p->lock);
    return f->p->write_error;
}

/* Time of the last event */
static int64_t event_ns(Fixture *f)
{
    QEMU_LOCK_GUARD(&f->p->lock);
    return f->p->event_ns;
}

/* A thread that touches one page */

typedef struct Reader {
    Fixture *f;
    uint64_t page;
    QemuThread thread;
    bool done;
} Reader;

static void *reader_run(void *opaque)
{
    Reader *r = opaque;

    qatomic_read(page_at(r->f, r->page));
    qatomic_set(&r->done, true);
    check(page_at(r->f, r->page), r->page, qatomic_read(&r->f->gen[r->page]));
    return NULL;
}

static void reader_start(Reader *r, Fixture *f, uint64_t page)
{
    *r = (Reader) { .f = f, .page = page };
    qemu_thread_create(&r->thread, "reader", reader_run, r,
                       QEMU_THREAD_JOINABLE);
}

/* It waits, the read is repeated about once a second, and an event is sent. */
static void check_waits(Reader *r)
{
    Fixture *f = r->f;
    uint64_t errors, seconds;
    int64_t event;

    while (!read_error(f)) {
        run_main_loop(1);
    }
    errors = store_errors(f);
    event = event_ns(f);
    g_assert_cmpuint(errors, >, 0);
    g_assert_cmpint(event, >, 0);
    while (event_ns(f) == event || store_errors(f) == errors) {
        run_main_loop(10);
    }
    seconds = (event_ns(f) - event) / NANOSECONDS_PER_SECOND;
    g_assert_cmpuint(seconds, >=, 1);
    g_assert_cmpuint(store_errors(f), <=, errors + (seconds + 1) * CLUSTER);
    g_assert(read_error(f));
    g_assert(!qatomic_read(&r->done));
    g_assert(!present(f, r->page));
    g_assert_cmpint(state_of(f, r->page), ==, PAGE_LOADING);
}

static void check_recovers(Reader *r)
{
    qemu_thread_join(&r->thread);
    while (read_error(r->f)) {
        run_main_loop(1);
    }
}

/* Pages below RESIDENT go to the store, some of the others to frames. */
static void prepare(Fixture *f, Damage *d)
{
    f->expect_errors = true;
    put_all(f, 1);
    evict(f, 0, RESIDENT, true);
    evict(f, VICTIMS, END - VICTIMS, false);
    damage_init(d, f);
}

/* Everything else is as usable as ever. */
static void check_others(Fixture *f, uint64_t first, uint64_t end)
{
    for (uint64_t i = first; i < end; i++) {
        if (i != BAD) {
            check(page_at(f, i), i, f->gen[i]);
            put(f, i, f->gen[i] + 1);
        }
    }
}

/* Tests */

static void test_checksum(Fixture *f)
{
    Reader r[3];
    Damage d;

    prepare(f, &d);
    damage_bit(&d);
    for (unsigned i = 0; i < ARRAY_SIZE(r); i++) {
        reader_start(&r[i], f, BAD);
    }
    check_waits(&r[0]);
    check_others(f, 0, f->npages);
    /* They come and go meanwhile. */
    evict(f, 0, BAD, true);
    evict(f, BAD + 1, 200, false);
    check_others(f, 0, f->npages);
    g_assert_cmpint(state_of(f, BAD), ==, PAGE_LOADING);
    damage_undo(&d);
    for (unsigned i = 0; i < ARRAY_SIZE(r); i++) {
        check_recovers(&r[i]);
    }
    check_all(f);
}

static void test_short(Fixture *f)
{
    Damage d;
    Reader r;

    prepare(f, &d);
    damage_cut(&d);
    reader_start(&r, f, BAD);
    check_waits(&r);
    /* Slots were dealt out in the order of pages: those before it are whole. */
    check_others(f, 0, BAD);
    check_others(f, RESIDENT, f->npages);
    damage_undo(&d);
    check_recovers(&r);
    check_all(f);
}

static void test_io_error(Fixture *f)
{
    Reader r[2];
    Damage d;

    prepare(f, &d);
    if (!damage_descriptor(&d, O_WRONLY)) {
        g_test_skip("no O_DIRECT here");
        damage_undo(&d);
        return;
    }
    reader_start(&r[0], f, BAD);
    reader_start(&r[1], f, BAD + 2 * CLUSTER);
    check_waits(&r[0]);
    check_waits(&r[1]);
    check_others(f, RESIDENT, f->npages);
    damage_undo(&d);
    check_recovers(&r[0]);
    check_recovers(&r[1]);
    check_all(f);
}

/* Nobody needs the slot any more: a disk read fills the page. */
static void test_install(Fixture *f)
{
    uint64_t *buf = qemu_memalign(BSST_PAGE_SIZE, BSST_PAGE_SIZE);
    Damage d;
    Reader r;

    prepare(f, &d);
    damage_bit(&d);
    reader_start(&r, f, BAD);
    check_waits(&r);
    fill(buf, BAD, 7);
    qatomic_set(&f->gen[BAD], 7);
    g_assert(f->p->base.ops->install(&f->p->base, page_at(f, BAD), buf));
    qemu_thread_join(&r.thread);
    check_all(f);
    /* The loader notices, and drops the slot. */
    bring_all_back(f);
    check_slots(f, 0);
    damage_undo(&d);
    qemu_vfree(buf);
}

/* The guest gives the page up: it reads as zeroes. */
static void test_discard(Fixture *f)
{
    Damage d;
    Reader r;

    prepare(f, &d);
    damage_bit(&d);
    reader_start(&r, f, BAD);
    check_waits(&r);
    qatomic_set(&f->gen[BAD], 0);
    discard(f, BAD, 1);
    qemu_thread_join(&r.thread);
    check_all(f);
    bring_all_back(f);
    check_slots(f, 0);
    damage_undo(&d);
}

/* The limit is taken away: all but one page come back, and then that, too. */
static void test_release(Fixture *f)
{
    uint64_t errors;
    Damage d;

    prepare(f, &d);
    damage_bit(&d);
    pager_set_limit(f->p, 0);
    for (int i = 0; count(f, PAGE_RESIDENT) < f->npages - 1; i++) {
        g_assert_cmpint(i, <, 5000);
        run_main_loop(1);
    }
    /* About one try a second */
    errors = store_errors(f);
    run_main_loop(2500);
    g_assert_cmpuint(store_errors(f), >, errors);
    g_assert_cmpuint(store_errors(f), <=, errors + 3 * 4);
    g_assert(read_error(f));
    g_assert(qatomic_read(&f->p->base.armed));
    g_assert_cmpuint(count(f, PAGE_SWAPPED) + count(f, PAGE_LOADING), ==, 1);
    check_others(f, 0, f->npages);
    damage_undo(&d);
    bring_all_back(f);
    g_assert(!read_error(f));
    check_all(f);
}

/* What cannot be written stays in memory, and the limit yields. */
static void test_write_error(Fixture *f)
{
    uint64_t limit = f->npages / 2, errors;
    Damage d;

    f->expect_errors = true;
    damage_init(&d, f);
    if (!damage_descriptor(&d, O_RDONLY)) {
        g_test_skip("no O_DIRECT here");
        damage_undo(&d);
        return;
    }
    pager_set_limit(f->p, limit * BSST_PAGE_SIZE);
    put_all(f, 1);
    while (!write_error(f)) {
        run_main_loop(1);
    }
    g_assert_cmpint(event_ns(f), >, 0);
    put_all(f, 2);
    check_all(f);
    errors = store_errors(f);
    run_main_loop(2500);
    g_assert_cmpuint(store_errors(f), >, errors);
    g_assert_cmpuint(store_errors(f), <=, errors + 4 * PAGER_WRITES);
    g_assert_cmpuint(count(f, PAGE_SWAPPED), ==, 0);
    check_slots(f, 0);
    damage_undo(&d);
    while (count(f, PAGE_RESIDENT) > limit) {
        run_main_loop(1);
    }
    g_assert(!write_error(f));
    check_all(f);
}

static const Case test_case[] = {
    { "/pager/errors/checksum/threads", test_checksum,
      { 4 * MiB, 64 * MiB, "threads" } },
    { "/pager/errors/checksum/native", test_checksum,
      { 4 * MiB, 64 * MiB, "native" } },
    { "/pager/errors/checksum/io_uring", test_checksum,
      { 4 * MiB, 64 * MiB, "io_uring" } },
    { "/pager/errors/short/threads", test_short,
      { 4 * MiB, 64 * MiB, "threads" } },
    { "/pager/errors/short/native", test_short,
      { 4 * MiB, 64 * MiB, "native" } },
    { "/pager/errors/short/io_uring", test_short,
      { 4 * MiB, 64 * MiB, "io_uring" } },
    { "/pager/errors/io/threads", test_io_error,
      { 4 * MiB, 64 * MiB, "threads" } },
    { "/pager/errors/io/native", test_io_error,
      { 4 * MiB, 64 * MiB, "native" } },
    { "/pager/errors/io/io_uring", test_io_error,
      { 4 * MiB, 64 * MiB, "io_uring" } },
    { "/pager/errors/install", test_install, { 4 * MiB, 64 * MiB } },
    { "/pager/errors/discard", test_discard, { 4 * MiB, 64 * MiB } },
    { "/pager/errors/release", test_release, { 4 * MiB, 64 * MiB } },
    { "/pager/errors/write/threads", test_write_error,
      { 64 * MiB, 256 * MiB, "threads" } },
    { "/pager/errors/write/io_uring", test_write_error,
      { 64 * MiB, 256 * MiB, "io_uring" } },
};

int main(int argc, char **argv)
{
    return pager_test_main(argc, argv, test_case, ARRAY_SIZE(test_case));
}
