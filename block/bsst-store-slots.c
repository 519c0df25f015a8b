/*
 * The block-swap store: its slots
 *
 * Slots that became free keep their space in the file for a while, since most
 * are used again soon; a timer gives larger runs back to the file system.
 *
 * References by pages are in memory only.
 *
 * This work is licensed under the terms of the GNU GPL, version 2 or later.
 * See the COPYING file in the top-level directory.
 */

#include "qemu/osdep.h"
#include "block/aio-wait.h"
#include "block/thread-pool.h"
#include "bsst-store-int.h"
#include "qemu/units.h"
#include "trace.h"

/* Free runs are looked for this often while there are any. */
#define PUNCH_INTERVAL_MS   2000
/*
 * Shorter runs stay.  While the store is being written to, most free slots are
 * used again soon, and space that was given back must be allocated anew.
 */
#define PUNCH_MIN_SLOTS_BUSY    1024
#define PUNCH_MIN_SLOTS_IDLE    16
/* The most that one request punches, so that it does not hold others up. */
#define PUNCH_MAX_SLOTS     (32 * MiB / BSST_PAGE_SIZE)
/* The longest that the end of a store waits for this. */
#define FORGET_NS           (1 * NANOSECONDS_PER_SECOND)

/* One slot in so many is left free by those who can do without. */
#define RESERVE_PART        16

/* References */

uint32_t bsst_slot_alloc(BsstStore *s, uint32_t want, BsstSlot *first)
{
    QEMU_LOCK_GUARD(&s->lock);
    uint32_t n = s->read_only ? 0 : slot_table_alloc(s->slots, want, first);

    if (!n) {
        s->full = true;
    }
    return n;
}

uint32_t bsst_store_used_slots(BsstStore *s)
{
    QEMU_LOCK_GUARD(&s->lock);
    return slot_table_size(s->slots) - slot_table_nfree(s->slots);
}

uint32_t bsst_store_reserve_slots(const BsstStore *s)
{
    return s->sb.nslots / RESERVE_PART;
}

uint32_t bsst_slot_alloc_low(BsstStore *s, uint32_t want, uint32_t min,
                             BsstSlot limit, BsstSlot *first)
{
    QEMU_LOCK_GUARD(&s->lock);

    if (s->read_only || slot_table_nfree(s->slots) <
                        (uint64_t)want + bsst_store_reserve_slots(s)) {
        return 0;
    }
    return slot_table_alloc_low(s->slots, want, min, limit, first);
}

void bsst_slot_ref(BsstStore *s, const BsstSlot *slot, unsigned n)
{
    QEMU_LOCK_GUARD(&s->lock);

    slot_table_ref_list(s->slots, slot, n);
}

void bsst_store_punch_later(BsstStore *s)
{
    /* In any thread, where timer_pending() may not be called. */
    if (!qatomic_read(&s->punch_soon) && !qatomic_xchg(&s->punch_soon, true)) {
        timer_mod(s->punch_timer, qemu_clock_get_ms(QEMU_CLOCK_REALTIME) +
                                  PUNCH_INTERVAL_MS);
    }
}

/* Enough is free to call a store that was full not full any more. */
static bool has_space_locked(BsstStore *s)
{
    uint32_t enough = MIN(slot_table_size(s->slots) / 64, 1024);

    return slot_table_nfree(s->slots) >= MAX(enough, 1);
}

/* Slots became free.  Returns the pager if it should hear of it, with a ref. */
static BsstPager *space_returned_locked(BsstStore *s)
{
    if (!s->full || !has_space_locked(s)) {
        return NULL;
    }
    s->full = false;
    if (s->pager) {
        bsst_pager_ref(s->pager);
    }
    return s->pager;
}

static void tell_space(BsstPager *pager)
{
    if (pager) {
        pager->ops->space(pager);
        bsst_pager_unref(pager);
    }
}

void bsst_slot_unref(BsstStore *s, const BsstSlot *slot, unsigned n)
{
    BsstPager *pager = NULL;
    bool freed = false;

    if (!n) {
        return;
    }
    WITH_QEMU_LOCK_GUARD(&s->lock) {
        for (unsigned i = 0; i < n; i++) {
            freed |= slot_table_unref(s->slots, slot[i]);
        }
        if (freed) {
            pager = space_returned_locked(s);
        }
    }
    if (freed) {
        bsst_store_punch_later(s);
    }
    tell_space(pager);
}

bool bsst_store_has_space(BsstStore *s)
{
    QEMU_LOCK_GUARD(&s->lock);
    return has_space_locked(s);
}

/* Space */

typedef struct PunchReq {
    BsstStore *s;
    BsstSlot first;
    uint32_t n;
} PunchReq;

/* In a worker thread, or at the very end in the main thread. */
static int store_punch(void *opaque)
{
    PunchReq *r = opaque;
    BsstSlot first = r->first;
    uint32_t n = r->n;

    while (n) {
        uint32_t piece = n;
        uint64_t offset = bsst_store_slot_offset(r->s, first, &piece);

        if (fallocate(r->s->fd, FALLOC_FL_PUNCH_HOLE | FALLOC_FL_KEEP_SIZE,
                      offset, (off_t)piece * BSST_PAGE_SIZE) < 0) {
            return -errno;
        }
        first += piece;
        n -= piece;
    }
    return 0;
}

static bool store_punch_next(BsstStore *s, BsstSlot *pos, uint32_t min,
                             PunchReq *req)
{
    QEMU_LOCK_GUARD(&s->lock);

    req->s = s;
    req->n = slot_table_punch_begin(s->slots, pos, min, PUNCH_MAX_SLOTS,
                                    &req->first);
    return req->n;
}

static void store_punch_done(BsstStore *s, const PunchReq *req, int ret)
{
    BsstPager *pager;

    WITH_QEMU_LOCK_GUARD(&s->lock) {
        slot_table_punch_end(s->slots, req->first, req->n, ret == 0);
        pager = space_returned_locked(s);
    }
    tell_space(pager);
    if (ret == 0) {
        stat64_add(&s->punched_bytes, (uint64_t)req->n * BSST_PAGE_SIZE);
    }
    trace_bsst_store_punch(s->node_name, req->first, req->n, ret);
}

/* Main thread's AioContext. */
static void coroutine_fn store_co_punch_all(void *opaque)
{
    BsstStore *s = opaque;
    uint64_t writes = stat64_get(&s->writes);
    bool busy = writes != s->writes_at_punch;
    BsstSlot pos = 0;
    PunchReq req;

    s->writes_at_punch = writes;
    if (busy) {
        bsst_store_punch_later(s);
    }
    while (store_punch_next(s, &pos, busy ? PUNCH_MIN_SLOTS_BUSY
                                          : PUNCH_MIN_SLOTS_IDLE, &req)) {
        int ret = thread_pool_submit_co(store_punch, &req);

        store_punch_done(s, &req, ret);
        if (ret < 0) {
            break;      /* not supported here, or try again next time */
        }
    }
    s->punching = false;
    aio_wait_kick();
}

void bsst_store_punch_timer(void *opaque)
{
    BsstStore *s = opaque;

    /* Before the free slots are looked at */
    qatomic_xchg(&s->punch_soon, false);
    if (!s->punching) {
        s->punching = true;
        qemu_coroutine_enter(qemu_coroutine_create(store_co_punch_all, s));
    }
}

/* What is left is given back when the store is open again. */
void bsst_store_forget_free_slots(BsstStore *s)
{
    int64_t end_ns = get_clock() + FORGET_NS;
    BsstSlot pos = 0;
    PunchReq req;

    while (get_clock() < end_ns && store_punch_next(s, &pos, 1, &req)) {
        int ret = store_punch(&req);

        store_punch_done(s, &req, ret);
        if (ret < 0) {
            break;
        }
    }
}

/* For the journal */

static void store_journal_unref(void *opaque, const BsstSlot *slot, unsigned n)
{
    bsst_slot_unref(opaque, slot, n);
}

static void store_journal_checksums(void *opaque, BsstSlot first, unsigned n,
                                    uint64_t *sum)
{
    BsstStore *s = opaque;
    QEMU_LOCK_GUARD(&s->lock);
    uint32_t end = slot_table_size(s->slots);

    for (unsigned i = 0; i < n; i++) {
        bool used = first + i < end && slot_table_refs(s->slots, first + i);

        sum[i] = used ? slot_table_checksum(s->slots, first + i) : 0;
    }
}

const BsstJournalSlots bsst_store_journal_slots = {
    .unref = store_journal_unref,
    .get_checksums = store_journal_checksums,
};
