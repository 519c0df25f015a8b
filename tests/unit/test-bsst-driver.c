/*
 * bsst block driver against a pager that is made up: after each write the disk
 * is compared with a shadow
 *
 * This work is licensed under the terms of the GNU GPL, version 2 or later.
 * See the COPYING file in the top-level directory.
 */

#include "qemu/osdep.h"
#include "block/block.h"
#include "bsst-driver-fixture.h"
#include "qapi/error.h"
#include "qapi/qapi-commands-bsst.h"
#include "qemu/main-loop.h"

static void test_write(void)
{
    g_autofree Fixture *f = g_new0(Fixture, 1);
    unsigned round;

    setup(f);
    for (round = 0; round < 200; round++) {
        unsigned n = g_random_int_range(1, PAGES + 1);
        unsigned i = g_random_int_range(0, PAGES - n + 1);

        shuffle(f->p, -1);
        write_pages(f, i, n, g_random_int_range(0, DISK_BLOCKS - n + 1));
        if (round % 16 == 15) {
            g_assert_cmpint(blk_flush(f->blk), ==, 0);
        }
        check_disk(f);
    }
    g_assert_cmpint(f->p->written, >, 0);
    teardown(f);
}

static void test_read(void)
{
    g_autofree Fixture *f = g_new0(Fixture, 1);
    unsigned round;

    setup(f);
    for (round = 0; round < 200; round++) {
        unsigned n = g_random_int_range(1, PAGES + 1);
        unsigned i = g_random_int_range(0, PAGES - n + 1);
        unsigned block = g_random_int_range(0, DISK_BLOCKS - n + 1);
        size_t bytes = n * BSST_PAGE_SIZE, k;

        shuffle(f->p, -1);
        write_pages(f, i, n, block);
        shuffle(f->p, -1);
        block = g_random_int_range(0, DISK_BLOCKS - n + 1);
        g_assert_cmpint(blk_pread(f->blk, (int64_t)block * BSST_PAGE_SIZE,
                                  bytes, f->p->mem + i * BSST_PAGE_SIZE, 0),
                        ==, 0);
        g_assert_cmpint(memcmp(f->p->mem + i * BSST_PAGE_SIZE,
                               f->shadow + block * BSST_PAGE_SIZE, bytes),
                        ==, 0);
        for (k = i; k < i + n; k++) {
            g_assert(f->p->kind[k] == BSST_PAGE_PRESENT);
        }
    }
    g_assert_cmpint(f->p->admitted, >, 0);
    g_assert_cmpint(f->p->installed, >, 0);
    teardown(f);
}

/* One page stands for several blocks, and outlives none of them. */
static void test_shared_slot(void)
{
    g_autofree Fixture *f = g_new0(Fixture, 1);
    unsigned k;

    setup(f);
    shuffle(f->p, BSST_PAGE_SLOT);
    for (k = 0; k < 8; k++) {
        write_pages(f, 0, 4, k * 4);
    }
    shuffle(f->p, BSST_PAGE_SLOT);
    check_disk(f);
    write_pages(f, 2, 4, 6);
    check_disk(f);
    g_assert_cmpint(blk_flush(f->blk), ==, 0);
    check_disk(f);
    teardown(f);
}

/* Closed without a drain, opened again: what the guest wrote is there. */
static void test_close(void)
{
    g_autofree Fixture *f = g_new0(Fixture, 1);
    unsigned round;

    setup(f);
    for (round = 0; round < 20; round++) {
        g_autoptr(BsstInfo) info = NULL;
        unsigned k;

        close_disk(f);
        open_disk(f, "off");
        check_disk(f);
        /* The slots that the disk uses are the ones that are in use */
        info = qmp_query_bsst(&error_abort);
        g_assert_cmpint(info->stores->value->journal->recovered_indirections,
                        ==, info->nodes->value->indirections);
        g_assert_cmpint(slots_in_use(f), <=, info->nodes->value->indirections);
        g_assert_true(slots_in_use(f) || !info->nodes->value->indirections);
        for (k = 0; k < 5; k++) {
            shuffle(f->p, -1);
            write_pages(f, k * 10, PAGES - k * 10,
                        g_random_int_range(0, DISK_BLOCKS - PAGES));
        }
    }
    close_disk(f);
    open_disk(f, "on");
    teardown(f);
}

/* A flush copies nothing; slots that it makes free are free then. */
static void test_flush(void)
{
    g_autofree Fixture *f = g_new0(Fixture, 1);
    g_autoptr(BsstInfo) info = NULL;
    BsstNodeStats *st;
    BsstImageInfo *image;

    setup(f);
    shuffle(f->p, BSST_PAGE_SLOT);
    write_pages(f, 0, 128, 0);
    g_assert_cmpint(blk_flush(f->blk), ==, 0);
    touch_all(f->p);
    g_assert_cmpint(slots_in_use(f), ==, 128);
    shuffle(f->p, BSST_PAGE_PRESENT);
    write_pages(f, 0, 64, 0);

    /* A crash would bring 64 slots back: they are not free yet. */
    g_assert_cmpint(slots_in_use(f), ==, 128);
    info = qmp_query_bsst(&error_abort);
    st = info->nodes->value;
    image = info->stores->value->images->value;
    g_assert_cmpint(st->indirections, ==, 64);
    g_assert_cmpint(st->held_slots, ==, 64);
    g_assert_cmpint(st->removed_drain, ==, 0);
    g_assert_cmpint(image->indirections, ==, 64);
    g_assert_cmpint(image->held_slots, ==, 64);
    g_assert_true(image->pending && image->attached && image->raw);
    g_assert_cmpint(blk_flush(f->blk), ==, 0);
    g_assert_cmpint(slots_in_use(f), ==, 64);
    check_disk(f);
    teardown(f);
}

static BsstJournalInfo journal_stats(void)
{
    g_autoptr(BsstInfo) info = qmp_query_bsst(&error_abort);

    return *info->stores->value->journal;
}

/*
 * Without a change the store is left alone.  With changes: one write to the
 * journal between two flushes of the store (J1, J3), however many blocks.
 */
static void test_flush_cost(void)
{
    g_autofree Fixture *f = g_new0(Fixture, 1);
    BsstJournalInfo before, after;

    setup(f);
    shuffle(f->p, BSST_PAGE_SLOT);
    write_pages(f, 0, 128, 0);
    g_assert_cmpint(blk_flush(f->blk), ==, 0);

    before = journal_stats();
    touch_all(f->p);
    shuffle(f->p, BSST_PAGE_PRESENT);
    write_pages(f, 0, 128, 256);
    g_assert_cmpint(blk_flush(f->blk), ==, 0);
    g_assert_cmpint(blk_flush(f->blk), ==, 0);
    after = journal_stats();
    g_assert_cmpmem(&before, sizeof(before), &after, sizeof(after));

    shuffle(f->p, BSST_PAGE_SLOT);
    write_pages(f, 0, 64, 0);
    write_pages(f, 0, 64, 512);
    g_assert_cmpint(blk_flush(f->blk), ==, 0);
    after = journal_stats();
    g_assert_cmpint(after.commits - before.commits, ==, 1);
    g_assert_cmpint(after.journal_bytes - before.journal_bytes, ==,
                    BSST_PAGE_SIZE);
    g_assert_cmpint(after.flushes - before.flushes, ==, 2);
    check_disk(f);
    teardown(f);
}

/* Copies of descriptors have a number that is greater by this. */
#define KEPT    256

/*
 * Let every descriptor of the store, which keeps its number, be one of @path,
 * for reading.  The copies keep the locks, too.
 */
static void replace_store(const Fixture *f, const char *path)
{
    unsigned n = 0;

    for (int fd = 0; fd < KEPT; fd++) {
        g_autofree char *name = g_strdup_printf("/proc/self/fd/%d", fd);
        g_autofree char *link = g_file_read_link(name, NULL);
        int new;

        if (link && g_str_equal(link, f->store_path)) {
            new = open(path, O_RDONLY | O_CLOEXEC);
            g_assert_cmpint(new, >=, 0);
            g_assert_cmpint(dup2(fd, fd + KEPT), ==, fd + KEPT);
            g_assert_cmpint(dup2(new, fd), ==, fd);
            close(new);
            n++;
        }
    }
    g_assert_cmpint(n, >, 0);
}

static void put_store_back(void)
{
    for (int fd = 0; fd < KEPT; fd++) {
        if (fcntl(fd + KEPT, F_GETFD) >= 0) {
            g_assert_cmpint(dup2(fd + KEPT, fd), ==, fd);
            close(fd + KEPT);
        }
    }
}

/*
 * The guest learns of a flush that cannot be made durable.  Nothing is lost,
 * and when the store is back a flush succeeds.
 */
static void test_flush_error(gconstpointer opaque)
{
    g_autofree Fixture *f = g_new0(Fixture, 1);
    const bool gone = opaque;

    setup(f);
    for (unsigned round = 0; round < 3; round++) {
        unsigned block = round * 256;

        shuffle(f->p, BSST_PAGE_SLOT);
        write_pages(f, 0, 128, block);
        g_assert_cmpint(blk_flush(f->blk), ==, 0);
        write_pages(f, 64, 128, block);

        replace_store(f, gone ? "/dev/null" : f->store_path);
        for (unsigned i = 0; i < 3; i++) {
            g_assert_cmpint(blk_flush(f->blk), <, 0);
        }
        if (!gone) {
            check_disk(f);
        }
        g_assert_cmpint(journal_stats().errors, ==, 3);
        put_store_back();

        check_disk(f);
        g_assert_cmpint(blk_flush(f->blk), ==, 0);
        close_disk(f);
        open_disk(f, "off");
        check_disk(f);
    }
    close_disk(f);
    open_disk(f, "on");
    teardown(f);
}

/* What the baseline counts. */
static void test_baseline(void)
{
    g_autofree Fixture *f = g_new0(Fixture, 1);
    g_autoptr(BsstInfo) info = NULL;

    setup(f);
    f->p->pager.tesseract = false;
    shuffle(f->p, BSST_PAGE_ZERO);
    memset(f->p->mem, 0, PAGES * BSST_PAGE_SIZE); /* as if touched */
    write_pages(f, 0, 128, 0);
    check_disk(f);
    info = qmp_query_bsst(&error_abort);
    g_assert_cmpint(info->nodes->value->loaded_pages, ==, 128);
    g_assert_cmpint(info->nodes->value->made, ==, 0);
    g_assert_cmpint(info->nodes->value->write_prepare->count, ==, 1);
    teardown(f);
}

/* A request that is all in slots: no I/O, and no time either. */
static void test_prepare_time(void)
{
    g_autofree Fixture *f = g_new0(Fixture, 1);
    g_autoptr(BsstInfo) info = NULL;
    BsstNodeStats *st;
    unsigned k;

    setup(f);
    shuffle(f->p, BSST_PAGE_SLOT);
    for (k = 0; k < 20000; k++) {
        write_pages(f, (k & 1) * 128, 128, (k % 7) * 128);
    }
    info = qmp_query_bsst(&error_abort);
    st = info->nodes->value;
    g_assert_cmpint(st->write_prepare->count, ==, 20000);
    g_assert_cmpint(st->double_paged_pages, ==, 20000 * 128);
    g_assert_cmpint(st->moved_bytes, ==, 0);
    g_test_message("128 pages in slots: p50 %" PRIu64 " ns, p99 %" PRIu64
                   " ns", st->write_prepare->p50_ns, st->write_prepare->p99_ns);
    teardown(f);
}

int main(int argc, char **argv)
{
    bdrv_init();
    qemu_init_main_loop(&error_abort);

    g_test_init(&argc, &argv, NULL);
    g_test_add_func("/bsst-driver/write", test_write);
    g_test_add_func("/bsst-driver/read", test_read);
    g_test_add_func("/bsst-driver/shared-slot", test_shared_slot);
    g_test_add_func("/bsst-driver/close", test_close);
    g_test_add_func("/bsst-driver/flush", test_flush);
    g_test_add_func("/bsst-driver/flush-cost", test_flush_cost);
    g_test_add_data_func("/bsst-driver/flush-error/read-only", NULL,
                         test_flush_error);
    g_test_add_data_func("/bsst-driver/flush-error/gone", GINT_TO_POINTER(1),
                         test_flush_error);
    g_test_add_func("/bsst-driver/baseline", test_baseline);
    g_test_add_func("/bsst-driver/prepare-time", test_prepare_time);
    return g_test_run();
}
