/*
 * The way out: choose, move to frames, write to the store
 *
 * Above the high mark pages are moved into frames in small aligned groups
 * that the policy chooses; a moved page costs its second chance nothing but
 * a copy.  When the victim cache is full, its oldest pages are written, sorted
 * by guest address, into contiguous slots, until the low mark is reached.
 *
 * Only a write that has completed brings the charge down: a page that moves
 * into a frame takes its charge along.
 *
 * This work is licensed under the terms of the GNU GPL, version 2 or later.
 * See the COPYING file in the top-level directory.
 */

#include "qemu/osdep.h"
#include "block/aio.h"
#include "block/aio-wait.h"
#include "pager.h"
#include "qapi/qapi-events-host-swapper.h"
#include "qemu/cutils.h"
#include "qemu/lockable.h"
#include "qemu/timer.h"
#include "trace.h"
#include "uffd.h"

/* Groups that are looked at for one batch, at most. */
#define PICK_TRIES      512
/* Pages of one batch of moves. */
#define EVICT_BATCH     64
/* Bindings that are given up at a time where the store is short of slots. */
#define GIVE_UP_BATCH   1024

#define TICK_MS         20
#define RETRY_MS        10

/* Choose and move */

typedef struct Move {
    uint64_t page;
    uint32_t frame;
    uint32_t n;                 /* at most PAGER_WINDOW */
    /* Bitmaps of pages that own a slot, and of those that have its content */
    uint64_t bound;
    uint64_t clean;
    BsstSlot slot[PAGER_WINDOW];
    /* The pages' flags, which tell whether they came back unasked */
    uint32_t restored[PAGER_WINDOW];
} Move;

static bool may_leave_locked(Pager *p, uint64_t page, bool forced)
{
    return page_state(&p->pages, page) == PAGE_RESIDENT && !p->disarming &&
           (forced || policy_may_leave(&p->policy, &p->pages, page));
}

/*
 * Mark the run of pages from @page on, up to @end, as leaving.  @forced: the
 * policy is not asked.  Returns how many pages were looked at, at least 1.
 */
static unsigned move_begin_locked(Pager *p, uint64_t page, uint64_t end,
                                  bool forced, Move *m)
{
    uint64_t run = page;

    m->n = 0;
    m->bound = m->clean = 0;
    while (run < end && may_leave_locked(p, run, forced)) {
        run++;
    }
    if (run == page) {
        return 1;
    }
    m->page = page;
    m->n = frames_alloc(&p->frames, run - page, page, &m->frame);
    for (uint32_t i = 0; i < m->n; i++) {
        m->restored[i] = p->pages.word[page + i];
        if (pager_unbind_locked(p, page + i, &m->slot[i])) {
            m->bound |= 1ull << i;
        }
        page_evict_begin(&p->pages, page + i, m->frame + i);
    }
    if (!m->n) {
        p->n.refused_no_frame++;
    }
    return MAX(m->n, 1);
}

/* Choose pages.  Returns the number of moves. */
static unsigned pick_locked(Pager *p, unsigned want, Move *move, unsigned max)
{
    unsigned n = 0, got = 0;

    for (unsigned t = 0; t < PICK_TRIES && got < want && n < max; t++) {
        uint64_t page = policy_next_group(&p->policy, &p->pages);
        uint64_t end = page + POLICY_GROUP;

        while (page < end && got < want && n < max) {
            page += move_begin_locked(p, page, end, false, &move[n]);
            got += move[n].n;
            n += move[n].n > 0;
        }
    }
    return n;
}

static void move_refused_locked(Pager *p, int err)
{
    switch (err) {
    case EBUSY:
        p->n.refused_pinned++;
        break;
    case ENOENT:
        p->n.refused_absent++;
        break;
    case EAGAIN:
        p->n.refused_retry++;
        break;
    default:
        p->n.refused_other++;
        break;
    }
}

/* P9: before the move.  Which of the bound pages have not been written? */
static void move_ask_clean(Pager *p, Move *m)
{
    if (m->bound) {
        m->clean = m->bound & uffd_swapper_protected(p->pagemap_fd,
                                                     pager_addr(p, m->page),
                                                     m->n);
    }
}

/* P9: after the move.  Were they written between our look and the move? */
static void move_verify_clean(Pager *p, Move *m, uint32_t first, uint32_t n)
{
    for (uint32_t i = first; i < first + n; i++) {
        if (m->clean >> i & 1 &&
            !bsst_store_slot_matches(p->store, m->slot[i],
                                     frame_addr(&p->frames, m->frame + i))) {
            m->clean &= ~(1ull << i);
            QEMU_LOCK_GUARD(&p->lock);
            p->n.clean_refuted++;
        }
    }
}

/*
 * Page @i of @m has moved, or not (@err).  Brings it back if it was touched.  A
 * slot that still is its page's or its frame's leaves @m->bound.
 */
static void moved_locked(Pager *p, Move *m, uint32_t i, int err)
{
    uint64_t page = m->page + i;
    uint32_t frame = m->frame + i;
    bool bound = m->bound >> i & 1, kept = false, touched;

    if (!err) {
        p->n.evicted++;
        record_event_locked(p->record, page, RECORD_EVICT);
        touched = page_evict_done(&p->pages, page);
        frames_queue(&p->frames, frame);
        kept = m->clean >> i & 1;
        if (kept) {
            p->frames.frame[frame].slot = m->slot[i];       /* P2 */
        }
        p->n.unbound_written += bound && !kept;
        pager_count_restored_locked(p, m->restored[i], kept ? RESTORE_UNWRITTEN
                                                            : RESTORE_WRITTEN);
    } else {
        move_refused_locked(p, err);
        touched = page_evict_refused(&p->pages, page, err == ENOENT);
        frame_cancel(&p->frames, frame);
        kept = bound && err != ENOENT;
        if (kept) {
            page_bind(&p->pages, page, m->slot[i]);         /* as it was */
        }
    }
    if (kept) {
        m->bound &= ~(1ull << i);
    }
    if (touched) {
        /* The fault is answered as if it came now. */
        pager_touch_locked(p, page);
    }
}

/* The slots that are left have no page any more. */
static void move_unref_slots(Pager *p, Move *m)
{
    unsigned n = 0;

    for (uint32_t i = 0; i < m->n; i++) {
        if (m->bound >> i & 1) {
            m->slot[n++] = m->slot[i];
        }
    }
    bsst_slot_unref(p->store, m->slot, n);
}

/* Move the pages of @m; returns how many moved. */
static unsigned do_move(Pager *p, Move *m)
{
    uint32_t done = 0, moved = 0;

    move_ask_clean(p, m);
    while (done < m->n) {
        uint32_t n;
        int err;

        n = uffd_swapper_move(p->frames.uffd, p->pagemap_fd,
                              frame_addr(&p->frames, m->frame + done),
                              pager_addr(p, m->page + done),
                              (size_t)(m->n - done) * BSST_PAGE_SIZE, &err)
            >> BSST_PAGE_BITS;
        move_verify_clean(p, m, done, n);
        QEMU_LOCK_GUARD(&p->lock);
        for (uint32_t i = 0; i < n; i++) {
            moved_locked(p, m, done + i, 0);
        }
        done += n;
        moved += n;
        if (err && done < m->n) {
            moved_locked(p, m, done, err);
            done++;
        }
        pager_transit_done_locked(p);
    }
    move_unref_slots(p, m);
    return moved;
}

unsigned pager_evict(Pager *p, unsigned want)
{
    Move move[EVICT_BATCH];
    unsigned n = 0, moved = 0;

    WITH_QEMU_LOCK_GUARD(&p->lock) {
        if (qatomic_read(&p->base.armed) && !p->arming) {
            n = pick_locked(p, want, move, ARRAY_SIZE(move));
        }
    }
    for (unsigned i = 0; i < n; i++) {
        moved += do_move(p, &move[i]);
    }
    trace_pager_evicted(p->id, n, moved);
    return moved;
}

/* Write to the store */

typedef struct WriteItem {
    uint64_t page;
    uint32_t frame;
} WriteItem;

typedef struct WriteOut {
    Pager *p;
    unsigned n;
    WriteItem item[PAGER_WRITE_BATCH];
} WriteOut;

static int compare_items(const void *a, const void *b)
{
    const WriteItem *x = a, *y = b;

    return x->page < y->page ? -1 : x->page > y->page;
}

/*
 * @page, a victim, has a slot with its content already: it needs no write.
 * Returns false if not.
 */
static bool clean_out_locked(Pager *p, uint64_t page)
{
    uint32_t frame = page_ref(&p->pages, page);
    BsstSlot slot = frame_take_slot(&p->frames, frame);

    if (slot == BSST_SLOT_NONE) {
        return false;
    }
    page_clean_out(&p->pages, page, slot);
    record_event_locked(p->record, page, RECORD_STORE);
    frame_unref(&p->frames, frame);
    p->n.clean_outs++;
    return true;
}

/*
 * Take the oldest victims; each frame gets a reference for the write.  Counts
 * those that leave without one in *@clean.
 */
static unsigned take_victims_locked(Pager *p, WriteItem *item, unsigned max,
                                    unsigned *clean)
{
    unsigned n = 0;

    while (n < max) {
        uint32_t frame = frames_dequeue(&p->frames);
        uint64_t page;

        if (frame == FRAME_NONE) {
            break;
        }
        page = p->frames.frame[frame].page;
        if (!p->frames.frame[frame].refs ||
            page_state(&p->pages, page) != PAGE_VICTIM ||
            page_ref(&p->pages, page) != frame) {
            continue;   /* stale: the page went back */
        }
        if (clean_out_locked(p, page)) {
            ++*clean;
            continue;
        }
        page_write_begin(&p->pages, page);
        frame_ref(&p->frames, frame);
        item[n++] = (WriteItem) { .page = page, .frame = frame };
    }
    return n;
}

/* The page still is what we are writing. */
static bool still_writing_locked(Pager *p, const WriteItem *it)
{
    return page_state(&p->pages, it->page) == PAGE_WRITING &&
           page_ref(&p->pages, it->page) == it->frame;
}

/* Pages of zeroes need no slot.  Keeps the others in @w. */
static void write_zeroes(WriteOut *w)
{
    Pager *p = w->p;
    unsigned n = 0;

    for (unsigned i = 0; i < w->n; i++) {
        WriteItem *it = &w->item[i];

        if (!buffer_is_zero(frame_addr(&p->frames, it->frame),
                            BSST_PAGE_SIZE)) {
            w->item[n++] = *it;
            continue;
        }
        QEMU_LOCK_GUARD(&p->lock);
        if (still_writing_locked(p, it)) {
            page_write_zero(&p->pages, it->page);
            frame_unref(&p->frames, it->frame);
            p->n.zero_outs++;
        }
        frame_unref(&p->frames, it->frame);
    }
    w->n = n;
}

/* @n pages could not be written: they stay victims. */
static void write_failed(Pager *p, const WriteItem *it, unsigned n)
{
    QEMU_LOCK_GUARD(&p->lock);

    for (unsigned i = 0; i < n; i++) {
        if (still_writing_locked(p, &it[i])) {
            page_write_failed(&p->pages, it[i].page);
            frames_queue(&p->frames, it[i].frame);
        }
        frame_unref(&p->frames, it[i].frame);
    }
}

/* @n pages stand in the slots from @first on. */
static void write_done(Pager *p, const WriteItem *it, unsigned n,
                       BsstSlot first)
{
    BsstSlot unused[PAGER_WRITE_BATCH];
    unsigned nunused = 0;

    WITH_QEMU_LOCK_GUARD(&p->lock) {
        for (unsigned i = 0; i < n; i++) {
            if (still_writing_locked(p, &it[i])) {
                page_write_done(&p->pages, it[i].page, first + i);
                record_event_locked(p->record, it[i].page, RECORD_STORE);
                frame_unref(&p->frames, it[i].frame);
            } else {
                unused[nunused++] = first + i;
            }
            frame_unref(&p->frames, it[i].frame);
        }
        p->n.swap_outs += n;
        p->n.swap_out_requests++;
        p->write_error = false;
    }
    bsst_slot_unref(p->store, unused, nunused);
}

static int coroutine_fn write_co_run(Pager *p, const WriteItem *it, unsigned n,
                                     BsstSlot first)
{
    QEMUIOVector qiov;
    int ret;

    qemu_iovec_init(&qiov, n);
    for (unsigned i = 0; i < n; i++) {
        qemu_iovec_add(&qiov, frame_addr(&p->frames, it[i].frame),
                       BSST_PAGE_SIZE);
    }
    ret = bsst_store_co_writev(p->store, first, n, &qiov);
    qemu_iovec_destroy(&qiov);
    trace_pager_written_out(p->id, n, first, ret);
    return ret;
}

static void store_full_event(Pager *p, bool full);

/* As bsst_slot_alloc().  Slots that are not needed are given up first (P10). */
static unsigned alloc_slots(Pager *p, unsigned want, BsstSlot *first)
{
    unsigned n;

    do {
        n = bsst_slot_alloc(p->store, want, first);
    } while (!n && pager_give_up_bound(p, GIVE_UP_BATCH));
    return n;
}

/* Write all of @w.  Returns 0, or -errno if some pages stayed victims. */
static int coroutine_fn write_co_all(WriteOut *w)
{
    Pager *p = w->p;
    unsigned done = 0;

    qsort(w->item, w->n, sizeof(w->item[0]), compare_items);
    write_zeroes(w);
    while (done < w->n) {
        BsstSlot slot[PAGER_WRITE_BATCH], first;
        unsigned n = alloc_slots(p, w->n - done, &first);
        int ret = n ? write_co_run(p, &w->item[done], n, first) : -ENOSPC;

        if (ret == 0) {
            write_done(p, &w->item[done], n, first);
            done += n;
            continue;
        }
        for (unsigned i = 0; i < n; i++) {
            slot[i] = first + i;
        }
        bsst_slot_unref(p->store, slot, n);
        write_failed(p, &w->item[done], w->n - done);
        if (!n) {
            store_full_event(p, true);
        } else {
            pager_store_error(p, true, -ret);
        }
        return ret;
    }
    return 0;
}

static void coroutine_fn write_co_entry(void *opaque)
{
    WriteOut *w = opaque;
    Pager *p = w->p;

    write_co_all(w);
    g_free(w);
    WITH_QEMU_LOCK_GUARD(&p->lock) {
        p->writes--;
        pager_kick_writer(p);
    }
    pager_co_end(p);
}

/* Start a write of the oldest victims.  Returns false if there are none. */
static bool start_write(Pager *p)
{
    WriteOut *w = g_new(WriteOut, 1);
    unsigned clean = 0;

    w->p = p;
    WITH_QEMU_LOCK_GUARD(&p->lock) {
        w->n = take_victims_locked(p, w->item, PAGER_WRITE_BATCH, &clean);
        p->writes += w->n != 0;
    }
    if (!w->n) {
        g_free(w);
        return clean;
    }
    pager_co_start(p, p->writer_ctx, write_co_entry, w);
    return true;
}

/* Full store */

typedef struct FullEvent {
    Pager *p;
    bool full;
} FullEvent;

static void full_event_bh(void *opaque)
{
    FullEvent *e = opaque;

    qapi_event_send_host_swapper_store_full(e->p->id, e->full);
    bsst_pager_unref(&e->p->base);
    g_free(e);
}

static void store_full_event(Pager *p, bool full)
{
    FullEvent *e;

    WITH_QEMU_LOCK_GUARD(&p->lock) {
        if (full) {
            p->n.refused_store_full++;
        }
        if (p->store_full == full) {
            return;
        }
        p->store_full = full;
    }
    trace_pager_store_full(p->id, full);
    e = g_new(FullEvent, 1);
    *e = (FullEvent) { .p = p, .full = full };
    bsst_pager_ref(&p->base);
    aio_bh_schedule_oneshot(qemu_get_aio_context(), full_event_bh, e);
}

void pager_space(BsstPager *pager)
{
    Pager *p = container_of(pager, Pager, base);

    store_full_event(p, false);
    WITH_QEMU_LOCK_GUARD(&p->lock) {
        pager_kick_writer(p);
    }
}

/* The writer */

void pager_reclaim_frames(Pager *p)
{
    uint32_t list[PAGER_WRITE_BATCH], n;

    do {
        BsstSlot slot[PAGER_WRITE_BATCH];
        unsigned nslots = 0;

        WITH_QEMU_LOCK_GUARD(&p->lock) {
            n = frames_take_dropped(&p->frames, list, ARRAY_SIZE(list));
            for (uint32_t i = 0; i < n; i++) {
                slot[nslots] = frame_take_slot(&p->frames, list[i]);
                nslots += slot[nslots] != BSST_SLOT_NONE;
            }
        }
        bsst_slot_unref(p->store, slot, nslots);
        frames_give_back(&p->frames, list, n);
        WITH_QEMU_LOCK_GUARD(&p->lock) {
            frames_put_clean(&p->frames, list, n);
        }
    } while (n);

    WITH_QEMU_LOCK_GUARD(&p->lock) {
        while (!qemu_co_queue_empty(&p->admit) &&
               (pager_yields_locked(p) ||
                pager_charged_locked(p) < p->limit)) {
            qemu_co_enter_next(&p->admit, &p->lock);
        }
    }
}

typedef enum WriterNeed {
    WRITER_IDLE,
    WRITER_EVICT,       /* fill the victim cache */
    WRITER_WRITE,       /* it is full: write its oldest pages */
} WriterNeed;

static WriterNeed writer_need_locked(Pager *p)
{
    uint64_t charged = pager_charged_locked(p);
    uint64_t pending;

    if (pager_yields_locked(p) || !qatomic_read(&p->base.armed) || p->arming) {
        p->reclaiming = false;
        return WRITER_IDLE;
    }
    if (charged > pager_high_locked(p)) {
        p->reclaiming = true;
    }
    /* What is being written counts as gone already. */
    pending = p->pages.count[PAGE_WRITING] + p->frames.ndropped;
    if (charged - MIN(charged, pending) <= pager_low_locked(p)) {
        p->reclaiming = false;
    }
    if (!p->reclaiming) {
        return WRITER_IDLE;
    }
    if (p->pages.count[PAGE_VICTIM] <
        MIN(p->victim_target, p->limit / 8) + EVICT_BATCH) {
        return WRITER_EVICT;
    }
    return p->writes < PAGER_WRITES ? WRITER_WRITE : WRITER_IDLE;
}

/* Nothing more can leave now: let faults in, and look again soon. */
static void writer_starved(Pager *p)
{
    WITH_QEMU_LOCK_GUARD(&p->lock) {
        p->starved = true;
        if (p->tick) {
            timer_mod_anticipate(p->tick, RETRY_MS +
                                 qemu_clock_get_ms(QEMU_CLOCK_REALTIME));
        }
    }
}

static void writer_run(void *opaque)
{
    Pager *p = opaque;

    for (;;) {
        WriterNeed need;
        bool can_write;

        pager_reclaim_frames(p);
        WITH_QEMU_LOCK_GUARD(&p->lock) {
            need = writer_need_locked(p);
            can_write = p->writes < PAGER_WRITES;
        }
        if (need == WRITER_IDLE) {
            break;
        }
        if (need == WRITER_EVICT && pager_evict(p, EVICT_BATCH)) {
            continue;
        }
        if (can_write && start_write(p)) {
            continue;
        }
        if (need == WRITER_EVICT && can_write) {
            writer_starved(p);
        }
        break;
    }
    pager_reclaim_frames(p);
}

static void account_limit_locked(Pager *p, uint64_t now_ns)
{
    uint64_t charged = pager_charged_locked(p);

    if (p->limit && qatomic_read(&p->base.armed) &&
        charged > p->limit + p->limit / 100) {
        if (!p->over_since_ns) {
            p->over_since_ns = now_ns;
        }
        return;
    }
    if (p->over_since_ns) {
        uint64_t ns = now_ns - p->over_since_ns;

        p->over_ns += ns;
        p->over_max_ns = MAX(p->over_max_ns, ns);
        p->over_since_ns = 0;
    }
}

/* Others need slots, too, and stop before the store is full. */
static void keep_reserve(Pager *p)
{
    uint32_t reserve = bsst_store_reserve_slots(p->store);
    uint32_t nfree = bsst_store_nslots(p->store) -
                     bsst_store_used_slots(p->store);

    WITH_QEMU_LOCK_GUARD(&p->lock) {
        p->slots_short = nfree < (p->slots_short ? 2 * reserve : reserve);
    }
    if (nfree < reserve) {
        pager_give_up_bound(p, GIVE_UP_BATCH);
    }
}

static void writer_tick(void *opaque)
{
    Pager *p = opaque;
    int64_t now_ns = get_clock();
    bool armed = qatomic_read(&p->base.armed), releasing, full;
    uint64_t limit;
    GArray *events;

    WITH_QEMU_LOCK_GUARD(&p->lock) {
        account_limit_locked(p, now_ns);
        events = record_take_locked(p->record);
        p->starved = false;
        releasing = p->releasing;
        full = p->store_full;
        limit = p->limit;
        if (now_ns - p->event_ns > NANOSECONDS_PER_SECOND) {
            /* Try again; it is set again if it fails again. */
            p->write_error = false;
        }
    }
    if (events) {
        record_write(p->record, events);
    }
    if (full && bsst_store_has_space(p->store)) {
        store_full_event(p, false);
    }
    if (armed) {
        pager_sweep_bound(p);
        keep_reserve(p);
    }
    if (!armed && limit && pager_near_limit(p)) {
        armed = pager_arm(p, false);
    }
    if (armed && releasing && !pager_release_some(p)) {
        armed = !pager_disarm(p);
    }
    writer_run(p);
    if (armed || limit) {
        timer_mod_anticipate(p->tick, qemu_clock_get_ms(QEMU_CLOCK_REALTIME) +
                                      (releasing ? 1 : TICK_MS));
    }
}

static void writer_bh(void *opaque)
{
    Pager *p = opaque;

    if (!timer_pending(p->tick)) {
        writer_tick(p);
    } else {
        writer_run(p);
    }
}

void pager_kick_writer(Pager *p)
{
    QEMUBH *bh = qatomic_read(&p->writer_bh);

    if (bh) {
        qemu_bh_schedule(bh);
    }
}

void pager_writer_init(Pager *p)
{
    p->tick = aio_timer_new(p->writer_ctx, QEMU_CLOCK_REALTIME, SCALE_MS,
                            writer_tick, p);
    p->writer_bh = aio_bh_new(p->writer_ctx, writer_bh, p);
}

void pager_writer_quiesce(Pager *p)
{
    QEMU_LOCK_GUARD(&p->lock);

    if (p->writer_bh) {
        qemu_bh_delete(p->writer_bh);
        timer_free(p->tick);
        qatomic_set(&p->writer_bh, NULL);
        p->tick = NULL;
    }
}

bool pager_attach_store(Pager *p, BsstStore *store, Error **errp)
{
    if (!bsst_store_set_pager(store, &p->base, errp)) {
        return false;
    }
    p->store = store;
    return true;
}

void pager_detach_store(Pager *p)
{
    if (p->store) {
        bsst_store_clear_pager(p->store, &p->base);
        p->store = NULL;
    }
}

/* Tests */

typedef struct ForcedEvict {
    Pager *p;
    uint64_t page, n;
    bool to_store;
    bool done;
} ForcedEvict;

static void forced_to_frames(Pager *p, uint64_t page, uint64_t end)
{
    while (page < end) {
        Move m = { .n = 0 };

        WITH_QEMU_LOCK_GUARD(&p->lock) {
            page += move_begin_locked(p, page, MIN(end, page + PAGER_WINDOW),
                                      true, &m);
        }
        if (m.n) {
            do_move(p, &m);
        }
    }
}

/* Write the victims of [page, end) in runs of a batch. */
static void coroutine_fn forced_co_to_store(Pager *p, uint64_t page,
                                            uint64_t end)
{
    WriteOut *w = g_new(WriteOut, 1);

    w->p = p;
    w->n = 0;
    WITH_QEMU_LOCK_GUARD(&p->lock) {
        for (; page < end && w->n < PAGER_WRITE_BATCH; page++) {
            if (page_state(&p->pages, page) == PAGE_VICTIM &&
                !clean_out_locked(p, page)) {
                uint32_t frame = page_ref(&p->pages, page);

                page_write_begin(&p->pages, page);
                frame_ref(&p->frames, frame);
                w->item[w->n++] = (WriteItem) { page, frame };
            }
        }
    }
    write_co_all(w);
    g_free(w);
    pager_reclaim_frames(p);
}

static void coroutine_fn forced_co_entry(void *opaque)
{
    ForcedEvict *f = opaque;
    Pager *p = f->p;
    uint64_t end = f->page + f->n;

    if (qatomic_read(&p->base.armed) || pager_arm(p, true)) {
        for (uint64_t page = f->page; page < end; page += PAGER_WRITE_BATCH) {
            uint64_t stop = MIN(end, page + PAGER_WRITE_BATCH);

            forced_to_frames(p, page, stop);
            if (f->to_store) {
                forced_co_to_store(p, page, stop);
            }
        }
    }
    qatomic_store_release(&f->done, true);
    pager_co_end(p);
}

uint64_t pager_evict_range(Pager *p, uint64_t page, uint64_t n, bool to_store)
{
    ForcedEvict f = { .p = p, .page = page, .n = n, .to_store = to_store };
    uint64_t out = 0;

    pager_co_start(p, p->writer_ctx, forced_co_entry, &f);
    AIO_WAIT_WHILE_UNLOCKED(NULL, !qatomic_load_acquire(&f.done));

    QEMU_LOCK_GUARD(&p->lock);
    for (uint64_t i = 0; i < n; i++) {
        out += page_is_out(&p->pages, page + i);
    }
    return out;
}
