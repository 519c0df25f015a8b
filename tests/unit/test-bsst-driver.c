/*
 * bsst block driver against a pager that is made up
 *
 * Every page of a buffer is present, in a slot, in the swapper's buffer, or
 * zero, at random; the memory of absent pages holds garbage that must not be
 * seen anywhere.  After each write the disk is compared with a shadow.
 *
 * This work is licensed under the terms of the GNU GPL, version 2 or later.
 * See the COPYING file in the top-level directory.
 */

#include "qemu/osdep.h"
#include "block/aio-wait.h"
#include "block/block.h"
#include "bsst/bsst-store.h"
#include "qapi/error.h"
#include "qapi/qapi-commands-bsst.h"
#include "qemu/main-loop.h"
#include "qemu/memalign.h"
#include "qemu/units.h"
#include "qobject/qdict.h"
#include "system/block-backend.h"

#define PAGES       256
#define DISK_BLOCKS 1024
#define GARBAGE     0xee

typedef struct FakePager {
    BsstPager pager;
    BsstStore *store;
    uint8_t *mem;                   /* what the guest's RAM holds */
    uint8_t *content;               /* what the guest would see there */
    BsstPageKind kind[PAGES];
    BsstSlot slot[PAGES];           /* a reference if kind is SLOT */
    unsigned buffers;               /* claimed and not released */
    unsigned admitted;
    unsigned installed;
    unsigned written;
    bool freed;
} FakePager;

typedef struct Fixture {
    char *dir, *image, *store_path;
    BlockBackend *blk;
    BsstStore *store;
    FakePager *p;
    uint8_t shadow[DISK_BLOCKS * BSST_PAGE_SIZE];
} Fixture;

static FakePager *fake(BsstPager *pager)
{
    return container_of(pager, FakePager, pager);
}

/* False for memory that is not the guest's. */
static bool page_index(FakePager *p, const void *page, unsigned *i)
{
    size_t offset = (const uint8_t *)page - p->mem;

    g_assert(QEMU_PTR_IS_ALIGNED(page, BSST_PAGE_SIZE));
    *i = offset / BSST_PAGE_SIZE;
    return offset < PAGES * BSST_PAGE_SIZE;
}

static uint8_t *page_content(FakePager *p, unsigned i)
{
    return p->content + i * BSST_PAGE_SIZE;
}

static void fake_claim(BsstPager *pager, void *const *page,
                       BsstPageClaim *claim, unsigned n)
{
    FakePager *p = fake(pager);
    unsigned k;

    for (k = 0; k < n; k++) {
        unsigned i;

        claim[k].kind = BSST_PAGE_PRESENT;
        if (!page_index(p, page[k], &i)) {
            continue;
        }
        claim[k].kind = p->kind[i];
        if (p->kind[i] == BSST_PAGE_SLOT) {
            claim[k].slot = p->slot[i];
            bsst_slot_ref(p->store, &p->slot[i], 1);
        } else if (p->kind[i] == BSST_PAGE_BUFFER) {
            claim[k].buf = page_content(p, i);
            p->buffers++;
        }
    }
}

static bool fake_claim_slots(BsstPager *pager, void *const *page,
                             BsstSlot *slot, unsigned n)
{
    FakePager *p = fake(pager);
    unsigned i, k;

    for (k = 0; k < n; k++) {
        slot[k] = 12345;            /* may be anything if this fails */
        if (!page_index(p, page[k], &i) || p->kind[i] != BSST_PAGE_SLOT) {
            return false;
        }
        slot[k] = p->slot[i];
    }
    bsst_slot_ref(p->store, slot, n);
    return true;
}

static void fake_release(BsstPager *pager, const BsstPageClaim *claim,
                         unsigned n)
{
    unsigned k;

    for (k = 0; k < n; k++) {
        fake(pager)->buffers -= claim[k].kind == BSST_PAGE_BUFFER;
    }
}

static void fake_absent(BsstPager *pager, void *const *page, bool *absent,
                        unsigned n)
{
    FakePager *p = fake(pager);
    unsigned i, k;

    for (k = 0; k < n; k++) {
        absent[k] = page_index(p, page[k], &i) &&
                    p->kind[i] != BSST_PAGE_PRESENT;
    }
}

static void page_make_present(FakePager *p, unsigned i)
{
    if (p->kind[i] == BSST_PAGE_SLOT) {
        bsst_slot_unref(p->store, &p->slot[i], 1);
    }
    p->kind[i] = BSST_PAGE_PRESENT;
}

static bool fake_install(BsstPager *pager, void *page, const void *buf)
{
    FakePager *p = fake(pager);
    unsigned i;

    g_assert(page_index(p, page, &i));
    g_assert(p->kind[i] != BSST_PAGE_PRESENT);
    page_make_present(p, i);
    if (g_random_int_range(0, 4) == 0) {
        return false;               /* it came back meanwhile */
    }
    memcpy(page, buf, BSST_PAGE_SIZE);
    p->installed++;
    return true;
}

static void fake_written(BsstPager *pager, void *const *page, unsigned n)
{
    FakePager *p = fake(pager);
    unsigned i, k;

    for (k = 0; k < n; k++) {
        g_assert(page_index(p, page[k], &i));
        g_assert(p->kind[i] == BSST_PAGE_SLOT);
        p->written++;
    }
}

static void coroutine_fn fake_co_admit(BsstPager *pager)
{
    fake(pager)->admitted++;
}

static void fake_space(BsstPager *pager)
{
}

static void fake_free(BsstPager *pager)
{
    fake(pager)->freed = true;
}

static const BsstPagerOps fake_ops = {
    .claim = fake_claim,
    .claim_slots = fake_claim_slots,
    .release = fake_release,
    .absent = fake_absent,
    .co_admit = fake_co_admit,
    .install = fake_install,
    .written = fake_written,
    .space = fake_space,
    .free = fake_free,
};

/* Run @fn(@opaque) in a coroutine. */
typedef struct InCoroutine {
    void coroutine_fn (*fn)(void *opaque);
    void *opaque;
    bool done;
} InCoroutine;

static void coroutine_fn in_coroutine_entry(void *opaque)
{
    InCoroutine *c = opaque;

    c->fn(c->opaque);
    c->done = true;
    aio_wait_kick();
}

static void in_coroutine(void coroutine_fn (*fn)(void *opaque), void *opaque)
{
    InCoroutine c = { .fn = fn, .opaque = opaque };

    qemu_coroutine_enter(qemu_coroutine_create(in_coroutine_entry, &c));
    AIO_WAIT_WHILE_UNLOCKED(NULL, !c.done);
}

/* Give each page in a slot its slot. */
static void coroutine_fn co_fill_slots(void *opaque)
{
    FakePager *p = opaque;
    unsigned i;

    for (i = 0; i < PAGES; i++) {
        if (p->kind[i] == BSST_PAGE_SLOT) {
            g_assert(bsst_slot_alloc(p->store, 1, &p->slot[i]) == 1);
            g_assert(bsst_store_co_write(p->store, p->slot[i], 1,
                                         page_content(p, i)) == 0);
        }
    }
}

/* New content, and a new place for each page; @kind < 0: at random. */
static void shuffle(FakePager *p, int kind)
{
    unsigned i, j;

    for (i = 0; i < PAGES; i++) {
        page_make_present(p, i);
        p->kind[i] = kind < 0 ? g_random_int_range(0, 4) : kind;
        for (j = 0; j < BSST_PAGE_SIZE; j += 4) {
            uint32_t word = p->kind[i] == BSST_PAGE_ZERO ? 0 : g_random_int();

            memcpy(page_content(p, i) + j, &word, sizeof(word));
        }
        if (p->kind[i] == BSST_PAGE_PRESENT) {
            memcpy(p->mem + i * BSST_PAGE_SIZE, page_content(p, i),
                   BSST_PAGE_SIZE);
        } else {
            memset(p->mem + i * BSST_PAGE_SIZE, GARBAGE, BSST_PAGE_SIZE);
        }
    }
    in_coroutine(co_fill_slots, p);
}

static void touch_all(FakePager *p)
{
    unsigned i;

    for (i = 0; i < PAGES; i++) {
        if (p->kind[i] != BSST_PAGE_PRESENT) {
            memcpy(p->mem + i * BSST_PAGE_SIZE, page_content(p, i),
                   BSST_PAGE_SIZE);
            page_make_present(p, i);
        }
    }
}

/* Open disk and store, and hang the pager on the store. */
static void open_disk(Fixture *f, const char *drain)
{
    QDict *opts = qdict_new();

    qdict_put_str(opts, "driver", "bsst");
    qdict_put_str(opts, "file.driver", "file");
    qdict_put_str(opts, "file.filename", f->image);
    qdict_put_str(opts, "store.driver", "qcow2");
    qdict_put_str(opts, "store.file.driver", "file");
    qdict_put_str(opts, "store.file.filename", f->store_path);
    qdict_put_str(opts, "raw-image", "allow");
    qdict_put_str(opts, "drain-on-close", drain);
    f->blk = blk_new_open(NULL, NULL, opts, BDRV_O_RDWR, &error_abort);
    f->store = bsst_store_next(NULL);
    f->p->store = f->store;
    bsst_store_set_pager(f->store, &f->p->pager, &error_abort);
    bsst_store_set_armed(f->store, true);
}

/* All pages are present.  The disk is all that uses slots then. */
static void close_disk(Fixture *f)
{
    touch_all(f->p);
    bsst_store_clear_pager(f->store, &f->p->pager);
    blk_unref(f->blk);
}

static uint64_t slots_in_use(const Fixture *f)
{
    g_autoptr(BsstStoreStats) st = bsst_store_query(f->store);

    return st->slots - st->slots_free;
}

static void setup(Fixture *f)
{
    int fd;

    f->dir = g_dir_make_tmp("bsst-XXXXXX", NULL);
    f->image = g_build_filename(f->dir, "image.raw", NULL);
    f->store_path = g_build_filename(f->dir, "store.qcow2", NULL);
    bsst_store_create(f->store_path, 64 * MiB, &error_abort);
    fd = open(f->image, O_CREAT | O_RDWR, 0600);
    g_assert(fd >= 0 && ftruncate(fd, sizeof(f->shadow)) == 0);
    close(fd);

    f->p = g_new0(FakePager, 1);
    f->p->mem = qemu_memalign(BSST_PAGE_SIZE, PAGES * BSST_PAGE_SIZE);
    f->p->content = qemu_memalign(BSST_PAGE_SIZE, PAGES * BSST_PAGE_SIZE);
    f->p->pager.ops = &fake_ops;
    f->p->pager.refcnt = 1;
    f->p->pager.armed = true;
    f->p->pager.tesseract = true;
    open_disk(f, "on");
}

static void teardown(Fixture *f)
{
    g_autofree char *disk = NULL;

    bsst_store_ref(f->store);
    close_disk(f);
    /* No reference was lost */
    g_assert_cmpint(slots_in_use(f), ==, 0);
    bsst_store_unref(f->store);
    bsst_pager_unref(&f->p->pager);
    g_assert_true(f->p->freed);
    /* The image is complete */
    g_assert_true(g_file_get_contents(f->image, &disk, NULL, NULL));
    g_assert_cmpint(memcmp(disk, f->shadow, sizeof(f->shadow)), ==, 0);
    qemu_vfree(f->p->mem);
    qemu_vfree(f->p->content);
    g_free(f->p);
    unlink(f->image);
    unlink(f->store_path);
    rmdir(f->dir);
    g_free(f->image);
    g_free(f->store_path);
    g_free(f->dir);
}

static void check_disk(Fixture *f)
{
    uint8_t *buf = qemu_memalign(BSST_PAGE_SIZE, sizeof(f->shadow));

    g_assert_cmpint(blk_pread(f->blk, 0, sizeof(f->shadow), buf, 0), ==, 0);
    g_assert_cmpint(memcmp(buf, f->shadow, sizeof(f->shadow)), ==, 0);
    qemu_vfree(buf);
}

/* Write pages [i, i + n) to disk, as a guest would do. */
static void write_pages(Fixture *f, unsigned i, unsigned n, unsigned block)
{
    size_t bytes = n * BSST_PAGE_SIZE;

    g_assert_cmpint(blk_pwrite(f->blk, (int64_t)block * BSST_PAGE_SIZE, bytes,
                               f->p->mem + i * BSST_PAGE_SIZE, 0), ==, 0);
    memcpy(f->shadow + block * BSST_PAGE_SIZE, page_content(f->p, i), bytes);
    g_assert_cmpint(f->p->buffers, ==, 0);
}

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
    g_test_add_func("/bsst-driver/baseline", test_baseline);
    g_test_add_func("/bsst-driver/prepare-time", test_prepare_time);
    return g_test_run();
}
