/*
 * Taking guest RAM under control, and letting it go
 *
 * Below the limit nothing is registered: transparent huge pages stay, and
 * nothing costs anything.  Arming goes chunk by chunk; while a chunk is being
 * armed its faults wait, which takes milliseconds.
 *
 * This work is licensed under the terms of the GNU GPL, version 2 or later.
 * See the COPYING file in the top-level directory.
 */

#include "qemu/osdep.h"
#include "block/aio.h"
#include "block/aio-wait.h"
#include "pager.h"
#include "qemu/error-report.h"
#include "qemu/lockable.h"
#include "qemu/madvise.h"
#include "qemu/timer.h"
#include "trace.h"
#include "uffd.h"

/* Shards take turns by chunks; not too many, each costs the kernel a VMA. */
#define CHUNK_MIN_PAGES     (64u << 8)
#define CHUNKS_MAX          1024

static uint64_t chunk_pages_for(uint64_t npages)
{
    return MAX(CHUNK_MIN_PAGES, pow2ceil(npages / CHUNKS_MAX));
}

void pager_set_regions(Pager *p, const PagerRegion *list, unsigned n)
{
    uint64_t total = 0, next = 0;

    for (unsigned i = 0; i < n; i++) {
        total += list[i].npages;
    }

    QEMU_LOCK_GUARD(&p->region_lock);
    QEMU_LOCK_GUARD(&p->lock);
    if (qatomic_read(&p->base.armed)) {
        return;
    }
    g_free(p->region);
    p->nregions = n;
    p->region = g_memdup2(list, n * sizeof(*list));
    p->chunk_pages = chunk_pages_for(total);
    for (unsigned i = 0; i < n; i++) {
        p->region[i].first = next;
        next += ROUND_UP(p->region[i].npages, p->chunk_pages);
    }
    page_table_destroy(&p->pages);
    page_table_init(&p->pages, next);
}

/* Slots that pages were bound to are added to @slots. */
static void release_chunk_locked(Pager *p, uint64_t page, uint64_t n,
                                 GArray *slots)
{
    for (uint64_t i = page; i < page + n; i++) {
        BsstSlot slot;

        while (page_in_transit(&p->pages, i)) {
            pager_wait_transit_locked(p);
        }
        if (pager_unbind_locked(p, i, &slot)) {
            g_array_append_val(slots, slot);
        }
        if (page_state(&p->pages, i) != PAGE_NONE) {
            page_release(&p->pages, i);
        }
    }
}

/*
 * Let go of a chunk of which nothing is out.  The pages are PAGE_NONE before
 * they are unregistered: from then on nobody believes that he knows what they
 * hold, and a fault on an empty one finds zeroes, as it will without us.
 */
static void disarm_chunk(Pager *p, uint64_t page, uint64_t n)
{
    uint8_t *addr = pager_addr(p, page);
    g_autoptr(GArray) slots = g_array_new(false, false, sizeof(BsstSlot));

    WITH_QEMU_LOCK_GUARD(&p->lock) {
        release_chunk_locked(p, page, n, slots);
    }
    bsst_slot_unref(p->store, (BsstSlot *)slots->data, slots->len);
    uffd_swapper_unregister(pager_shard(p, page)->uffd, addr,
                            n << BSST_PAGE_BITS);
}

/* Call @fn for each chunk of @r. */
static void foreach_chunk(Pager *p, const PagerRegion *r,
                          void (*fn)(Pager *p, uint64_t page, uint64_t n))
{
    for (uint64_t i = 0; i < r->npages; i += p->chunk_pages) {
        fn(p, r->first + i, MIN(p->chunk_pages, r->npages - i));
    }
}

/* The RAM goes away: what is out of it is nobody's any more. */
static void remove_chunk(Pager *p, uint64_t page, uint64_t n)
{
    pager_discard_pages(p, page, n, true);
    uffd_swapper_unregister(pager_shard(p, page)->uffd, pager_addr(p, page),
                            n << BSST_PAGE_BITS);
}

void pager_remove_region(Pager *p, void *host)
{
    QEMU_LOCK_GUARD(&p->region_lock);

    for (unsigned i = 0; i < p->nregions; i++) {
        PagerRegion *r = &p->region[i];

        if (r->host == host) {
            foreach_chunk(p, r, remove_chunk);
            WITH_QEMU_LOCK_GUARD(&p->lock) {
                r->npages = 0;
            }
        }
    }
}

/* Which of [addr, addr + n pages) are present?  Calls @fn for each. */
static bool scan_present(Pager *p, uint8_t *addr, uint64_t n,
                         void (*fn)(void *opaque, uint64_t i, bool present),
                         void *opaque)
{
    uint64_t entry[512];

    for (uint64_t i = 0; i < n; ) {
        uint64_t want = MIN(n - i, ARRAY_SIZE(entry));
        off_t at = ((uintptr_t)addr / BSST_PAGE_SIZE + i) * sizeof(entry[0]);
        ssize_t len = pread(p->pagemap_fd, entry, want * sizeof(entry[0]), at);

        if (len < (ssize_t)sizeof(entry[0])) {
            return false;
        }
        for (ssize_t k = 0; k < len / (ssize_t)sizeof(entry[0]); k++, i++) {
            fn(opaque, i, entry[k] & PAGEMAP_EXISTS);
        }
    }
    return true;
}

typedef struct ControlScan {
    Pager *p;
    uint64_t first;
} ControlScan;

static void control_page(void *opaque, uint64_t i, bool present)
{
    ControlScan *scan = opaque;

    QEMU_LOCK_GUARD(&scan->p->lock);
    page_control(&scan->p->pages, scan->first + i, present);
}

/*
 * Once the chunk is registered no page of it becomes present without us, and
 * its faults wait while its pages are PAGE_NONE.
 */
static int arm_chunk(Pager *p, uint64_t page, uint64_t n)
{
    ControlScan scan = { .p = p, .first = page };
    uint8_t *addr = pager_addr(p, page);
    int ret;

    ret = uffd_swapper_register(pager_shard(p, page)->uffd, addr,
                                n << BSST_PAGE_BITS, p->keep_clean);
    if (ret < 0) {
        return ret;
    }
    return scan_present(p, addr, n, control_page, &scan) ? 0 : -EIO;
}

static int arm_region(Pager *p, const PagerRegion *r)
{
    int ret = 0;

    qemu_madvise(r->host, r->npages << BSST_PAGE_BITS, QEMU_MADV_DONTFORK);
    qemu_madvise(r->host, r->npages << BSST_PAGE_BITS, QEMU_MADV_UNMERGEABLE);
    for (uint64_t i = 0; i < r->npages && ret == 0; i += p->chunk_pages) {
        ret = arm_chunk(p, r->first + i, MIN(p->chunk_pages, r->npages - i));
    }
    return ret;
}

/* May we arm now?  Then faults on unknown pages wait from here on. */
static bool arm_begin(Pager *p, bool forced)
{
    QEMU_LOCK_GUARD(&p->lock);

    if (p->stopping || (!forced && !p->limit)) {
        return false;
    }
    p->arming = true;
    while (p->stray_refills) {
        pager_wait_transit_locked(p);
    }
    pager_set_armed_locked(p, true);
    return true;
}

bool pager_arm(Pager *p, bool forced)
{
    int ret = 0;

    QEMU_LOCK_GUARD(&p->region_lock);
    if (!arm_begin(p, forced)) {
        return false;
    }
    for (unsigned i = 0; i < p->nregions && ret == 0; i++) {
        ret = arm_region(p, &p->region[i]);
    }
    WITH_QEMU_LOCK_GUARD(&p->lock) {
        p->arming = false;
    }
    trace_pager_armed(p->id, ret);
    if (ret < 0) {
        error_report("host-swapper '%s': could not take guest RAM under "
                     "control: %s; the limit is off", p->id, strerror(-ret));
        WITH_QEMU_LOCK_GUARD(&p->lock) {
            p->limit = 0;
            p->releasing = true;
        }
    }
    return true;
}

/* Still wanted, and nothing out?  Then nothing leaves from here on. */
static bool disarm_begin(Pager *p)
{
    const uint64_t *count = p->pages.count;
    QEMU_LOCK_GUARD(&p->lock);

    if (!p->releasing || p->writes || p->loads || count[PAGE_EVICTING] ||
        count[PAGE_VICTIM] || count[PAGE_WRITING] || count[PAGE_SWAPPED] ||
        count[PAGE_LOADING]) {
        return false;
    }
    p->disarming = true;
    return true;
}

bool pager_disarm(Pager *p)
{
    QEMU_LOCK_GUARD(&p->region_lock);

    if (!disarm_begin(p)) {
        return false;
    }
    for (unsigned i = 0; i < p->nregions; i++) {
        foreach_chunk(p, &p->region[i], disarm_chunk);
    }
    /* Off costs nothing: no memory stays with us. */
    pager_reclaim_frames(p);
    WITH_QEMU_LOCK_GUARD(&p->lock) {
        p->releasing = false;
        p->disarming = false;
        pager_set_armed_locked(p, false);
    }
    aio_wait_kick();
    trace_pager_disarmed(p->id);
    return true;
}

/* Near the limit? */

static void count_page(void *opaque, uint64_t i, bool present)
{
    uint64_t *n = opaque;

    *n += present;
}

/* Anonymous memory of this process in bytes: /proc/self/statm.  0: unknown. */
static uint64_t anonymous_bytes(void)
{
    unsigned long size, resident, shared;
    FILE *f = fopen("/proc/self/statm", "re");
    int n;

    if (!f) {
        return 0;
    }
    n = fscanf(f, "%lu %lu %lu", &size, &resident, &shared);
    fclose(f);
    return n == 3 ? (uint64_t)(resident - shared) * qemu_real_host_page_size()
                  : 0;
}

bool pager_near_limit(Pager *p)
{
    uint64_t near = (qatomic_read(&p->limit) << BSST_PAGE_BITS) / 4 * 3;
    uint64_t anon = anonymous_bytes(), n = 0;
    int64_t start_ns = get_clock();

    /* Cheap and never too low, but for memory that QEMU itself gave up. */
    if (anon < near || anon - near < p->anon_overhead ||
        start_ns < p->next_scan_ns) {
        return false;
    }
    WITH_QEMU_LOCK_GUARD(&p->region_lock) {
        for (unsigned i = 0; i < p->nregions; i++) {
            if (!scan_present(p, p->region[i].host, p->region[i].npages,
                              count_page, &n)) {
                return true;
            }
        }
    }
    n <<= BSST_PAGE_BITS;
    /* At most a twentieth of a processor. */
    p->next_scan_ns = get_clock() + 20 * (get_clock() - start_ns);
    /* Half of it: QEMU's own share may shrink while the guest's grows. */
    p->anon_overhead = anon > n ? (anon - n) / 2 : 0;
    return n >= near;
}
