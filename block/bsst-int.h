/*
 * bsst block driver: what its files share
 *
 *   bsst.c         driver table, open and close, permissions, pass-through
 *   bsst-attach.c  which image of the store this is; its guard
 *   bsst-track.c   which requests are in flight, and the map's changes
 *   bsst-write.c   write, write zeroes, discard, truncate
 *   bsst-read.c    read, block status
 *   bsst-move.c    from the store into the image, or within the store
 *   bsst-drain.c   all of it into the image; flush, end
 *   defrag.c       bsst-defrag and bsst-drain: moves as jobs
 *   defrag-auto.c  moves while the disk is idle; what the planner is told
 *   bsst-check.c   qemu-img check and info
 *   bsst-qmp.c     query-bsst
 *
 * A block is *indirected* while the map names a slot of the store for it: the
 * slot holds its content, the image holds something older.
 *
 * Invariants (asserts, comments and tests quote the numbers):
 *
 *   B1  Every modifying request is either *direct* or *tracked*.  Tracked
 *       requests never overlap one another (in whole blocks).  No direct
 *       request is in flight together with a tracked one.  A direct request
 *       saw an empty map after it had been counted.
 *   B2  A map entry changes only under the lock, by the tracked request that
 *       covers its block.  So that request may rely on the entry without the
 *       lock and without a slot reference of its own; readers need both.
 *       (Entries beyond the image's end, which no request covers, are removed
 *       when the image is attached.)
 *   B3  An entry is inserted after all parts of its write request have
 *       succeeded, and removed after the image holds content that is at least
 *       as new (for a discard: zeroes).  If a request fails, its entries stay
 *       as they were.
 *   B4  The map owns one reference of the slot of each entry; and one of each
 *       slot that left it, as long as a crash could bring the entry back
 *       (durable-map.h).  The latter is why only bsst_image_set_locked()
 *       and the journal may say which references are dropped.
 *   B5  Only whole blocks of the image are indirected.
 *   B6  While the map is not empty, or the journal has entries of the image,
 *       the image's guard is durable (images that cannot carry one excepted).
 *       While the map of a writable node is not empty we hold write
 *       permission on the image.
 *   B7  Store I/O uses private memory only.
 *   B8  Before anything changes in an image that has, or gets, entries, it is
 *       *attached*: its generation, in its header and in the store, has grown
 *       since it was opened, so that every copy of it from before is known to
 *       be outdated.
 *
 * Flush: the journal takes a snapshot of the map, under the lock, and then
 * flushes the image.  By B3 the image's data of every entry that the snapshot
 * lacks have been written before, so that flush covers them.
 *
 * A drain copies every entry that exists when it starts.  Why what it moves is
 * never old, and why a crash does no harm: bsst-move.c.
 *
 * Reads are not tracked.  A read decides once, under the lock, for each block
 * where to read it, and holds the slots.  Whatever changes later was done by a
 * request that was in flight together with the read: either order is legal.
 *
 * Locks: guard_lock, then the journal's, then the lock of the image (of its
 * BsstImage), which protects the map and the list of requests.  No I/O under
 * the latter; guard_lock is held across the I/O that changes the guard.
 *
 * This work is licensed under the terms of the GNU GPL, version 2 or later.
 * See the COPYING file in the top-level directory.
 */

#ifndef BSST_INT_H
#define BSST_INT_H

#include "block/block-io.h"
#include "block/block_int.h"
#include "block/reqlist.h"
#include "bsst/bsst-store.h"
#include "bsst/defrag-load.h"
#include "bsst/defrag-plan.h"
#include "bsst/latency.h"
#include "bsst/qcow2-guard.h"
#include "qemu/coroutine.h"
#include "qemu/stats64.h"

/* Blocks that one drain request or bounce buffer covers at most: 1 MiB. */
#define BSST_CHUNK_BLOCKS   256
/* Blocks from the first to the last that one move out covers at most: 32 MiB */
#define BSST_MOVE_SPAN      8192
/* Of these, blocks that should be indirected at most: 8 MiB of memory */
#define BSST_MOVE_BLOCKS    2048
/* Parts of one request, or chunks of one drain, that are in flight at once. */
#define BSST_PARALLEL       8

/* Records name blocks by 48 bits (journal-format.h): an EiB. */
#define BSST_MAX_DISK_BYTES ((int64_t)(BSST_MAX_BLOCK * BSST_PAGE_SIZE))

/* Why an entry left the map. */
typedef enum BsstRemoveCause {
    BSST_REMOVE_OVERWRITE,
    BSST_REMOVE_DISCARD,
    BSST_REMOVE_TRUNCATE,
    BSST_REMOVE_DRAIN,
    BSST_REMOVE_COPY_UP,        /* the same, for a write that comes next */
    BSST_REMOVE_RELAY,          /* it has another slot now */
    BSST_REMOVE__MAX,
} BsstRemoveCause;

typedef struct BsstDefrag BsstDefrag;

typedef struct BDRVBsstState {
    /* Set once */
    BsstStore *store;
    BsstImage *image;           /* of the store's journal; has lock and map */
    bool can_guard;
    bool drain_on_close;
    uint64_t test_seed;
    Error *migration_blocker;
    BsstDefrag *defrag;

    /* Under image->lock; whether there is one is also read atomically */
    DefragPlan *plan;           /* NULL: nothing is observed */

    /* Under image->lock */
    BlockReqList reqs;          /* the tracked requests */
    CoQueue no_direct;          /* woken when the last direct request ends */
    bool barrier;               /* bsst_track_begin_all() keeps others off */
    CoQueue no_barrier;         /* woken when it ends */

    /* Main thread */
    bool frozen;                /* about to become read-only */
    BlockJob *job;              /* bsst-defrag or bsst-drain */

    /* Under guard_lock; guarded and attached are also read atomically */
    CoMutex guard_lock;
    bool guarded;               /* the image's header has the guard */
    bool header_durable;        /* ... it has, or not, with all that is in it */
    bool attached;              /* B8 holds */
    bool guard_warned;
    uint64_t generation;        /* what the image's header says */

    /* Atomic, written under image->lock */
    size_t map_count;           /* entries of the map */
    size_t map_bytes;           /* memory of the map */
    size_t map_held;            /* slots that have left it and are held */

    /* Atomic */
    bool measure;               /* the automatic wants to know all requests */
    bool watch;                 /* the planner, of all writes, too */
    bool draining;              /* a bsst-drain job: no new indirections */
    bool held;                  /* it said so: none any more */
    unsigned direct;            /* direct requests in flight */
    unsigned tracked;           /* tracked requests in flight or waiting */

    /* Counters, see qapi/bsst.json */
    Stat64 made;
    Stat64 removed[BSST_REMOVE__MAX];
    Stat64 copy_ups;
    Stat64 double_paged_pages;
    Stat64 avoided_bytes;
    Stat64 moved_bytes;
    Stat64 buffered_pages;
    Stat64 zero_pages;
    Stat64 loaded_pages;
    Stat64 installed_pages;
    Stat64 split_reads;
    Stat64 store_reads;
    Stat64 drains;
    Stat64 drain_errors;
    BsstLatency write_prepare;
    BsstLatency write_completion;
    BsstLatency read_prepare;
    BsstLatency read_completion;
} BDRVBsstState;

extern BlockDriver bdrv_bsst;

static inline uint64_t bsst_block_down(int64_t offset)
{
    return (uint64_t)offset >> BSST_PAGE_BITS;
}

static inline uint64_t bsst_block_up(int64_t offset)
{
    return ((uint64_t)offset + BSST_PAGE_SIZE - 1) >> BSST_PAGE_BITS;
}

static inline int64_t bsst_block_offset(uint64_t block)
{
    return block << BSST_PAGE_BITS;
}

/* What the guest sees; under image->lock. */
static inline const IndirectMap *bsst_map(const BDRVBsstState *s)
{
    return durable_map_current(s->image->map);
}

/* bsst.c */

/* False, and @errp, if a disk of @bytes has blocks that no record can name. */
bool bsst_check_size(int64_t bytes, Error **errp);

/* bsst-attach.c */

/*
 * Find out which image of the store @image is: set s->image, s->can_guard,
 * s->guarded and s->generation.  Returns false and sets @errp if it must not
 * be used with this store.
 */
bool GRAPH_RDLOCK bsst_find_image(BDRVBsstState *s, BlockDriverState *image,
                                  BsstRawImage raw_image, Error **errp);

/*
 * The node is done with s->image: forget it if it was never used, or has been
 * drained.  Main thread, not in a coroutine.
 */
void bsst_leave_image(BDRVBsstState *s);

/* Make B6 and B8 hold, before a change of an image that has or gets entries. */
int coroutine_fn GRAPH_RDLOCK bsst_co_attach(BlockDriverState *bs);

/* B6 and B8 hold. */
static inline bool bsst_is_attached(BDRVBsstState *s)
{
    return qatomic_load_acquire(&s->attached);
}

/* Make them hold before any other change. */
static inline int coroutine_fn GRAPH_RDLOCK
bsst_co_attach_if_mapped(BlockDriverState *bs)
{
    BDRVBsstState *s = bs->opaque;

    return !bsst_is_attached(s) && qatomic_read(&s->map_count)
           ? bsst_co_attach(bs) : 0;
}

/* Take the guard away from an image without entries, current or durable. */
int coroutine_fn GRAPH_RDLOCK bsst_co_unguard(BlockDriverState *bs);

/* bsst-track.c */

/*
 * Count a direct request.  Returns false if there are entries or tracked
 * requests: the request has to be tracked then.
 */
bool coroutine_fn bsst_direct_begin(BDRVBsstState *s);
void coroutine_fn bsst_direct_end(BDRVBsstState *s);

/*
 * Begin a tracked request on all blocks that [@offset, @offset + @bytes)
 * touches: wait for what is in the way (B1).
 */
void coroutine_fn bsst_track_begin(BDRVBsstState *s, BlockReq *req,
                                   int64_t offset, int64_t bytes);
void coroutine_fn bsst_track_end(BDRVBsstState *s, BlockReq *req);

/*
 * The same for the whole disk, whatever its size.  Requests that begin later
 * wait until the end, so that this one's turn comes under any load.
 */
void coroutine_fn bsst_track_begin_all(BDRVBsstState *s, BlockReq *req);
void coroutine_fn bsst_track_end_all(BDRVBsstState *s, BlockReq *req);

/* The slot of @block, or BSST_SLOT_NONE; for its tracked request only (B2). */
BsstSlot coroutine_fn bsst_map_lookup(BDRVBsstState *s, uint64_t block);

/* Find the next entry at or after @block.  Returns false if there is none. */
bool coroutine_fn bsst_map_next(BDRVBsstState *s, uint64_t *block);

/*
 * Find the next run of entries at or after @block, of at most BSST_CHUNK_BLOCKS
 * blocks.  Returns false if there is none.
 */
bool coroutine_fn bsst_map_next_run(BDRVBsstState *s, uint64_t *block,
                                    unsigned *n);

/* Publish figures of the map, for those who do not take the lock. */
void bsst_map_publish_locked(BDRVBsstState *s);

/*
 * Let the @n blocks from @block on be held by @slot[], in which @made are not
 * BSST_SLOT_NONE, which removes the entry.  Takes over a reference of each slot,
 * and drops those of the slots that were replaced and that no crash can bring
 * back.
 */
void coroutine_fn bsst_map_update(BlockDriverState *bs, uint64_t block,
                                  const BsstSlot *slot, unsigned n,
                                  unsigned made);

/* The same for blocks that are indirected, and whose content is the same. */
void coroutine_fn bsst_map_relay(BlockDriverState *bs, uint64_t block,
                                 const BsstSlot *slot, unsigned n);

/* Remove all entries of [@block, @end). */
void coroutine_fn bsst_map_remove(BlockDriverState *bs, uint64_t block,
                                  uint64_t end, BsstRemoveCause cause);

/* bsst-move.c */

typedef struct BsstMoveLimits {
    unsigned parallel;          /* I/O requests in flight at once */
    const bool *stop;           /* atomic: begin no more; or NULL */
} BsstMoveLimits;

typedef struct BsstMoveRun {
    uint64_t block;
    unsigned n;                 /* blocks from there on */
} BsstMoveRun;

typedef struct BsstMoveResult {
    unsigned seen;              /* blocks that were indirected */
    unsigned moved;             /* of these */
    unsigned failed;            /* of these: stay because of an error */
    int ret;                    /* the first error, or 0 */
    bool is_read;               /* it was one of reading the store */
    bool no_room;               /* a relay has left the reserve alone */
} BsstMoveResult;

/* Before a request that covers a part of @block: copy it out if indirected. */
int coroutine_fn GRAPH_RDLOCK
bsst_co_copy_up(BlockDriverState *bs, uint64_t block);

/*
 * Copy those blocks of @run that are indirected into the image, and remove
 * their entries.  Runs come in the order of blocks and do not overlap; all of
 * them lie within BSST_MOVE_SPAN blocks, which are one tracked request.
 * Returns 0 or the first error, after which the others have been copied
 * nevertheless.  @limits may be NULL; what has not begun when it says stop
 * stays where it is.
 */
int coroutine_fn GRAPH_RDLOCK
bsst_co_move_out(BlockDriverState *bs, const BsstMoveRun *run, unsigned nruns,
                 const BsstMoveLimits *limits, BsstMoveResult *res);

/*
 * Find what to move out next, from *@block on, which is moved behind it: one
 * run in which @max blocks or less are indirected; *@mapped are.  Returns false
 * if there is nothing.
 */
bool coroutine_fn bsst_move_next(BDRVBsstState *s, uint64_t *block,
                                 unsigned max, BsstMoveRun *run,
                                 unsigned *mapped);

/*
 * Give those of the @n (at most BSST_CHUNK_BLOCKS) blocks from @block on that
 * are indirected slots in a row, in the order of the blocks, unless they are.
 * With @limit (BSST_SLOT_NONE: none) do so only with those whose slots are not
 * below it, which get slots below it, not necessarily in a row.
 *
 * A request of its own.  Returns 0 or the first error.  A reserve is left in
 * store and journal: if that is all that is left, @res->no_room.
 */
int coroutine_fn GRAPH_RDLOCK
bsst_co_relay(BlockDriverState *bs, uint64_t block, unsigned n,
              BsstSlot limit, BsstMoveResult *res);

/* defrag-auto.c */

/* Begin and end with the node.  Main thread. */
void bsst_defrag_open(BlockDriverState *bs, bool automatic);
void bsst_defrag_close(BlockDriverState *bs);

/* BlockDriver callbacks: the automatic is a source of requests. */
void bsst_drain_begin(BlockDriverState *bs);
void bsst_drain_end(BlockDriverState *bs);

/* Begin to observe requests, for a planner.  Main thread. */
void bsst_defrag_observe(BDRVBsstState *s);

/* There may be something to do, or again.  Any thread. */
void bsst_defrag_kick(BDRVBsstState *s);
/* The automatic stands aside for a job, or not any more.  Main thread. */
void bsst_defrag_set_job(BlockDriverState *bs, BlockJob *job);

/* A request of the guest, which @s->measure asks for. */
void bsst_load_begin(BDRVBsstState *s, DefragLoadReq *req);
void bsst_load_end(BDRVBsstState *s, DefragLoadReq *req, int ret);

/* A read of the guest, in @parts. */
void coroutine_fn bsst_observe_read(BDRVBsstState *s, int64_t offset,
                                    int64_t bytes, unsigned parts);
/* The guest has written, or with @discard given up, what is not indirected. */
void coroutine_fn bsst_observe_write(BDRVBsstState *s, int64_t offset,
                                     int64_t bytes, bool discard);
/* The map has changed. */
void bsst_observe_map_locked(BDRVBsstState *s, uint64_t block,
                             const BsstSlot *slot, unsigned n,
                             BsstRemoveCause cause);

BsstDefragStats *bsst_defrag_query(BlockDriverState *bs);

/* bsst-drain.c */

/*
 * Copy @max of the blocks that are indirected now, or all; after a flush the
 * image has them.  @progress is told on stderr if it takes long.
 */
int coroutine_fn GRAPH_RDLOCK bsst_co_drain(BlockDriverState *bs, uint64_t max,
                                            bool progress);

/*
 * If nothing is indirected any more (*@complete): flush, and take the guard
 * away.  No request is in flight meanwhile.  Returns 0 or -errno.
 */
int coroutine_fn GRAPH_RDLOCK bsst_co_complete(BlockDriverState *bs,
                                               bool *complete);

/* bdrv_co_flush: image and indirections. */
int coroutine_fn GRAPH_RDLOCK bsst_co_flush(BlockDriverState *bs);

/*
 * The end of writing, for now: drain if drain-on-close says so, flush, and take
 * the guard away if nothing is left in the store.  No request is in flight.
 * If it fails, *@flushed (or NULL) tells whether all data are safe.  Main
 * thread, not in a coroutine.
 */
int bsst_settle(BlockDriverState *bs, bool *flushed);

/* bsst-check.c */
int coroutine_fn GRAPH_RDLOCK bsst_co_check(BlockDriverState *bs,
                                            BdrvCheckResult *result,
                                            BdrvCheckMode fix);
ImageInfoSpecific *bsst_get_specific_info(BlockDriverState *bs, Error **errp);

/* bsst-write.c */
int coroutine_fn GRAPH_RDLOCK
bsst_co_pwritev_part(BlockDriverState *bs, int64_t offset, int64_t bytes,
                     QEMUIOVector *qiov, size_t qiov_offset,
                     BdrvRequestFlags flags);
int coroutine_fn GRAPH_RDLOCK
bsst_co_pwrite_zeroes(BlockDriverState *bs, int64_t offset, int64_t bytes,
                      BdrvRequestFlags flags);
int coroutine_fn GRAPH_RDLOCK
bsst_co_pdiscard(BlockDriverState *bs, int64_t offset, int64_t bytes);
int coroutine_fn GRAPH_RDLOCK
bsst_co_truncate(BlockDriverState *bs, int64_t offset, bool exact,
                 PreallocMode prealloc, BdrvRequestFlags flags, Error **errp);

/* bsst-read.c */
int coroutine_fn GRAPH_RDLOCK
bsst_co_preadv_part(BlockDriverState *bs, int64_t offset, int64_t bytes,
                    QEMUIOVector *qiov, size_t qiov_offset,
                    BdrvRequestFlags flags);
int coroutine_fn GRAPH_RDLOCK
bsst_co_block_status(BlockDriverState *bs, bool want_zero, int64_t offset,
                     int64_t bytes, int64_t *pnum, int64_t *map,
                     BlockDriverState **file);

/*
 * Find the pages behind @n blocks of memory from @qiov_offset on: page[i] is
 * the i-th block's memory if that is one whole, aligned page, else NULL.
 */
void bsst_qiov_pages(QEMUIOVector *qiov, size_t qiov_offset, void **page,
                     unsigned n);

#endif /* BSST_INT_H */
