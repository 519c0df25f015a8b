/*
 * The ways in: from a frame, from the store, zeroes, a disk read
 *
 * Each does the same: under the lock the pages become INSTALLING and what
 * they owned (frame, slot) passes to us; one ioctl without the lock; under
 * the lock they become RESIDENT.  The ioctl wakes who waits for them.
 *
 * This work is licensed under the terms of the GNU GPL, version 2 or later.
 * See the COPYING file in the top-level directory.
 */

#include "qemu/osdep.h"
#include "block/aio.h"
#include "pager.h"
#include "qemu/lockable.h"
#include "qemu/memalign.h"
#include "qemu/timer.h"
#include "trace.h"
#include "uffd.h"

/* A failed read is repeated at once this often, then once a second. */
#define READ_RETRIES    3

static void install_done_locked(Pager *p, uint64_t page, unsigned n)
{
    for (unsigned i = 0; i < n; i++) {
        page_install_done(&p->pages, page + i);
    }
    pager_transit_done_locked(p);
    if (!pager_yields_locked(p) &&
        pager_charged_locked(p) > pager_high_locked(p)) {
        pager_kick_writer(p);
    }
}

/* From a frame */

void pager_install_frame_locked(PagerShard *sh, uint64_t page)
{
    Pager *p = sh->p;
    uint32_t frame = page_ref(&p->pages, page);

    page_install_begin(&p->pages, page);
    qemu_mutex_unlock(&p->lock);
    /* COPY, not MOVE: moving back costs several times as much. */
    uffd_swapper_copy(sh->uffd, pager_addr(p, page),
                      frame_addr(&p->frames, frame), BSST_PAGE_SIZE);
    qemu_mutex_lock(&p->lock);
    install_done_locked(p, page, 1);
    frame_unref(&p->frames, frame);
    if (p->frames.ndropped >= PAGER_WRITE_BATCH / 4) {
        pager_kick_writer(p);
    }
}

/* Zeroes */

/*
 * First touches come in runs: a write populates the rest of the window as
 * far as it is empty and memory allows.
 */
static unsigned zero_run_locked(Pager *p, uint64_t page, bool is_write)
{
    unsigned max = PAGER_WINDOW - page % PAGER_WINDOW, n = 1;
    uint64_t charged = pager_charged_locked(p);

    if (!is_write) {
        return 1;
    }
    if (!pager_yields_locked(p)) {
        uint64_t high = pager_high_locked(p);

        max = MIN(max, charged < high ? high - charged : 1);
    }
    while (n < max && page_state(&p->pages, page + n) == PAGE_ZERO) {
        n++;
    }
    return n;
}

static void install_zeroes_locked(PagerShard *sh, uint64_t page, bool is_write)
{
    Pager *p = sh->p;
    unsigned n = zero_run_locked(p, page, is_write);
    void *addr = pager_addr(p, page);

    for (unsigned i = 0; i < n; i++) {
        page_install_begin(&p->pages, page + i);
    }
    qemu_mutex_unlock(&p->lock);
    if (is_write) {
        uffd_swapper_copy(sh->uffd, addr, p->zeroes,
                          (size_t)n * BSST_PAGE_SIZE);
    } else {
        uffd_swapper_zero(sh->uffd, addr, BSST_PAGE_SIZE);
    }
    qemu_mutex_lock(&p->lock);
    install_done_locked(p, page, n);
}

/* From the store */

typedef struct Load {
    PagerShard *sh;
    uint64_t page;              /* first */
    unsigned n;
    BsstSlot slot;              /* of the first; the others follow it */
    bool restoring;
    int64_t start_ns;           /* of the fault; 0 if there was none */
} Load;

/* @page continues a run: it is in @slot, and has all of @flags. */
static bool load_fits(Pager *p, uint64_t page, BsstSlot slot, uint32_t flags)
{
    return page_state(&p->pages, page) == PAGE_SWAPPED &&
           page_ref(&p->pages, page) == slot &&
           (!flags || page_flag(&p->pages, page, flags));
}

/*
 * The run around @page, within one aligned window, whose slots follow each
 * other as the pages do.
 */
static void load_run_locked(Pager *p, Load *l, uint64_t page, unsigned max)
{
    BsstSlot slot = page_ref(&p->pages, page);
    uint64_t start = page - page % max, end = start + max;
    uint64_t a = page, b = page + 1;
    uint32_t flags = l->restoring ? PAGE_FLAG_INTERCEPTED : 0;

    while (a > start && slot >= page - a + 1 &&
           load_fits(p, a - 1, slot - (page - a + 1), flags)) {
        a--;
    }
    while (b < end && load_fits(p, b, slot + (b - page), flags)) {
        b++;
    }
    l->page = a;
    l->n = b - a;
    l->slot = slot - (page - a);
}

/* Some page of @l still waits for us. */
static bool load_wanted(Pager *p, const Load *l)
{
    QEMU_LOCK_GUARD(&p->lock);

    for (unsigned i = 0; i < l->n; i++) {
        if (page_state(&p->pages, l->page + i) == PAGE_LOADING &&
            page_ref(&p->pages, l->page + i) == l->slot + i) {
            return !p->stopping;
        }
    }
    return false;
}

/* Read until it succeeds, or until nobody wants it any more. */
static int coroutine_fn load_co_read(Pager *p, const Load *l, void *buf)
{
    for (unsigned tries = 0; ; tries++) {
        int ret = bsst_store_co_read(p->store, l->slot, l->n, buf);

        if (ret == 0 || !load_wanted(p, l)) {
            if (tries >= READ_RETRIES) {
                WITH_QEMU_LOCK_GUARD(&p->lock) {
                    p->read_error = false;
                }
            }
            return ret;
        }
        if (tries >= READ_RETRIES) {
            pager_store_error(p, false, -ret);
            qemu_co_sleep_ns(QEMU_CLOCK_REALTIME, NANOSECONDS_PER_SECOND);
        }
    }
}

/*
 * Take those pages of @l that are still LOADING from it (others may have
 * installed or discarded some, or they may be on their way again).  Returns
 * them as a bitmap.
 */
static uint64_t load_take_locked(Pager *p, const Load *l)
{
    uint64_t taken = 0;

    for (unsigned i = 0; i < l->n; i++) {
        uint64_t page = l->page + i;

        if (page_state(&p->pages, page) != PAGE_LOADING ||
            page_ref(&p->pages, page) != l->slot + i) {
            continue;
        }
        p->n.intercepted_restored +=
            page_flag(&p->pages, page, PAGE_FLAG_INTERCEPTED) &&
            page_flag(&p->pages, page, PAGE_FLAG_RESTORING) &&
            !page_flag(&p->pages, page, PAGE_FLAG_FAULTED);
        page_install_begin(&p->pages, page);
        taken |= 1ull << i;
    }
    return taken;
}

static void load_install(const Load *l, const uint8_t *buf)
{
    Pager *p = l->sh->p;
    uint64_t taken;
    unsigned i, run;

    WITH_QEMU_LOCK_GUARD(&p->lock) {
        taken = load_take_locked(p, l);
    }
    for (i = 0; i < l->n; i += run) {
        bool in = taken >> i & 1;

        for (run = 1; i + run < l->n && (taken >> (i + run) & 1) == in; run++) {
            /* count */
        }
        if (!in) {
            continue;
        }
        uffd_swapper_copy(l->sh->uffd, pager_addr(p, l->page + i),
                          buf + (size_t)i * BSST_PAGE_SIZE,
                          (size_t)run * BSST_PAGE_SIZE);
        WITH_QEMU_LOCK_GUARD(&p->lock) {
            install_done_locked(p, l->page + i, run);
        }
    }
}

static void coroutine_fn load_co_entry(void *opaque)
{
    Load *l = opaque;
    PagerShard *sh = l->sh;
    Pager *p = sh->p;
    void *buf = qemu_memalign(BSST_PAGE_SIZE, (size_t)l->n * BSST_PAGE_SIZE);
    BsstSlot slot[PAGER_WINDOW];

    if (load_co_read(p, l, buf) == 0) {
        load_install(l, buf);
        if (l->start_ns) {
            bsst_latency_add(&p->lat_store, get_clock() - l->start_ns);
        }
    }
    qemu_vfree(buf);

    /* P3: the references that the pages owned are ours. */
    for (unsigned i = 0; i < l->n; i++) {
        slot[i] = l->slot + i;
    }
    bsst_slot_unref(p->store, slot, l->n);

    WITH_QEMU_LOCK_GUARD(&p->lock) {
        p->loads--;
        if (l->restoring) {
            sh->restoring--;
        }
    }
    trace_pager_loaded(p->id, l->page, l->n, l->slot, l->restoring);
    if (l->restoring) {
        qemu_bh_schedule(sh->restore_bh);
    }
    g_free(l);
    pager_co_end(p);
}

/* Mark the pages and return the load, to be started without the lock. */
static Load *load_begin_locked(PagerShard *sh, uint64_t page, unsigned max,
                               bool restoring, int64_t start_ns)
{
    Pager *p = sh->p;
    Load *l = g_new(Load, 1);

    *l = (Load) { .sh = sh, .restoring = restoring, .start_ns = start_ns };
    load_run_locked(p, l, page, max);
    for (unsigned i = 0; i < l->n; i++) {
        page_load_begin(&p->pages, l->page + i);
        if (restoring) {
            page_set_flag(&p->pages, l->page + i, PAGE_FLAG_RESTORING);
            p->n.intercepted_restore_pages++;
        }
    }
    p->loads++;
    sh->restoring += restoring;
    p->n.swap_ins += l->n;
    p->n.swap_in_requests++;
    return l;
}

void pager_load_locked(PagerShard *sh, uint64_t page, unsigned max,
                       bool restoring)
{
    Load *l = load_begin_locked(sh, page, max, restoring, 0);

    qemu_mutex_unlock(&sh->p->lock);
    pager_co_start(sh->p, sh->ctx, load_co_entry, l);
    qemu_mutex_lock(&sh->p->lock);
}

/* Faults */

/* A fault that must wait for memory below the limit, or for arming. */
typedef struct Waiter {
    PagerShard *sh;
    void *addr;
    bool is_write;
    int64_t start_ns;
} Waiter;

static bool must_wait_locked(Pager *p)
{
    return !pager_yields_locked(p) && pager_charged_locked(p) >= p->limit;
}

static void coroutine_fn admit_co_entry(void *opaque)
{
    Waiter *w = opaque;
    Pager *p = w->sh->p;

    /* Direct reclaim: who needs memory helps to find some. */
    pager_evict(p, PAGER_WINDOW);
    pager_kick_writer(p);
    WITH_QEMU_LOCK_GUARD(&p->lock) {
        if (must_wait_locked(p)) {
            qemu_co_queue_wait(&p->admit, &p->lock);
        }
    }
    pager_fault(w->sh, w->addr, w->is_write, w->start_ns);
    pager_co_end(w->sh->p);
    g_free(w);
}

static void coroutine_fn arming_co_entry(void *opaque)
{
    Waiter *w = opaque;

    qemu_co_sleep_ns(QEMU_CLOCK_REALTIME, 100 * SCALE_US);
    pager_fault(w->sh, w->addr, w->is_write, w->start_ns);
    pager_co_end(w->sh->p);
    g_free(w);
}

static void fault_later_locked(PagerShard *sh, uint64_t page, bool is_write,
                               int64_t start_ns, CoroutineEntry *entry)
{
    Waiter *w = g_new(Waiter, 1);

    *w = (Waiter) {
        .sh = sh,
        .addr = pager_addr(sh->p, page),
        .is_write = is_write,
        .start_ns = start_ns,
    };
    qemu_mutex_unlock(&sh->p->lock);
    pager_co_start(sh->p, sh->ctx, entry, w);
    qemu_mutex_lock(&sh->p->lock);
}

/* A blocking fault on a page that was written to disk while it was out. */
static void count_intercepted_locked(Pager *p, uint64_t page, bool is_write)
{
    if (page_flag(&p->pages, page, PAGE_FLAG_INTERCEPTED) &&
        !page_flag(&p->pages, page, PAGE_FLAG_FAULTED)) {
        *(is_write ? &p->n.intercepted_faults
                   : &p->n.intercepted_read_faults) += 1;
    }
}

static void fault_store_locked(PagerShard *sh, uint64_t page, bool is_write,
                               int64_t start_ns)
{
    Pager *p = sh->p;
    Load *l;

    if (must_wait_locked(p)) {
        fault_later_locked(sh, page, is_write, start_ns, admit_co_entry);
        return;
    }
    count_intercepted_locked(p, page, is_write);
    p->n.faults_store++;
    l = load_begin_locked(sh, page, p->cluster, false, start_ns);
    page_set_flag(&p->pages, page, PAGE_FLAG_FAULTED);
    qemu_mutex_unlock(&p->lock);
    pager_co_start(p, sh->ctx, load_co_entry, l);
    qemu_mutex_lock(&p->lock);
}

void pager_fault(PagerShard *sh, void *addr, bool is_write, int64_t start_ns)
{
    Pager *p = sh->p;
    BsstLatency *lat = NULL;
    PageState state = PAGE_NONE;
    uint64_t page = 0;

    qemu_mutex_lock(&p->lock);
    if (pager_lookup(p, addr, &page)) {
        state = page_state(&p->pages, page);
    }
    trace_pager_fault(p->id, page, state, is_write);
    switch (state) {
    case PAGE_NONE:
        if (p->arming) {
            fault_later_locked(sh, page, is_write, start_ns, arming_co_entry);
            break;
        }
        /* fall through */
    case PAGE_RESIDENT:
        /* There by now; or gone behind our back, and reads as zeroes. */
        p->n.faults_raced++;
        lat = &p->lat_raced;
        qemu_mutex_unlock(&p->lock);
        uffd_swapper_zero(sh->uffd, addr, BSST_PAGE_SIZE);
        qemu_mutex_lock(&p->lock);
        break;
    case PAGE_EVICTING:
        /* Who evicts brings it back. */
        p->n.faults_raced++;
        page_set_flag(&p->pages, page, PAGE_FLAG_FAULTED);
        break;
    case PAGE_LOADING:
        count_intercepted_locked(p, page, is_write);
        page_set_flag(&p->pages, page, PAGE_FLAG_FAULTED);
        /* fall through */
    case PAGE_INSTALLING:
        /* Who installs wakes. */
        p->n.faults_raced++;
        break;
    case PAGE_VICTIM:
    case PAGE_WRITING:
        p->n.faults_victim++;
        lat = &p->lat_victim;
        pager_install_frame_locked(sh, page);
        break;
    case PAGE_ZERO:
        if (must_wait_locked(p)) {
            fault_later_locked(sh, page, is_write, start_ns, admit_co_entry);
            break;
        }
        p->n.faults_zero++;
        lat = &p->lat_zero;
        install_zeroes_locked(sh, page, is_write);
        break;
    case PAGE_SWAPPED:
        fault_store_locked(sh, page, is_write, start_ns);
        break;
    default:
        g_assert_not_reached();
    }
    qemu_mutex_unlock(&p->lock);
    if (lat) {
        bsst_latency_add(lat, get_clock() - start_ns);
    }
}

/* From a disk read */

bool pager_install(BsstPager *pager, void *addr, const void *buf)
{
    Pager *p = container_of(pager, Pager, base);
    BsstSlot slot = BSST_SLOT_NONE;
    uint32_t frame = FRAME_NONE;
    uint64_t page;

    WITH_QEMU_LOCK_GUARD(&p->lock) {
        if (!pager_lookup(p, addr, &page) || !page_is_out(&p->pages, page)) {
            return false;
        }
        switch (page_state(&p->pages, page)) {
        case PAGE_SWAPPED:
            slot = page_ref(&p->pages, page);
            break;
        case PAGE_VICTIM:
        case PAGE_WRITING:
            frame = page_ref(&p->pages, page);
            break;
        default:
            /* ZERO owns nothing; what LOADING owned is the loader's (P3). */
            break;
        }
        p->n.installed++;
        page_install_begin(&p->pages, page);
    }
    uffd_swapper_copy(pager_shard(p, page)->uffd, addr, buf, BSST_PAGE_SIZE);
    WITH_QEMU_LOCK_GUARD(&p->lock) {
        install_done_locked(p, page, 1);
        if (frame != FRAME_NONE) {
            frame_unref(&p->frames, frame);
        }
    }
    if (slot != BSST_SLOT_NONE) {
        bsst_slot_unref(p->store, &slot, 1);
    }
    return true;
}
