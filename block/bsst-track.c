/*
 * bsst block driver: requests in flight, and changes of the map
 *
 * Without swapper and without indirections a request should cost nothing: it
 * is *direct*, merely counted.  All other modifying requests are *tracked*:
 * they are on a list, and wait for those that they overlap.  A tracked request
 * waits for direct ones to end, and keeps new ones from starting (B1).
 *
 * The two counters make this a handshake: either side first raises its own
 * counter, then looks at the other's.
 *
 * This work is licensed under the terms of the GNU GPL, version 2 or later.
 * See the COPYING file in the top-level directory.
 */

#include "qemu/osdep.h"
#include "bsst-int.h"
#include "qemu/lockable.h"
#include "trace.h"

/* Blocks that change under the lock at once. */
#define BSST_BATCH 128

bool coroutine_fn bsst_direct_begin(BDRVBsstState *s)
{
    qatomic_inc(&s->direct);
    smp_mb__after_rmw();
    if (!qatomic_read(&s->tracked) && !qatomic_read(&s->map_count)) {
        return true;
    }
    bsst_direct_end(s);
    return false;
}

void coroutine_fn bsst_direct_end(BDRVBsstState *s)
{
    if (qatomic_fetch_dec(&s->direct) == 1) {
        smp_mb__after_rmw();
        if (qatomic_read(&s->tracked)) {
            QEMU_LOCK_GUARD(&s->image->lock);
            qemu_co_queue_restart_all(&s->no_direct);
        }
    }
}

/* Wait for whatever is in the way of [@start, @start + @bytes). */
static void coroutine_fn track_wait_locked(BDRVBsstState *s, int64_t start,
                                           int64_t bytes)
{
    do {
        while (qatomic_read(&s->direct)) {
            qemu_co_queue_wait(&s->no_direct, &s->image->lock);
        }
    } while (reqlist_wait_one(&s->reqs, start, bytes, &s->image->lock));
}

void coroutine_fn bsst_track_begin(BDRVBsstState *s, BlockReq *req,
                                   int64_t offset, int64_t bytes)
{
    int64_t start = QEMU_ALIGN_DOWN(offset, BSST_PAGE_SIZE);
    int64_t end = offset + bytes;

    /* The last block of the largest image need not be rounded up. */
    if (end <= INT64_MAX - BSST_PAGE_SIZE) {
        end = ROUND_UP(end, BSST_PAGE_SIZE);
    }

    qatomic_inc(&s->tracked);
    smp_mb__after_rmw();

    QEMU_LOCK_GUARD(&s->image->lock);
    do {
        while (s->barrier) {
            qemu_co_queue_wait(&s->no_barrier, &s->image->lock);
        }
        track_wait_locked(s, start, end - start);
    } while (s->barrier);
    reqlist_init_req(&s->reqs, req, start, end - start);
}

void coroutine_fn bsst_track_end(BDRVBsstState *s, BlockReq *req)
{
    WITH_QEMU_LOCK_GUARD(&s->image->lock) {
        reqlist_remove_req(req);
    }
    qatomic_dec(&s->tracked);
}

void coroutine_fn bsst_track_begin_all(BDRVBsstState *s, BlockReq *req)
{
    qatomic_inc(&s->tracked);
    smp_mb__after_rmw();

    QEMU_LOCK_GUARD(&s->image->lock);
    while (s->barrier) {
        qemu_co_queue_wait(&s->no_barrier, &s->image->lock);
    }
    s->barrier = true;
    track_wait_locked(s, 0, INT64_MAX);
    reqlist_init_req(&s->reqs, req, 0, INT64_MAX);
}

void coroutine_fn bsst_track_end_all(BDRVBsstState *s, BlockReq *req)
{
    WITH_QEMU_LOCK_GUARD(&s->image->lock) {
        s->barrier = false;
        qemu_co_queue_restart_all(&s->no_barrier);
    }
    bsst_track_end(s, req);
}

BsstSlot coroutine_fn bsst_map_lookup(BDRVBsstState *s, uint64_t block)
{
    if (!qatomic_read(&s->map_count)) {
        return BSST_SLOT_NONE;
    }
    QEMU_LOCK_GUARD(&s->image->lock);
    return indirect_map_lookup(bsst_map(s), block);
}

bool coroutine_fn bsst_map_next(BDRVBsstState *s, uint64_t *block)
{
    QEMU_LOCK_GUARD(&s->image->lock);
    return indirect_map_next(bsst_map(s), *block, block, NULL);
}

bool coroutine_fn bsst_map_next_run(BDRVBsstState *s, uint64_t *block,
                                    unsigned *n)
{
    bool mapped;

    QEMU_LOCK_GUARD(&s->image->lock);
    if (!indirect_map_next(bsst_map(s), *block, block, NULL)) {
        return false;
    }
    *n = indirect_map_extent(bsst_map(s), *block, BSST_CHUNK_BLOCKS, &mapped);
    return true;
}

void bsst_map_publish_locked(BDRVBsstState *s)
{
    uint64_t count = indirect_map_count(bsst_map(s));

    qatomic_set(&s->map_count, count);
    if (count && s->defrag) {
        bsst_defrag_kick(s);
    }
    qatomic_set(&s->map_bytes, durable_map_bytes(s->image->map));
    qatomic_set(&s->map_held, durable_map_weight(s->image->map) - count);
}

/* Change the map; the caller drops the references of the *@n slots in @drop. */
static void coroutine_fn
bsst_map_set(BDRVBsstState *s, uint64_t block, const BsstSlot *slot,
             unsigned n, BsstRemoveCause cause, BsstSlot *drop,
             unsigned *ndrop, unsigned *removed)
{
    unsigned i;

    *ndrop = 0;
    QEMU_LOCK_GUARD(&s->image->lock);
    assert(reqlist_find_conflict(&s->reqs, bsst_block_offset(block),
                                 bsst_block_offset(n))); /* B2 */
    *removed = bsst_image_set_locked(s->image, block, slot, n, drop, drop);
    bsst_map_publish_locked(s);
    if (s->plan) {
        bsst_observe_map_locked(s, block, slot, n, cause);
    }
    for (i = 0; *removed && i < n; i++) {
        if (drop[i] != BSST_SLOT_NONE) {
            drop[(*ndrop)++] = drop[i];
        }
    }
}

static void coroutine_fn
bsst_map_set_all(BlockDriverState *bs, uint64_t block, const BsstSlot *slot,
                 unsigned n, BsstRemoveCause cause)
{
    BDRVBsstState *s = bs->opaque;
    QEMU_UNINITIALIZED BsstSlot drop[BSST_BATCH];
    unsigned chunk, ndrop, removed;

    for (; n; block += chunk, slot += chunk, n -= chunk) {
        chunk = MIN(n, BSST_BATCH);
        bsst_map_set(s, block, slot, chunk, cause, drop, &ndrop, &removed);
        if (removed) {
            stat64_add(&s->removed[cause], removed);
        }
        if (ndrop) {
            bsst_slot_unref(s->store, drop, ndrop);
        }
    }
}

/* An event for each run of blocks that are indirected now, or that are not. */
static void bsst_map_trace(BlockDriverState *bs, uint64_t block,
                           const BsstSlot *slot, unsigned n)
{
    unsigned i, run;

    if (!trace_event_get_state_backends(TRACE_BSST_MAP_UPDATE)) {
        return;
    }
    for (i = 0; i < n; i += run) {
        bool indirected = slot[i] != BSST_SLOT_NONE;

        run = 1;
        while (i + run < n && (slot[i + run] != BSST_SLOT_NONE) == indirected) {
            run++;
        }
        trace_bsst_map_update(bs, block + i, run, indirected);
    }
}

void coroutine_fn bsst_map_update(BlockDriverState *bs, uint64_t block,
                                  const BsstSlot *slot, unsigned n,
                                  unsigned made)
{
    BDRVBsstState *s = bs->opaque;

    bsst_map_trace(bs, block, slot, n);
    stat64_add(&s->made, made);
    bsst_map_set_all(bs, block, slot, n, BSST_REMOVE_OVERWRITE);
}

void coroutine_fn bsst_map_relay(BlockDriverState *bs, uint64_t block,
                                 const BsstSlot *slot, unsigned n)
{
    bsst_map_set_all(bs, block, slot, n, BSST_REMOVE_RELAY);
}

void coroutine_fn bsst_map_remove(BlockDriverState *bs, uint64_t block,
                                  uint64_t end, BsstRemoveCause cause)
{
    static const BsstSlot none[BSST_CHUNK_BLOCKS] = {
        [0 ... BSST_CHUNK_BLOCKS - 1] = BSST_SLOT_NONE
    };
    BDRVBsstState *s = bs->opaque;
    unsigned n;

    while (qatomic_read(&s->map_count) &&
           bsst_map_next_run(s, &block, &n) && block < end) {
        n = MIN(n, end - block);
        trace_bsst_map_remove(bs, block, end, n, cause);
        bsst_map_set_all(bs, block, none, n, cause);
        block += n;
    }
}
