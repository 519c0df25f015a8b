/*
 * A disk with a store and a pager that is made up, for tests of the driver
 *
 * This work is licensed under the terms of the GNU GPL, version 2 or later.
 * See the COPYING file in the top-level directory.
 */

#include "qemu/osdep.h"
#include "block/aio-wait.h"
#include "block/block.h"
#include "bsst-driver-fixture.h"
#include "qapi/error.h"
#include "qemu/main-loop.h"
#include "qemu/memalign.h"
#include "qemu/units.h"
#include "qobject/qdict.h"

#define GARBAGE     0xee

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

uint8_t *page_content(FakePager *p, unsigned i)
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

        claim[k] = (BsstPageClaim) { .kind = BSST_PAGE_PRESENT };
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

void in_coroutine(void coroutine_fn (*fn)(void *opaque), void *opaque)
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

void shuffle(FakePager *p, int kind)
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

void touch_all(FakePager *p)
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

void open_disk(Fixture *f, const char *drain)
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
    qdict_put_str(opts, "defrag", f->defrag ?: "off");
    if (f->aio) {
        qdict_put_str(opts, "aio", f->aio);
    }
    f->blk = blk_new_open(NULL, NULL, opts,
                          BDRV_O_RDWR | BDRV_O_RESIZE | BDRV_O_UNMAP,
                          &error_abort);
    f->store = bsst_store_next(NULL);
    f->p->store = f->store;
    bsst_store_set_pager(f->store, &f->p->pager, &error_abort);
    bsst_store_set_armed(f->store, true);
}

void close_disk(Fixture *f)
{
    touch_all(f->p);
    bsst_store_clear_pager(f->store, &f->p->pager);
    blk_unref(f->blk);
}

uint64_t slots_in_use(const Fixture *f)
{
    g_autoptr(BsstStoreStats) st = bsst_store_query(f->store);

    return st->slots - st->slots_free;
}

void setup(Fixture *f)
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

void teardown(Fixture *f)
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

void check_disk(Fixture *f)
{
    uint8_t *buf = qemu_memalign(BSST_PAGE_SIZE, sizeof(f->shadow));

    g_assert_cmpint(blk_pread(f->blk, 0, sizeof(f->shadow), buf, 0), ==, 0);
    g_assert_cmpint(memcmp(buf, f->shadow, sizeof(f->shadow)), ==, 0);
    qemu_vfree(buf);
}

void write_pages(Fixture *f, unsigned i, unsigned n, unsigned block)
{
    size_t bytes = n * BSST_PAGE_SIZE;

    g_assert_cmpint(blk_pwrite(f->blk, (int64_t)block * BSST_PAGE_SIZE, bytes,
                               f->p->mem + i * BSST_PAGE_SIZE, 0), ==, 0);
    memcpy(f->shadow + block * BSST_PAGE_SIZE, page_content(f->p, i), bytes);
    g_assert_cmpint(f->p->buffers, ==, 0);
}
