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
#include "qemu/bitops.h"
#include "qemu/error-report.h"
#include "qemu/host-utils.h"
#include "qemu/lockable.h"
#include "qemu/memalign.h"
#include "qemu/timer.h"
#include "trace.h"
#include "uffd.h"

/*
 * The only copy of guest memory did not arrive.  To go on would be silent
 * corruption.
 */
static void G_NORETURN install_lost(Pager *p, void *addr, int ret)
{
    error_report("host-swapper '%s': could not restore guest memory at %p: %s",
                 p->id, addr, ret < 0 ? strerror(-ret) : "it is in use");
    abort();
}

/*
 * Copy @n pages to @page from @src, which is their only copy.  @bound: they are
 * (P7).
 */
static void install_copy(PagerShard *sh, uint64_t page, const void *src,
                         unsigned n, bool bound)
{
    void *addr = pager_addr(sh->p, page);
    int ret = uffd_swapper_copy(sh->uffd, addr, src,
                                (size_t)n * BSST_PAGE_SIZE, bound);

    /* Nobody but us makes a page present that is INSTALLING (P6). */
    if (ret) {
        install_lost(sh->p, addr, ret);
    }
}

static void install_done_locked(Pager *p, uint64_t page, unsigned n)
{
    for (unsigned i = 0; i < n; i++) {
        page_install_done(&p->pages, page + i);
    }
    pager_transit_done_locked(p);
    /* While it is reclaiming, its own writes keep the writer going. */
    if (!p->reclaiming && !pager_yields_locked(p) &&
        pager_charged_locked(p) > pager_high_locked(p)) {
        pager_kick_writer(p);
    }
}

/* From a frame.  Called and returns with the lock held. */

static void install_frame_locked(PagerShard *sh, uint64_t page, bool is_write)
{
    Pager *p = sh->p;
    uint32_t frame = page_ref(&p->pages, page);
    BsstSlot slot = BSST_SLOT_NONE;

    if (!is_write && pager_binds_locked(p)) {
        slot = frame_take_slot(&p->frames, frame);
    }
    if (slot != BSST_SLOT_NONE) {
        page_install_bound(&p->pages, page, slot);
    } else {
        page_install_begin(&p->pages, page);
    }
    qemu_mutex_unlock(&p->lock);
    /* COPY, not MOVE: moving back costs several times as much. */
    install_copy(sh, page, frame_addr(&p->frames, frame), 1,
                 slot != BSST_SLOT_NONE);
    qemu_mutex_lock(&p->lock);
    install_done_locked(p, page, 1);
    frame_unref(&p->frames, frame);
    if (p->frames.ndropped >= PAGER_WRITE_BATCH / 4) {
        pager_kick_writer(p);
    }
}

void pager_recall_locked(PagerShard *sh, uint64_t page)
{
    Pager *p = sh->p;

    policy_event(&p->policy, &p->pages, page, POLICY_COME);
    page_set_flag(&p->pages, page, PAGE_FLAG_RESTORING);
    p->n.intercepted_restored++;
    install_frame_locked(sh, page, false);
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

/* Called and returns with the lock held. */
static void install_zeroes_locked(PagerShard *sh, uint64_t page, bool is_write)
{
    Pager *p = sh->p;
    unsigned n = zero_run_locked(p, page, is_write);
    void *addr = pager_addr(p, page);

    for (unsigned i = 0; i < n; i++) {
        policy_event(&p->policy, &p->pages, page + i, POLICY_COME);
        page_install_begin(&p->pages, page + i);
    }
    qemu_mutex_unlock(&p->lock);
    if (is_write) {
        uffd_swapper_copy(sh->uffd, addr, p->zeroes,
                          (size_t)n * BSST_PAGE_SIZE, false);
    } else {
        uffd_swapper_zero(sh->uffd, addr, BSST_PAGE_SIZE);
    }
    qemu_mutex_lock(&p->lock);
    install_done_locked(p, page, n);
}

/*
 * A page that should be there was touched.  It is there by now, or it went
 * behind our back, and reads as zeroes then.  In transit meanwhile: it must
 * not leave between our look at it and the zeroing.
 */
static void refill_locked(PagerShard *sh, uint64_t page)
{
    Pager *p = sh->p;

    page_refill_begin(&p->pages, page);
    qemu_mutex_unlock(&p->lock);
    uffd_swapper_zero(sh->uffd, pager_addr(p, page), BSST_PAGE_SIZE);
    qemu_mutex_lock(&p->lock);
    install_done_locked(p, page, 1);
}

/* The same where we are not in control (any more); arming waits for us. */
static void refill_stray_locked(PagerShard *sh, void *addr)
{
    Pager *p = sh->p;

    p->stray_refills++;
    qemu_mutex_unlock(&p->lock);
    uffd_swapper_zero(sh->uffd, addr, BSST_PAGE_SIZE);
    uffd_swapper_wake(sh->uffd, addr, BSST_PAGE_SIZE);
    qemu_mutex_lock(&p->lock);
    p->stray_refills--;
    pager_transit_done_locked(p);
}

/* From the store */

typedef struct Load {
    PagerShard *sh;
    uint64_t page;              /* first */
    uint8_t *addr;              /* of the first */
    unsigned n;
    BsstSlot slot;              /* of the first; the others follow it */
    uint64_t owned;             /* pages whose slot reference is ours: bitmap */
    uint64_t done;              /* pages that need nothing more: bitmap */
    bool restoring;
    bool failing;               /* counted in Pager.failing */
    int64_t start_ns;           /* of a fault not yet answered, or 0 */
} Load;

/* @page continues a run: it is in @slot. */
static bool load_fits(Pager *p, uint64_t page, BsstSlot slot)
{
    return page_state(&p->pages, page) == PAGE_SWAPPED &&
           page_ref(&p->pages, page) == slot;
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

    while (a > start && slot >= page - a + 1 &&
           load_fits(p, a - 1, slot - (page - a + 1))) {
        a--;
    }
    while (b < end && load_fits(p, b, slot + (b - page))) {
        b++;
    }
    l->page = a;
    l->addr = pager_addr(p, a);
    l->n = b - a;
    l->slot = slot - (page - a);
    l->owned = MAKE_64BIT_MASK(0, l->n);
}

/* Page @i of @l is still LOADING for @l: nobody took it from us. */
static bool load_is_ours_locked(Pager *p, const Load *l, unsigned i)
{
    return page_state(&p->pages, l->page + i) == PAGE_LOADING &&
           page_ref(&p->pages, l->page + i) == l->slot + i;
}

/*
 * @page, which is still ours, is about to be installed from slot @i of @l.  Binds
 * it unless somebody wants to write it: then the slot is the page's again.
 */
static void load_begin_install_locked(Pager *p, Load *l, unsigned i,
                                      uint64_t *bound)
{
    uint64_t page = l->page + i;

    if (page_flag(&p->pages, page, PAGE_FLAG_BOUND)) {
        page_install_bound(&p->pages, page, l->slot + i);
        l->owned &= ~(1ull << i);
        *bound |= 1ull << i;
    } else {
        page_install_begin(&p->pages, page);
    }
}

/*
 * Take those pages of @mask that are still ours.  Returns them, in @wanted those
 * that somebody waits for, and in @bound those that are bound.  Others have been
 * installed or discarded, or are on their way again.
 */
static uint64_t load_take_locked(Pager *p, Load *l, uint64_t mask,
                                 uint64_t *wanted, uint64_t *bound)
{
    uint64_t taken = 0;

    *wanted = *bound = 0;
    for (unsigned i = 0; i < l->n; i++) {
        uint64_t page = l->page + i;

        if (!(mask >> i & 1) || !load_is_ours_locked(p, l, i)) {
            continue;
        }
        p->n.intercepted_restored +=
            page_flag(&p->pages, page, PAGE_FLAG_INTERCEPTED) &&
            page_flag(&p->pages, page, PAGE_FLAG_RESTORING) &&
            !page_flag(&p->pages, page, PAGE_FLAG_FAULTED);
        if (page_flag(&p->pages, page, PAGE_FLAG_FAULTED)) {
            policy_event(&p->policy, &p->pages, page, POLICY_FAULT);
            pager_restored_locked(p, page, RESTORE_WANTED);
            *wanted |= 1ull << i;
        } else {
            policy_event(&p->policy, &p->pages, page, POLICY_COME);
            record_event_locked(p->record, page, l->restoring ? RECORD_RESTORE
                                                              : RECORD_LOAD);
        }
        load_begin_install_locked(p, l, i, bound);
        taken |= 1ull << i;
    }
    return taken;
}

/*
 * Install the pages of @mask, which are INSTALLING, and of which those of @bound
 * are bound; @buf has all of @l.
 */
static void load_copy(Load *l, const uint8_t *buf, uint64_t mask,
                      uint64_t bound)
{
    Pager *p = l->sh->p;

    while (mask) {
        unsigned i = ctz64(mask);
        bool is_bound = bound >> i & 1;
        unsigned run = cto64((is_bound ? mask & bound : mask & ~bound) >> i);

        install_copy(l->sh, l->page + i, buf + (size_t)i * BSST_PAGE_SIZE,
                     run, is_bound);
        WITH_QEMU_LOCK_GUARD(&p->lock) {
            install_done_locked(p, l->page + i, run);
        }
        mask &= ~MAKE_64BIT_MASK(i, run);
    }
}

static void load_answered(Load *l)
{
    if (l->start_ns) {
        bsst_latency_add(&l->sh->p->lat_store, get_clock() - l->start_ns);
        l->start_ns = 0;
    }
}

/*
 * Install those pages of @mask that are still ours, first what somebody waits
 * for: he need not wait for its neighbours, too.
 */
static void load_install(Load *l, const uint8_t *buf, uint64_t mask)
{
    Pager *p = l->sh->p;
    uint64_t taken, wanted, bound;

    WITH_QEMU_LOCK_GUARD(&p->lock) {
        taken = load_take_locked(p, l, mask, &wanted, &bound);
    }
    load_copy(l, buf, wanted, bound);
    if (wanted) {
        load_answered(l);
    }
    load_copy(l, buf, taken & ~wanted, bound);
    l->done |= mask;
    if (taken != mask) {
        /* Who waits for a page that was discarded must look again. */
        uffd_swapper_wake(l->sh->uffd, l->addr,
                          (size_t)l->n * BSST_PAGE_SIZE);
    }
}

/*
 * The slots of the remaining pages cannot be read.  Who was touched stays, and
 * is tried again; the others go back to where they were.  Returns false if
 * none is left.
 */
static bool load_give_up_locked(Pager *p, Load *l)
{
    for (unsigned i = 0; i < l->n; i++) {
        uint64_t bit = 1ull << i, page = l->page + i;

        if (l->done & bit) {
            continue;
        }
        if (!load_is_ours_locked(p, l, i) || p->stopping) {
            l->done |= bit;
        } else if (!page_flag(&p->pages, page, PAGE_FLAG_FAULTED)) {
            page_load_failed(&p->pages, page);
            l->owned &= ~bit;       /* P1: it is the page's again */
            l->done |= bit;
        }
    }
    return l->done != MAKE_64BIT_MASK(0, l->n);
}

/* One bad slot must not take its neighbours along: read one by one. */
static int coroutine_fn load_co_each(Load *l, uint8_t *buf)
{
    Pager *p = l->sh->p;
    int ret = 0;

    for (unsigned i = 0; i < l->n; i++) {
        uint8_t *page = buf + (size_t)i * BSST_PAGE_SIZE;
        int err;

        if (l->done >> i & 1) {
            continue;
        }
        err = bsst_store_co_read(p->store, l->slot + i, 1, page);
        if (err == 0) {
            load_install(l, buf, 1ull << i);
        } else {
            ret = err;
        }
    }
    return ret;
}

/*
 * Read and install until nothing is left to do: at once, then once a second.
 * False: some was given up.
 */
static bool coroutine_fn load_co_all(Load *l, uint8_t *buf)
{
    Pager *p = l->sh->p;
    bool again;
    int ret;

    ret = bsst_store_co_read_retry(p->store, l->slot, l->n, buf);
    if (ret == 0) {
        load_install(l, buf, MAKE_64BIT_MASK(0, l->n));
        return true;
    }
    while ((ret = load_co_each(l, buf)) < 0) {
        WITH_QEMU_LOCK_GUARD(&p->lock) {
            p->failing += !l->failing;
            l->failing = true;
            again = load_give_up_locked(p, l);
        }
        pager_store_error(p, false, -ret);
        if (!again) {
            uffd_swapper_wake(l->sh->uffd, l->addr,
                              (size_t)l->n * BSST_PAGE_SIZE);
            return false;
        }
        qemu_co_sleep_ns(QEMU_CLOCK_REALTIME, NANOSECONDS_PER_SECOND);
    }
    return true;
}

/* P3: the references that the pages owned are ours. */
static void load_unref(Load *l)
{
    BsstSlot slot[PAGER_WINDOW];
    unsigned n = 0;

    for (unsigned i = 0; i < l->n; i++) {
        if (l->owned >> i & 1) {
            slot[n++] = l->slot + i;
        }
    }
    bsst_slot_unref(l->sh->p->store, slot, n);
}

static void coroutine_fn load_co_entry(void *opaque)
{
    Load *l = opaque;
    PagerShard *sh = l->sh;
    Pager *p = sh->p;
    void *buf = qemu_memalign(BSST_PAGE_SIZE, (size_t)l->n * BSST_PAGE_SIZE);
    bool read;

    read = load_co_all(l, buf);
    qemu_vfree(buf);
    load_answered(l);       /* if not before, somebody else did it */
    load_unref(l);
    WITH_QEMU_LOCK_GUARD(&p->lock) {
        p->loads--;
        p->failing -= l->failing;
        if (read && !p->failing) {
            p->read_error = false;
        }
        if (l->restoring) {
            sh->restoring--;
            if (sh->restore_bh) {
                qemu_bh_schedule(sh->restore_bh);
            }
        }
    }
    trace_pager_loaded(p->id, l->page, l->n, l->slot, l->restoring);
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
        if (pager_binds_locked(p)) {
            page_set_flag(&p->pages, l->page + i, PAGE_FLAG_BOUND);
        }
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

void coroutine_fn pager_co_admit(BsstPager *pager)
{
    Pager *p = container_of(pager, Pager, base);
    bool wait;

    WITH_QEMU_LOCK_GUARD(&p->lock) {
        wait = must_wait_locked(p);
    }
    if (!wait) {
        return;
    }
    /* Direct reclaim: who needs memory helps to find some. */
    pager_evict(p, PAGER_WINDOW);
    WITH_QEMU_LOCK_GUARD(&p->lock) {
        if (must_wait_locked(p)) {
            pager_kick_writer(p);
            qemu_co_queue_wait(&p->admit, &p->lock);
        }
    }
}

static void coroutine_fn admit_co_entry(void *opaque)
{
    Waiter *w = opaque;
    Pager *p = w->sh->p;

    pager_co_admit(&p->base);
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

static void fault_later_locked(PagerShard *sh, void *addr, bool is_write,
                               int64_t start_ns, CoroutineEntry *entry)
{
    Waiter *w = g_new(Waiter, 1);

    *w = (Waiter) {
        .sh = sh,
        .addr = addr,
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

/* Somebody waits for @page, which is LOADING. */
static void load_wanted_locked(Pager *p, uint64_t page, bool is_write)
{
    page_set_flag(&p->pages, page, PAGE_FLAG_FAULTED);
    if (is_write) {
        page_clear_flag(&p->pages, page, PAGE_FLAG_BOUND);
    }
}

static void fault_store_locked(PagerShard *sh, uint64_t page, bool is_write,
                               int64_t start_ns)
{
    Pager *p = sh->p;
    Load *l;

    if (must_wait_locked(p)) {
        fault_later_locked(sh, pager_addr(p, page), is_write, start_ns,
                           admit_co_entry);
        return;
    }
    count_intercepted_locked(p, page, is_write);
    p->n.faults_store++;
    record_event_locked(p->record, page, is_write ? RECORD_FAULT_WRITE
                                                  : RECORD_FAULT_READ);
    l = load_begin_locked(sh, page, p->cluster, false, start_ns);
    load_wanted_locked(p, page, is_write);
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
        p->n.faults_raced++;
        if (p->arming) {
            fault_later_locked(sh, addr, is_write, start_ns, arming_co_entry);
        } else {
            refill_stray_locked(sh, addr);
        }
        break;
    case PAGE_RESIDENT:
        p->n.faults_raced++;
        lat = &p->lat_raced;
        refill_locked(sh, page);
        break;
    case PAGE_EVICTING:
        /* Who evicts brings it back. */
        p->n.faults_raced++;
        page_set_flag(&p->pages, page, PAGE_FLAG_FAULTED);
        break;
    case PAGE_LOADING:
        count_intercepted_locked(p, page, is_write);
        load_wanted_locked(p, page, is_write);
        record_event_locked(p->record, page, is_write ? RECORD_FAULT_WRITE
                                                      : RECORD_FAULT_READ);
        /* fall through */
    case PAGE_INSTALLING:
        /* Who installs wakes. */
        p->n.faults_raced++;
        break;
    case PAGE_VICTIM:
    case PAGE_WRITING:
        p->n.faults_victim++;
        lat = &p->lat_victim;
        record_event_locked(p->record, page, RECORD_HIT);
        policy_event(&p->policy, &p->pages, page, POLICY_HIT);
        install_frame_locked(sh, page, is_write);
        break;
    case PAGE_ZERO:
        if (must_wait_locked(p)) {
            fault_later_locked(sh, addr, is_write, start_ns, admit_co_entry);
            break;
        }
        p->n.faults_zero++;
        lat = &p->lat_zero;
        record_event_locked(p->record, page, RECORD_ZERO);
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

static void coroutine_fn touch_co_entry(void *opaque)
{
    Waiter *w = opaque;

    pager_fault(w->sh, w->addr, w->is_write, w->start_ns);
    pager_co_end(w->sh->p);
    g_free(w);
}

void pager_touch_locked(Pager *p, uint64_t page)
{
    fault_later_locked(pager_shard(p, page), pager_addr(p, page), true,
                       get_clock(), touch_co_entry);
}

/* From a disk read */

bool pager_install(BsstPager *pager, void *addr, const void *buf)
{
    Pager *p = container_of(pager, Pager, base);
    BsstSlot slot = BSST_SLOT_NONE;
    uint32_t frame = FRAME_NONE;
    uint64_t page;
    int ret;

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
            pager_restored_locked(p, page, RESTORE_READ_OVER);
            break;
        }
        p->n.installed++;
        policy_event(&p->policy, &p->pages, page, POLICY_COME);
        page_install_begin(&p->pages, page);
    }
    ret = uffd_swapper_copy(pager_shard(p, page)->uffd, addr, buf,
                            BSST_PAGE_SIZE, false);
    WITH_QEMU_LOCK_GUARD(&p->lock) {
        install_done_locked(p, page, 1);
        if (frame != FRAME_NONE) {
            frame_unref(&p->frames, frame);
        }
    }
    if (slot != BSST_SLOT_NONE) {
        bsst_slot_unref(p->store, &slot, 1);
    }
    return ret == 0;
}
