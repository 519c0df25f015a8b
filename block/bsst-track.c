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

/* Slots that are dropped together, so that the store's lock is taken once. */
#define BSST_UNREF_BATCH 128

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
            QEMU_LOCK_GUARD(&s->lock);
            qemu_co_queue_restart_all(&s->no_direct);
        }
    }
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

    QEMU_LOCK_GUARD(&s->lock);
    while (qatomic_read(&s->direct)) {
        qemu_co_queue_wait(&s->no_direct, &s->lock);
    }
    reqlist_wait_all(&s->reqs, start, end - start, &s->lock);
    reqlist_init_req(&s->reqs, req, start, end - start);
}

void coroutine_fn bsst_track_end(BDRVBsstState *s, BlockReq *req)
{
    WITH_QEMU_LOCK_GUARD(&s->lock) {
        reqlist_remove_req(req);
    }
    qatomic_dec(&s->tracked);
}

BsstSlot coroutine_fn bsst_map_lookup(BDRVBsstState *s, uint64_t block)
{
    if (!qatomic_read(&s->map_count)) {
        return BSST_SLOT_NONE;
    }
    QEMU_LOCK_GUARD(&s->lock);
    return indirect_map_lookup(s->map, block);
}

bool coroutine_fn bsst_map_next_run(BDRVBsstState *s, uint64_t *block,
                                    unsigned *n)
{
    bool mapped;

    QEMU_LOCK_GUARD(&s->lock);
    if (!indirect_map_next(s->map, *block, block, NULL)) {
        return false;
    }
    *n = indirect_map_extent(s->map, *block, BSST_CHUNK_BLOCKS, &mapped);
    return true;
}

/* Slots that left the map and whose reference is still to be dropped. */
typedef struct BsstDropped {
    BsstStore *store;
    unsigned n;
    BsstSlot slot[BSST_UNREF_BATCH];
} BsstDropped;

static void bsst_dropped_flush(BsstDropped *d)
{
    if (d->n) {
        bsst_slot_unref(d->store, d->slot, d->n);
        d->n = 0;
    }
}

static bool bsst_dropped_add(BsstDropped *d, BsstSlot slot)
{
    d->slot[d->n++] = slot;
    return d->n == BSST_UNREF_BATCH;
}

static void bsst_map_publish_locked(BDRVBsstState *s)
{
    qatomic_set(&s->map_count, indirect_map_count(s->map));
    qatomic_set(&s->map_bytes, indirect_map_bytes(s->map));
}

/* One step of bsst_map_update(), of as many blocks as fit into @d. */
static unsigned coroutine_fn
bsst_map_update_some(BDRVBsstState *s, BsstDropped *d, uint64_t block,
                     const BsstSlot *slot, unsigned n)
{
    QEMU_UNINITIALIZED BsstSlot old[BSST_UNREF_BATCH];
    unsigned i, k, replaced, made = 0;

    QEMU_LOCK_GUARD(&s->lock);
    assert(reqlist_find_conflict(&s->reqs, bsst_block_offset(block),
                                 BSST_PAGE_SIZE)); /* B2 */
    for (i = 0; i < n && d->n < BSST_UNREF_BATCH; i += k) {
        unsigned room = MIN(n - i, BSST_UNREF_BATCH - d->n);

        for (k = 0; k < room && slot[i + k] != BSST_SLOT_NONE; k++) {
            /* count */
        }
        if (k) {
            replaced = indirect_map_insert_run(s->map, block + i, slot + i, k,
                                               old);
            made += k;
        } else {
            old[k++] = indirect_map_remove(s->map, block + i);
            replaced = old[0] != BSST_SLOT_NONE;
        }
        for (unsigned j = 0; replaced && j < k; j++) {
            if (old[j] != BSST_SLOT_NONE) {
                bsst_dropped_add(d, old[j]);
            }
        }
    }
    bsst_map_publish_locked(s);
    stat64_add(&s->made, made);
    stat64_add(&s->removed[BSST_REMOVE_OVERWRITE], d->n);
    return i;
}

void coroutine_fn bsst_map_update(BlockDriverState *bs, uint64_t block,
                                  const BsstSlot *slot, unsigned n)
{
    BDRVBsstState *s = bs->opaque;
    QEMU_UNINITIALIZED BsstDropped d;

    d.store = s->store;
    d.n = 0;
    trace_bsst_map_update(bs, block, n);
    while (n) {
        unsigned done = bsst_map_update_some(s, &d, block, slot, n);

        block += done;
        slot += done;
        n -= done;
        bsst_dropped_flush(&d);
    }
}

/* Remove the first entries of [block, end), as many as fit into @d. */
static bool coroutine_fn
bsst_map_remove_some(BDRVBsstState *s, BsstDropped *d, uint64_t block,
                     uint64_t end, BsstRemoveCause cause)
{
    uint64_t found;
    bool full = false;

    QEMU_LOCK_GUARD(&s->lock);
    while (!full && indirect_map_next(s->map, block, &found, NULL) &&
           found < end) {
        full = bsst_dropped_add(d, indirect_map_remove(s->map, found));
        block = found + 1;
    }
    bsst_map_publish_locked(s);
    stat64_add(&s->removed[cause], d->n);
    return full;
}

void coroutine_fn bsst_map_remove(BlockDriverState *bs, uint64_t block,
                                  uint64_t end, BsstRemoveCause cause)
{
    BDRVBsstState *s = bs->opaque;
    BsstDropped d;
    bool more = true;

    d.store = s->store;
    d.n = 0;
    while (more && block < end && qatomic_read(&s->map_count)) {
        more = bsst_map_remove_some(s, &d, block, end, cause);
        trace_bsst_map_remove(bs, block, end, d.n, cause);
        bsst_dropped_flush(&d);
    }
}
