/*
 * Pager: the page lock, what the block driver may ask, discards
 *
 * Invariants; asserts and tests quote them:
 *
 *   P1  SWAPPED means that the page is absent and its slot has been written
 *       completely; the page owns a reference on the slot.
 *   P2  VICTIM and WRITING mean that the page is absent and its frame has its
 *       content; the page owns a reference on the frame.  If the frame of a
 *       VICTIM has a slot, that has the same content, and is the frame's.
 *   P3  LOADING means that the page is absent and its slot intact; the loader
 *       owns the reference on the slot that was the page's.
 *   P4  A claim is one step under the page lock: the state is read and the
 *       reference taken before anybody can change either.  Once a page is
 *       INSTALLING the guest may be changing it: it is never claimed then.
 *       That a RESIDENT page is clean is confirmed afterwards (P8).
 *   P5  A discard returns only when nothing that was read before it can be
 *       installed after it, and what was present is unmapped.
 *   P6  Only the thread that put a page into transit takes it out.
 *
 * P7 to P10, about pages that are bound, are in bound.c.
 *
 * This work is licensed under the terms of the GNU GPL, version 2 or later.
 * See the COPYING file in the top-level directory.
 */

#include "qemu/osdep.h"
#include "block/aio.h"
#include "block/aio-wait.h"
#include "pager.h"
#include "qapi/error.h"
#include "qapi/qapi-events-host-swapper.h"
#include "qemu/lockable.h"
#include "qemu/madvise.h"
#include "qemu/main-loop.h"
#include "qemu/timer.h"
#include "trace.h"
#include "uffd.h"

/* Pages that are discarded under one hold of the page lock. */
#define DISCARD_BATCH   512

static inline bool region_lookup(const PagerRegion *r, const void *addr,
                                 uint64_t *page)
{
    uint64_t i = ((uintptr_t)addr - (uintptr_t)r->host) >> BSST_PAGE_BITS;

    *page = r->first + i;
    return i < r->npages;
}

bool pager_lookup(const Pager *p, const void *addr, uint64_t *page)
{
    for (unsigned i = 0; i < p->nregions; i++) {
        if (region_lookup(&p->region[i], addr, page)) {
            return true;
        }
    }
    return false;
}

/* The same for one of many addresses: *@r is the region of the one before. */
static inline bool lookup_next(const Pager *p, const PagerRegion **r,
                               const void *addr, uint64_t *page)
{
    if (*r && region_lookup(*r, addr, page)) {
        return true;
    }
    for (*r = p->region; *r < p->region + p->nregions; ++*r) {
        if (region_lookup(*r, addr, page)) {
            return true;
        }
    }
    *r = NULL;
    return false;
}

void *pager_addr(const Pager *p, uint64_t page)
{
    for (unsigned i = 0; i < p->nregions; i++) {
        const PagerRegion *r = &p->region[i];

        if (page >= r->first && page - r->first < r->npages) {
            return r->host + ((page - r->first) << BSST_PAGE_BITS);
        }
    }
    g_assert_not_reached();
}

PagerShard *pager_shard(const Pager *p, uint64_t page)
{
    return &p->shard[page / p->chunk_pages % p->nshards];
}

uint64_t pager_high_locked(const Pager *p)
{
    return p->limit - MIN(p->limit / 2, MAX(p->limit / 64, 2 * PAGER_WINDOW));
}

uint64_t pager_low_locked(const Pager *p)
{
    uint64_t high = pager_high_locked(p);

    return high - MIN(high / 2, MAX(p->limit / 64, PAGER_WINDOW));
}

void pager_co_start(Pager *p, AioContext *ctx, CoroutineEntry *entry,
                    void *opaque)
{
    qatomic_inc(&p->io);
    aio_co_enter(ctx, qemu_coroutine_create(entry, opaque));
}

void pager_co_end(Pager *p)
{
    qatomic_dec(&p->io);
    aio_wait_kick();
}

void pager_set_armed_locked(Pager *p, bool armed)
{
    qatomic_set(&p->base.armed, armed);
    if (p->store) {
        bsst_store_set_armed(p->store, armed);
    }
}

void pager_transit_done_locked(Pager *p)
{
    if (p->transit_waiters) {
        qemu_cond_broadcast(&p->transit_cond);
    }
}

void pager_wait_transit_locked(Pager *p)
{
    p->transit_waiters++;
    qemu_cond_wait(&p->transit_cond, &p->lock);
    p->transit_waiters--;
}

/* What the block driver may ask: BsstPagerOps */

static void claim_frame_locked(Pager *p, uint64_t page, uint32_t frame,
                               BsstPageClaim *c)
{
    c->slot = p->frames.frame[frame].slot;
    if (c->slot != BSST_SLOT_NONE) {
        c->kind = BSST_PAGE_SLOT;
        page_set_flag(&p->pages, page, PAGE_FLAG_INTERCEPTED);
        return;
    }
    c->kind = BSST_PAGE_BUFFER;
    c->buf = frame_addr(&p->frames, frame);
    frame_ref(&p->frames, frame);
}

/* What is in a slot, the caller references: the slot is in @c->slot then. */
static inline void claim_one_locked(Pager *p, uint64_t page, BsstPageClaim *c)
{
    record_event_locked(p->record, page, RECORD_DISK_WRITE);
    switch (page_state(&p->pages, page)) {
    case PAGE_SWAPPED:
    case PAGE_LOADING:
        c->kind = BSST_PAGE_SLOT;
        c->slot = page_ref(&p->pages, page);
        page_set_flag(&p->pages, page, PAGE_FLAG_INTERCEPTED);
        break;
    case PAGE_VICTIM:
    case PAGE_WRITING:
        claim_frame_locked(p, page, page_ref(&p->pages, page), c);
        break;
    case PAGE_ZERO:
        c->kind = BSST_PAGE_ZERO;
        break;
    case PAGE_RESIDENT:
        c->bound = p->claim_clean && page_is_bound(&p->pages, page);
        c->slot = page_ref(&p->pages, page);
        break;
    default:
        break;
    }
}

static void pager_claim(BsstPager *pager, void *const *addr,
                        BsstPageClaim *claim, unsigned n)
{
    Pager *p = container_of(pager, Pager, base);
    g_autofree BsstSlot *heap = n > 256 ? g_new(BsstSlot, n) : NULL;
    QEMU_UNINITIALIZED BsstSlot stack[256];
    BsstSlot *slot = heap ?: stack;
    const PagerRegion *region = NULL;
    unsigned nslots = 0, nbound = 0;
    uint64_t page;

    WITH_QEMU_LOCK_GUARD(&p->lock) {
        for (unsigned i = 0; i < n; i++) {
            claim[i].kind = BSST_PAGE_PRESENT;
            claim[i].bound = false;
            if (lookup_next(p, &region, addr[i], &page)) {
                claim_one_locked(p, page, &claim[i]);
                slot[nslots] = claim[i].slot;
                nslots += claim[i].kind == BSST_PAGE_SLOT || claim[i].bound;
                nbound += claim[i].bound;
            }
        }
        p->n.intercepted += nslots - nbound;
        if (nslots) {
            /* P4: still under the page lock */
            bsst_slot_ref(p->store, slot, nslots);
        }
    }
    if (nbound) {
        pager_confirm_claims(p, addr, claim, n);
    }
}

/*
 * Claim the first of @n pages, and those that follow it in memory as well as in
 * @addr, if they are in slots.  Returns their number, or 0 at the first page
 * that is not: the caller claims it in the other way then.
 */
static unsigned claim_run_locked(Pager *p, void *const *addr, BsstSlot *slot,
                                 unsigned n)
{
    const PagerRegion *r = NULL;
    uint64_t page, *word;
    unsigned i;

    if (!lookup_next(p, &r, addr[0], &page)) {
        return 0;
    }
    n = MIN(n, r->first + r->npages - page);
    word = &p->pages.word[page];
    for (i = 0; i < n && addr[i] == addr[0] + (size_t)i * BSST_PAGE_SIZE; i++) {
        if (!page_word_in_slot(word[i])) {
            return 0;
        }
        slot[i] = page_word_ref(word[i]);
        word[i] |= PAGE_FLAG_INTERCEPTED;
    }
    return i;
}

static void record_claims_locked(Pager *p, void *const *addr, unsigned n)
{
    uint64_t page;

    for (unsigned i = 0; i < n; i++) {
        if (pager_lookup(p, addr[i], &page)) {
            record_event_locked(p->record, page, RECORD_DISK_WRITE);
        }
    }
}

static bool pager_claim_slots(BsstPager *pager, void *const *addr,
                              BsstSlot *slot, unsigned n)
{
    Pager *p = container_of(pager, Pager, base);
    unsigned i, run;

    QEMU_LOCK_GUARD(&p->lock);
    for (i = 0; i < n; i += run) {
        run = claim_run_locked(p, addr + i, slot + i, n - i);
        if (!run) {
            return false;
        }
    }
    if (p->record) {
        record_claims_locked(p, addr, n);
    }
    p->n.intercepted += n;
    bsst_slot_ref(p->store, slot, n);       /* P4: still under the page lock */
    return true;
}

static void pager_release_claims(BsstPager *pager, const BsstPageClaim *claim,
                                 unsigned n)
{
    Pager *p = container_of(pager, Pager, base);

    QEMU_LOCK_GUARD(&p->lock);
    for (unsigned i = 0; i < n; i++) {
        if (claim[i].kind == BSST_PAGE_BUFFER) {
            size_t offset = (const uint8_t *)claim[i].buf - p->frames.base;

            frame_unref(&p->frames, offset >> BSST_PAGE_BITS);
        }
    }
}

static void pager_absent(BsstPager *pager, void *const *addr, bool *absent,
                         unsigned n)
{
    Pager *p = container_of(pager, Pager, base);
    bool restored = false;
    uint64_t page;

    WITH_QEMU_LOCK_GUARD(&p->lock) {
        for (unsigned i = 0; i < n; i++) {
            absent[i] = false;
            if (!pager_lookup(p, addr[i], &page)) {
                continue;
            }
            record_event_locked(p->record, page, RECORD_DISK_READ);
            restored |= page_is_bound(&p->pages, page) &&
                        page_flag(&p->pages, page, PAGE_FLAG_RESTORING);
            absent[i] = page_is_out(&p->pages, page);
        }
    }
    if (restored) {
        pager_count_read_over(p, addr, n);
    }
}

static void pager_free(BsstPager *pager);

static const BsstPagerOps pager_ops = {
    .claim = pager_claim,
    .claim_slots = pager_claim_slots,
    .release = pager_release_claims,
    .absent = pager_absent,
    .co_admit = pager_co_admit,
    .install = pager_install,
    .written = pager_written,
    .space = pager_space,
    .free = pager_free,
};

/* Discards */

/*
 * Forget the content of @page.  Puts its slot, if it owned one, into @slot[].
 * Returns the number of slots.
 */
static unsigned discard_one_locked(Pager *p, uint64_t page, BsstSlot *slot)
{
    unsigned n = pager_unbind_locked(p, page, slot);

    switch (page_state(&p->pages, page)) {
    case PAGE_NONE:
        return 0;
    case PAGE_VICTIM:
    case PAGE_WRITING:
        frame_unref(&p->frames, page_ref(&p->pages, page));
        p->n.discarded++;
        break;
    case PAGE_SWAPPED:
        slot[n++] = page_ref(&p->pages, page);
        p->n.discarded++;
        break;
    case PAGE_LOADING:
        /* The loader drops the slot, and wakes who waits for the page. */
        pager_restored_locked(p, page, RESTORE_DISCARDED);
        p->n.discarded++;
        break;
    default:
        break;
    }
    page_discard(&p->pages, page);
    record_event_locked(p->record, page, RECORD_DISCARD);
    return n;
}

/*
 * Unmap the run of resident pages from @page on, up to @end.  Who discards is
 * about to do so too, but until then what they hold could be evicted, and
 * would come back later (P5); so they are in transit meanwhile.  Returns the
 * number of pages, and puts the slots that they were bound to into @slot[].
 */
static unsigned discard_run_locked(Pager *p, uint64_t page, uint64_t end,
                                   BsstSlot *slot, unsigned *nslots)
{
    unsigned n = 0;

    while (page + n < end && page_state(&p->pages, page + n) == PAGE_RESIDENT) {
        pager_restored_locked(p, page + n, RESTORE_DISCARDED);
        *nslots += pager_unbind_locked(p, page + n, &slot[*nslots]);
        page_evict_begin(&p->pages, page + n++, FRAME_NONE);
    }
    if (!n) {
        return 0;
    }
    qemu_mutex_unlock(&p->lock);
    qemu_madvise(pager_addr(p, page), (size_t)n << BSST_PAGE_BITS,
                 QEMU_MADV_DONTNEED);
    qemu_mutex_lock(&p->lock);
    for (unsigned i = 0; i < n; i++) {
        record_event_locked(p->record, page + i, RECORD_DISCARD);
        if (page_evict_refused(&p->pages, page + i, true)) {
            pager_touch_locked(p, page + i);
        }
    }
    pager_transit_done_locked(p);
    return n;
}

void pager_discard_pages(Pager *p, uint64_t page, uint64_t n, bool release)
{
    uint64_t end = page + n;
    BsstSlot slot[DISCARD_BATCH];

    while (page < end) {
        uint64_t stop = MIN(end, page + DISCARD_BATCH);
        unsigned nslots = 0;

        qemu_mutex_lock(&p->lock);
        while (page < stop) {
            unsigned run;

            while (page_in_transit(&p->pages, page)) {
                pager_wait_transit_locked(p);
            }
            run = release ? 0 : discard_run_locked(p, page, stop, slot,
                                                   &nslots);
            if (run) {
                page += run;
                continue;
            }
            nslots += discard_one_locked(p, page, &slot[nslots]);
            if (release && page_state(&p->pages, page) != PAGE_NONE) {
                page_release(&p->pages, page);
            }
            page++;
        }
        qemu_mutex_unlock(&p->lock);
        if (nslots) {
            bsst_slot_unref(p->store, slot, nslots);
        }
    }
}

/*
 * @host lies in one RAMBlock.  RAMBlocks come and go under the BQL, which the
 * caller holds.
 */
void pager_discard(Pager *p, void *host, size_t bytes)
{
    uint64_t page;

    if (qatomic_read(&p->base.armed) && pager_lookup(p, host, &page)) {
        pager_discard_pages(p, page, bytes >> BSST_PAGE_BITS, false);
        trace_pager_discard(p->id, host, bytes);
    }
}

/* Store errors */

typedef struct StoreErrorEvent {
    Pager *p;
    bool is_write;
    int err;
} StoreErrorEvent;

static void store_error_bh(void *opaque)
{
    StoreErrorEvent *e = opaque;

    qapi_event_send_host_swapper_store_error(e->p->id,
                                             e->is_write
                                             ? IO_OPERATION_TYPE_WRITE
                                             : IO_OPERATION_TYPE_READ,
                                             e->err == EILSEQ
                                             ? "Checksum mismatch"
                                             : strerror(e->err));
    bsst_pager_unref(&e->p->base);
    g_free(e);
}

void pager_store_error(Pager *p, bool is_write, int err)
{
    int64_t now = qemu_clock_get_ns(QEMU_CLOCK_REALTIME);
    StoreErrorEvent *e;

    WITH_QEMU_LOCK_GUARD(&p->lock) {
        *(is_write ? &p->write_error : &p->read_error) = true;
        aio_wait_kick();
        if (p->event_ns && now - p->event_ns < NANOSECONDS_PER_SECOND) {
            return;
        }
        p->event_ns = now;
    }
    trace_pager_store_error(p->id, is_write, err);
    e = g_new(StoreErrorEvent, 1);
    *e = (StoreErrorEvent) { .p = p, .is_write = is_write, .err = err };
    bsst_pager_ref(&p->base);
    aio_bh_schedule_oneshot(qemu_get_aio_context(), store_error_bh, e);
}

/* Life */

void pager_set_limit(Pager *p, uint64_t bytes)
{
    WITH_QEMU_LOCK_GUARD(&p->lock) {
        p->limit = bytes >> BSST_PAGE_BITS;
        p->releasing = !p->limit && qatomic_read(&p->base.armed);
    }
    trace_pager_limit(p->id, bytes);
    pager_kick_writer(p);
}

void pager_set_victim_bytes(Pager *p, uint64_t bytes)
{
    WITH_QEMU_LOCK_GUARD(&p->lock) {
        p->victim_target = bytes >> BSST_PAGE_BITS;
    }
    pager_kick_writer(p);
}

static IOThread *start_thread(const char *id, const char *role, unsigned index,
                              Error **errp)
{
    g_autofree char *name = g_strdup_printf("swapper-%s-%s%u", id, role,
                                            index);
    IOThread *t = iothread_create(name, errp);

    if (t) {
        /* Spinning costs more than it gains unless CPUs idle. */
        object_property_set_int(OBJECT(t), "poll-max-ns", 0, &error_abort);
    }
    return t;
}

static bool start_threads(Pager *p, Error **errp)
{
    p->writer_thread = start_thread(p->id, "writer", 0, errp);
    if (!p->writer_thread) {
        return false;
    }
    p->writer_ctx = iothread_get_aio_context(p->writer_thread);
    for (unsigned i = 0; i < p->nshards; i++) {
        PagerShard *sh = &p->shard[i];

        sh->iothread = start_thread(p->id, "fault", i, errp);
        if (!sh->iothread) {
            return false;
        }
        sh->ctx = iothread_get_aio_context(sh->iothread);
        if (!pager_shard_start(sh, errp)) {
            return false;
        }
    }
    pager_writer_init(p);
    return true;
}

Pager *pager_new(const char *id, unsigned nshards, Error **errp)
{
    Pager *p = g_new0(Pager, 1);

    p->base.ops = &pager_ops;
    p->base.refcnt = 1;
    p->id = g_strdup(id);
    p->nshards = nshards;
    p->keep_clean = uffd_swapper_tracks_writes();
    p->claim_clean = true;
    p->shard = g_new0(PagerShard, nshards);
    p->pagemap_fd = -1;
    p->frames.uffd = -1;
    policy_init(&p->policy);
    qemu_mutex_init(&p->region_lock);
    qemu_mutex_init(&p->lock);
    qemu_cond_init(&p->transit_cond);
    qemu_co_queue_init(&p->admit);
    for (unsigned i = 0; i < nshards; i++) {
        p->shard[i] = (PagerShard) { .p = p, .index = i, .uffd = -1 };
        p->shard[i].restore = g_array_new(false, false, sizeof(uint32_t));
    }
    p->zeroes = mmap(NULL, PAGER_WINDOW * BSST_PAGE_SIZE, PROT_READ,
                     MAP_PRIVATE | MAP_ANONYMOUS, -1, 0);
    p->pagemap_fd = open("/proc/self/pagemap", O_RDONLY | O_CLOEXEC);
    if (p->zeroes == MAP_FAILED || p->pagemap_fd < 0) {
        error_setg_errno(errp, errno, "host-swapper could not start");
        goto fail;
    }
    if (!frames_init(&p->frames, PAGER_MAX_VICTIM_BYTES / BSST_PAGE_SIZE +
                     PAGER_SPARE_FRAMES, errp) ||
        !start_threads(p, errp)) {
        goto fail;
    }
    return p;

fail:
    pager_stop(p);
    bsst_pager_unref(&p->base);
    return NULL;
}

static void quiesce_writer_bh(void *opaque)
{
    pager_writer_quiesce(opaque);
}

static void quiesce_shard_bh(void *opaque)
{
    pager_shard_quiesce(opaque);
}

/* First whatever starts work, then the work, then the threads. */
void pager_stop(Pager *p)
{
    WITH_QEMU_LOCK_GUARD(&p->lock) {
        p->stopping = true;
        pager_set_armed_locked(p, false);
    }
    if (p->writer_ctx) {
        aio_wait_bh_oneshot(p->writer_ctx, quiesce_writer_bh, p);
    }
    for (unsigned i = 0; i < p->nshards; i++) {
        if (p->shard[i].ctx) {
            aio_wait_bh_oneshot(p->shard[i].ctx, quiesce_shard_bh,
                                &p->shard[i]);
        }
    }
    if (p->frames.base) {
        pager_reclaim_frames(p);        /* lets in who waits for memory */
    }
    AIO_WAIT_WHILE_UNLOCKED(NULL, qatomic_read(&p->io));
    for (unsigned i = 0; i < p->nshards; i++) {
        pager_shard_stop(&p->shard[i]);
    }
    if (p->writer_thread) {
        iothread_destroy(p->writer_thread);
        p->writer_thread = NULL;
        p->writer_ctx = NULL;
    }
}

static void pager_free(BsstPager *pager)
{
    Pager *p = container_of(pager, Pager, base);

    frames_destroy(&p->frames);
    page_table_destroy(&p->pages);
    record_free(p->record);
    for (unsigned i = 0; i < p->nshards; i++) {
        g_array_unref(p->shard[i].restore);
    }
    if (p->pagemap_fd >= 0) {
        close(p->pagemap_fd);
    }
    if (p->zeroes != MAP_FAILED) {
        munmap(p->zeroes, PAGER_WINDOW * BSST_PAGE_SIZE);
    }
    qemu_cond_destroy(&p->transit_cond);
    qemu_mutex_destroy(&p->lock);
    qemu_mutex_destroy(&p->region_lock);
    g_free(p->region);
    g_free(p->shard);
    g_free(p->id);
    g_free(p);
}
