/*
 * What the tests of the pager share: memory of our own, a store, patterns
 *
 * This work is licensed under the terms of the GNU GPL, version 2 or later.
 * See the COPYING file in the top-level directory.
 */

#include "qemu/osdep.h"
#include "block/aio.h"
#include "block/aio-wait.h"
#include "block/block.h"
#include "bsst-seed.h"
#include "bsst-watchdog.h"
#include "hw/swapper/uffd.h"
#include "pager-fixture.h"
#include "qapi/error.h"
#include "qapi/util.h"
#include "qemu/main-loop.h"
#include "qemu/module.h"
#include "qemu/units.h"
#include "qobject/qdict.h"

#define WATCHDOG_S      100

uint32_t seed;
unsigned load_seconds = 2;
unsigned slower = 1;

/* Also starts the watchdog.  Tells in *@skip what is missing. */
static bool setup(Fixture *f, const Setup *s, const char *name, char **skip)
{
    BlockdevAioOptions aio =
        qapi_enum_parse(&BlockdevAioOptions_lookup, s->aio ?: "threads", -1,
                        &error_abort);
    PagerRegion region;
    QDict *opts = qdict_new();
    Error *err = NULL;

    *f = (Fixture) { .npages = PAGES(s->ram_bytes) };
    watchdog_begin(name, WATCHDOG_S * slower);

    f->dir = g_dir_make_tmp("bsst-test-pager-XXXXXX", NULL);
    g_assert_nonnull(f->dir);
    f->path = g_build_filename(f->dir, "store.qcow2", NULL);
    bsst_store_create(f->path, s->store_bytes, &error_abort);
    qdict_put_str(opts, "driver", "qcow2");
    qdict_put_str(opts, "node-name", "store0");
    qdict_put_str(opts, "file.driver", "file");
    qdict_put_str(opts, "file.filename", f->path);
    f->bs = bdrv_open(NULL, NULL, opts, BDRV_O_RDWR, &error_abort);
    f->store = bsst_store_open("store0", aio, &err);
    if (!f->store) {
        *skip = g_strdup(error_get_pretty(err));
        error_free(err);
        return false;
    }
    f->gen = g_new0(uint64_t, f->npages);
    f->mem = mmap(NULL, s->ram_bytes, PROT_READ | PROT_WRITE,
                  MAP_PRIVATE | MAP_ANONYMOUS, -1, 0);
    g_assert(f->mem != MAP_FAILED);
    /* So that what is resident is what was touched */
    madvise(f->mem, s->ram_bytes, MADV_NOHUGEPAGE);

    f->p = pager_new("test", s->shards ?: 2, &error_abort);
    f->p->cluster = s->cluster ?: 8;
    pager_attach_store(f->p, f->store, &error_abort);
    pager_set_victim_bytes(f->p, 2 * MiB);
    region = (PagerRegion) { .host = f->mem, .npages = f->npages };
    pager_set_regions(f->p, &region, 1);
    return true;
}

static uint64_t slots_in_use(const Fixture *f)
{
    BsstStoreStats *st = bsst_store_query(f->store);
    uint64_t n = st->slots - st->slots_free;

    g_assert(f->expect_errors || (!st->checksum_errors && !st->io_errors));
    qapi_free_BsstStoreStats(st);
    return n;
}

void run_main_loop(unsigned ms)
{
    int64_t end = g_get_monotonic_time() + ms * 1000;

    do {
        while (aio_poll(qemu_get_aio_context(), false)) {
            /* go on */
        }
        g_usleep(1000);
    } while (g_get_monotonic_time() < end);
}

void check_slots(const Fixture *f, uint64_t expected)
{
    for (int i = 0; i < 500 && slots_in_use(f) != expected; i++) {
        run_main_loop(10);
    }
    g_assert_cmpuint(slots_in_use(f), ==, expected);
}

void bring_all_back(Fixture *f)
{
    pager_set_limit(f->p, 0);
    AIO_WAIT_WHILE_UNLOCKED(NULL, qatomic_read(&f->p->base.armed));
}

static void teardown(Fixture *f)
{
    if (f->p) {
        bring_all_back(f);
        check_slots(f, 0);
        pager_stop(f->p);
        pager_detach_store(f->p);
        run_main_loop(0);       /* events have a reference */
        g_assert_cmpuint(f->p->base.refcnt, ==, 1);
        bsst_pager_unref(&f->p->base);
        munmap(f->mem, f->npages * BSST_PAGE_SIZE);
    }
    bsst_store_unref(f->store);
    bdrv_unref(f->bs);
    unlink(f->path);
    rmdir(f->dir);
    g_free(f->path);
    g_free(f->dir);
    g_free(f->gen);
    watchdog_end();
}

/* Patterns */

uint64_t *page_at(const Fixture *f, uint64_t page)
{
    return (uint64_t *)(f->mem + page * BSST_PAGE_SIZE);
}

uint64_t word(uint64_t page, uint64_t gen, unsigned i)
{
    return gen ? (page << 40 | gen << 16 | i) ^ 0x9e3779b97f4a7c15ull : 0;
}

void fill(uint64_t *buf, uint64_t page, uint64_t gen)
{
    for (unsigned i = 0; i < WORDS; i++) {
        qatomic_set(&buf[i], word(page, gen, i));   /* others may look */
    }
}

void check(const uint64_t *buf, uint64_t page, uint64_t gen)
{
    for (unsigned i = 0; i < WORDS; i++) {
        uint64_t raw = buf[i];
        uint64_t clear = raw ? raw ^ 0x9e3779b97f4a7c15ull : 0;

        if (raw != word(page, gen, i)) {
            g_error("page %" PRIu64 " generation %" PRIu64 " word %u: found "
                    "page %" PRIu64 " generation %" PRIu64 " word %" PRIu64,
                    page, gen, i, clear >> 40, clear >> 16 & 0xffffff,
                    clear & 0xffff);
        }
    }
}

void put(Fixture *f, uint64_t page, uint64_t gen)
{
    fill(page_at(f, page), page, gen);
    f->gen[page] = gen;
}

void put_all(Fixture *f, uint64_t gen)
{
    for (uint64_t i = 0; i < f->npages; i++) {
        put(f, i, gen);
    }
}

void check_all(const Fixture *f)
{
    for (uint64_t i = 0; i < f->npages; i++) {
        check(page_at(f, i), i, f->gen[i]);
    }
}

bool present(const Fixture *f, uint64_t page)
{
    unsigned char in;

    g_assert_cmpint(mincore(page_at(f, page), BSST_PAGE_SIZE, &in), ==, 0);
    return in & 1;
}

uint64_t present_pages(const void *mem, uint64_t npages)
{
    g_autofree unsigned char *in = g_malloc(npages);
    uint64_t n = 0;

    if (mincore((void *)mem, npages * BSST_PAGE_SIZE, in)) {
        g_error("mincore: %s", strerror(errno));
    }
    for (uint64_t i = 0; i < npages; i++) {
        n += in[i] & 1;
    }
    return n;
}

uint64_t count(Fixture *f, PageState state)
{
    QEMU_LOCK_GUARD(&f->p->lock);
    return f->p->pages.count[state];
}

PageState state_of(Fixture *f, uint64_t page)
{
    QEMU_LOCK_GUARD(&f->p->lock);
    return page_state(&f->p->pages, page);
}

PagerCounters counters(Fixture *f)
{
    QEMU_LOCK_GUARD(&f->p->lock);
    return f->p->n;
}

void evict(Fixture *f, uint64_t page, uint64_t n, bool to_store)
{
    uint64_t out = 0;

    /* The kernel may have a page in its hands for a moment. */
    for (int i = 0; i < 100 && out < n; i++) {
        out = pager_evict_range(f->p, page, n, to_store);
    }
    g_assert_cmpuint(out, ==, n);
    for (uint64_t i = page; i < page + n; i++) {
        g_assert(!present(f, i));
    }
}

void discard(Fixture *f, uint64_t page, uint64_t n)
{
    pager_discard(f->p, page_at(f, page), n * BSST_PAGE_SIZE);
    g_assert_cmpint(madvise(page_at(f, page), n * BSST_PAGE_SIZE,
                            MADV_DONTNEED), ==, 0);
}

/* Running them */

static void run_case(const void *opaque)
{
    const Case *c = opaque;
    g_autofree char *skip = NULL;
    Fixture f;

    if (setup(&f, &c->setup, c->name, &skip)) {
        c->run(&f);
    } else {
        g_test_skip(skip);
    }
    teardown(&f);
}

static void unavailable(const void *opaque)
{
    g_test_skip(opaque);
}

int pager_test_main(int argc, char **argv, const Case *test_case, size_t n)
{
    const char *env;
    Error *err = NULL;
    g_autofree char *why = NULL;
    int fd;

    bdrv_init();
    module_call_init(MODULE_INIT_QOM);
    qemu_init_main_loop(&error_abort);
    g_test_init(&argc, &argv, NULL);

    seed = bsst_test_seed();
    env = g_getenv("BSST_TEST_SECONDS");
    load_seconds = env ? g_ascii_strtoull(env, NULL, 0) : load_seconds;
    env = g_getenv("BSST_TEST_SLOWER");
    slower = env ? g_ascii_strtoull(env, NULL, 0) : slower;
    watchdog_init();

    fd = uffd_swapper_open(false, &err);
    if (fd < 0) {
        why = g_strdup(error_get_pretty(err));
        error_free(err);
    } else {
        close(fd);
    }
    for (size_t i = 0; i < n; i++) {
        if (why) {
            g_test_add_data_func(test_case[i].name, why, unavailable);
        } else {
            g_test_add_data_func(test_case[i].name, &test_case[i], run_case);
        }
    }
    return g_test_run();
}
