/*
 * bsst block driver: moving blocks, from the store into the image or to
 * another place in the store
 *
 * A move works on runs of blocks, those of them that are indirected: it reads
 * their slots into private memory, in the order of the slots, writes them in
 * the order of the blocks, and changes the map.
 *
 *   out     write to the image, then remove the entries
 *   relay   write to new slots in a row, then let the entries name these
 *
 * First all is read, then all is written, with many requests in flight: image
 * and store may be under one head, and slots of neighbours far apart.  So the
 * more blocks a move has, the fewer seeks each of them costs.
 *
 * Pieces of the image that are near one another are written in one request,
 * together with what lies between them, which is read first: where that costs
 * less than so many requests, and where the image has data between them anyway.
 * What is written there is what was there, so neither a crash nor an error
 * makes a difference; and nobody changes it meanwhile: the guest's requests are
 * kept off from all of the move, and others may not write to the image
 * (bsst_child_perm()).
 *
 * Why a move never brings old data back: a tracked request covers it.  So what
 * it reads from the map stays true (B2), no write, zeroing, discard or
 * truncation of its blocks is in flight (B1), and what it copies is the newest
 * content (B3).  Who writes one of these blocks later waits until the move has
 * ended, and then finds what it would find anywhere.  The slots are immutable
 * while the map names them (S2), whether pages share them or not.
 *
 * Why a crash at any point is safe:
 *
 *   out     Until the entry is gone in the journal, recovery finds the entry,
 *           and the slot: it is held as long as a crash could bring the entry
 *           back (B4).  What the image has below it does not matter.  The
 *           removal is recorded by a flush, which takes its snapshot first and
 *           flushes the image then (J1, J2): the entry left the map after the
 *           image's write had ended, so that flush covers the write.
 *   relay   The old slot is held in the same way (B4) until a record names the
 *           new one; that is written when content and checksum of the new one
 *           are durable (J1), whose write had ended before the map named it.
 *           The new slot has a reference of its own from the beginning, and
 *           goes if the move fails.
 *
 * A move adds no entry, so no image has more of them than before; but a relay
 * holds two slots for a block until the next flush.  It leaves a reserve in
 * store and journal, so that it never makes either of them full.
 *
 * An error is the affair of the blocks that it hit: these stay where they are.
 *
 * This work is licensed under the terms of the GNU GPL, version 2 or later.
 * See the COPYING file in the top-level directory.
 */

#include "qemu/osdep.h"
#include "block/aio_task.h"
#include "block/block_int.h"
#include "bsst-int.h"
#include "qemu/lockable.h"
#include "qemu/memalign.h"
#include "trace.h"

/* I/O of one move that is in flight at once; its slots may be scattered. */
#define MOVE_PARALLEL   32
/* Blocks of one request of it; each may be a piece of memory. */
#define MOVE_IO_BLOCKS  256
/*
 * A request costs as much as so many blocks, 64 KiB: some 30 us on a fast disk.
 * At most MOVE_JOIN_GAP blocks are written that are not moved between two that
 * are, and MOVE_JOIN_BLOCKS in one request, as they need memory of their own.
 */
#define MOVE_REQUEST_COST   16
#define MOVE_JOIN_GAP       8
#define MOVE_JOIN_BLOCKS    64
/* The lock is held for so many */
#define LOCK_BLOCKS     256
/* Compaction does not tear blocks apart into pieces that are smaller. */
#define COMPACT_MIN     16

typedef struct BsstMove {
    BlockDriverState *bs;
    uint64_t block;             /* the first one */
    unsigned n;
    BsstMoveLimits limits;
    BsstRemoveCause cause;
    /* Of block + i: where it is; NONE: not to be moved, or it failed */
    BsstSlot *slot;
    uint16_t *rank;             /* how many to be moved are before it */
    uint8_t *buf;               /* of block + i: at rank[i] * BSST_PAGE_SIZE */
    BsstMoveResult res;
} BsstMove;

static uint8_t *move_buf(const BsstMove *m, unsigned i)
{
    return m->buf + (size_t)m->rank[i] * BSST_PAGE_SIZE;
}

static bool move_must_stop(const BsstMove *m)
{
    return m->limits.stop && qatomic_read(m->limits.stop);
}

static void move_failed(BsstMove *m, unsigned blocks, int ret, bool is_read)
{
    m->res.failed += blocks;
    if (!m->res.ret) {
        m->res.ret = ret;
        m->res.is_read = is_read;
    }
}

/* How many blocks from @i on are to be moved, or not, as *@mapped tells. */
static unsigned move_run(const BsstMove *m, unsigned i, bool *mapped)
{
    unsigned end = i + 1;

    *mapped = m->slot[i] != BSST_SLOT_NONE;
    while (end < m->n && (m->slot[end] != BSST_SLOT_NONE) == *mapped) {
        end++;
    }
    return end - i;
}

/* Begin */

static void coroutine_fn move_find_slots(BsstMove *m, unsigned i, unsigned n)
{
    BDRVBsstState *s = m->bs->opaque;
    unsigned end = i + n;

    QEMU_LOCK_GUARD(&s->image->lock);
    for (; i < end; i++) {
        m->slot[i] = indirect_map_lookup(bsst_map(s), m->block + i);
        m->rank[i] = m->res.seen;
        m->res.seen += m->slot[i] != BSST_SLOT_NONE;
    }
}

static void move_free(BsstMove *m)
{
    qemu_vfree(m->buf);
    g_free(m->slot);
    g_free(m->rank);
    g_free(m);
}

/* How many blocks there are from the first of @run to the last */
static unsigned move_span(const BsstMoveRun *run, unsigned nruns)
{
    return run[nruns - 1].block + run[nruns - 1].n - run[0].block;
}

/* Find the slots.  Returns NULL if there is nothing to move. */
static BsstMove *coroutine_fn move_new(BlockDriverState *bs,
                                       const BsstMoveRun *run, unsigned nruns)
{
    BsstMove *m = g_new(BsstMove, 1);
    unsigned i, k, n = move_span(run, nruns);

    assert(n && n <= BSST_MOVE_SPAN);
    *m = (BsstMove) {
        .bs = bs,
        .block = run[0].block,
        .n = n,
        .limits.parallel = MOVE_PARALLEL,
        .cause = BSST_REMOVE_DRAIN,
        .slot = g_new(BsstSlot, n),
        .rank = g_new(uint16_t, n),
    };
    memset(m->slot, 0xff, n * sizeof(*m->slot));
    QEMU_BUILD_BUG_ON(BSST_SLOT_NONE != UINT32_MAX);
    for (k = 0; k < nruns; k++) {
        for (i = 0; i < run[k].n; i += LOCK_BLOCKS) {
            move_find_slots(m, run[k].block - m->block + i,
                            MIN(LOCK_BLOCKS, run[k].n - i));
        }
    }
    if (!m->res.seen) {
        move_free(m);
        return NULL;
    }
    return m;
}

static int move_end(BsstMove *m, BsstMoveResult *res)
{
    int ret = m->res.ret;

    if (res) {
        *res = m->res;
    }
    move_free(m);
    return ret;
}

/* Read */

typedef struct BsstMoveRead {
    AioTask task;
    BsstMove *m;
    const uint16_t *index;      /* @n blocks whose slots are in a row */
    unsigned n;
} BsstMoveRead;

static int coroutine_fn move_read_slots(BsstMove *m, const uint16_t *index,
                                        unsigned n)
{
    BDRVBsstState *s = m->bs->opaque;
    QEMUIOVector qiov;
    unsigned k;
    int ret;

    qemu_iovec_init(&qiov, n);
    for (k = 0; k < n; k++) {
        qemu_iovec_add(&qiov, move_buf(m, index[k]), BSST_PAGE_SIZE);
    }
    ret = bsst_store_co_readv_retry(s->store, m->slot[index[0]], n, &qiov);
    qemu_iovec_destroy(&qiov);
    return ret;
}

/* If a part cannot be read, only that part stays. */
static int coroutine_fn move_read_task(AioTask *task)
{
    BsstMoveRead *t = container_of(task, BsstMoveRead, task);
    unsigned k;

    if (move_read_slots(t->m, t->index, t->n) == 0) {
        return 0;
    }
    for (k = 0; k < t->n; k++) {
        int ret = move_read_slots(t->m, t->index + k, 1);

        if (ret < 0) {
            move_failed(t->m, 1, ret, true);
            t->m->slot[t->index[k]] = BSST_SLOT_NONE;
        }
    }
    return 0;
}

static int compare_slots(const void *a, const void *b, void *opaque)
{
    const BsstMove *m = opaque;
    BsstSlot x = m->slot[*(const uint16_t *)a];
    BsstSlot y = m->slot[*(const uint16_t *)b];

    return (x > y) - (x < y);
}

/* The blocks to be moved in the order of their slots; returns how many. */
static unsigned move_sort(BsstMove *m, uint16_t *index)
{
    unsigned i, k = 0;

    for (i = 0; i < m->n; i++) {
        if (m->slot[i] != BSST_SLOT_NONE) {
            index[k++] = i;
        }
    }
    g_qsort_with_data(index, k, sizeof(*index), compare_slots, m);
    return k;
}

/* Read all slots.  What cannot be read drops out. */
static void coroutine_fn move_read(BsstMove *m)
{
    BDRVBsstState *s = m->bs->opaque;
    g_autofree uint16_t *index = g_new(uint16_t, m->res.seen);
    g_autofree BsstSlot *first = g_new(BsstSlot, m->res.seen);
    unsigned i, n, count = move_sort(m, index);
    AioTaskPool *pool;

    m->buf = bsst_store_buffer(s->store, (size_t)m->res.seen * BSST_PAGE_SIZE);
    if (!m->buf) {
        move_failed(m, count, -ENOMEM, true);
        memset(m->slot, 0xff, m->n * sizeof(*m->slot));
        return;
    }
    /* m->slot loses those that fail */
    for (i = 0; i < count; i++) {
        first[i] = m->slot[index[i]];
    }
    pool = aio_task_pool_new(m->limits.parallel);
    for (i = 0; i < count; i += n) {
        BsstMoveRead *t;

        n = 1;
        if (move_must_stop(m)) {
            m->slot[index[i]] = BSST_SLOT_NONE;
            continue;
        }
        t = g_new(BsstMoveRead, 1);
        while (i + n < count && n < MOVE_IO_BLOCKS &&
               first[i + n] == first[i] + n) {
            n++;
        }
        *t = (BsstMoveRead) {
            .task.func = move_read_task,
            .m = m,
            .index = index + i,
            .n = n,
        };
        aio_task_pool_start_task(pool, &t->task);
    }
    aio_task_pool_wait_all(pool);
    aio_task_pool_free(pool);
}

/* Out */

typedef struct BsstMoveOut {
    AioTask task;
    BsstMove *m;
    unsigned i;
    unsigned n;
    unsigned pieces;            /* into which these fall; 1: no gaps */
    int64_t length;             /* of the image */
} BsstMoveOut;

/*
 * The image may end within the last block if it shrank just before a crash.
 * The task's creator holds the graph lock until all tasks have ended.
 */
static int coroutine_fn GRAPH_RDLOCK move_out_write(const BsstMoveOut *t,
                                                    unsigned i, unsigned n,
                                                    const void *buf)
{
    BsstMove *m = t->m;
    uint64_t block = m->block + i;
    int64_t offset = bsst_block_offset(block);
    int ret = bdrv_co_pwrite(m->bs->file, offset,
                             MIN(bsst_block_offset(n), t->length - offset),
                             buf, 0);

    trace_bsst_copy_run(m->bs, block, n, ret);
    return ret;
}

/* B3: the image has these now. */
static void coroutine_fn move_out_commit(BsstMove *m, unsigned i, unsigned n)
{
    bsst_map_remove(m->bs, m->block + i, m->block + i + n, m->cause);
    m->res.moved += n;
}

/* Does the image itself have data everywhere there?  If not they would grow. */
static bool coroutine_fn GRAPH_RDLOCK move_is_data(BlockDriverState *image,
                                                   int64_t offset,
                                                   int64_t bytes)
{
    int64_t n;

    for (; bytes > 0; offset += n, bytes -= n) {
        int ret = bdrv_co_block_status(image, offset, bytes, &n, NULL, NULL);

        if (ret < 0 || !n || !(ret & BDRV_BLOCK_DATA) ||
            (ret & BDRV_BLOCK_ZERO)) {
            return false;
        }
    }
    return true;
}

/* Read all blocks of @t from the image, and write them with what is moved. */
static int coroutine_fn GRAPH_RDLOCK move_out_rewrite(const BsstMoveOut *t,
                                                      uint8_t *buf)
{
    BsstMove *m = t->m;
    int64_t offset = bsst_block_offset(m->block + t->i);
    int64_t bytes = MIN(bsst_block_offset(t->n), t->length - offset);
    unsigned i;
    int ret;

    if (!move_is_data(m->bs->file->bs, offset, bytes)) {
        return -ENOTSUP;
    }
    ret = bdrv_co_pread(m->bs->file, offset, bytes, buf, 0);
    if (ret < 0) {
        return ret;
    }
    for (i = 0; i < t->n; i++) {
        if (m->slot[t->i + i] != BSST_SLOT_NONE) {
            memcpy(buf + (size_t)i * BSST_PAGE_SIZE, move_buf(m, t->i + i),
                   BSST_PAGE_SIZE);
        }
    }
    return move_out_write(t, t->i, t->n, buf);
}

/* The pieces of @t, in one request.  False if that does not work. */
static bool coroutine_fn GRAPH_RDLOCK move_out_joined(const BsstMoveOut *t)
{
    BsstMove *m = t->m;
    BDRVBsstState *s = m->bs->opaque;
    void *buf = bsst_store_buffer(s->store, (size_t)t->n * BSST_PAGE_SIZE);
    int ret = buf ? move_out_rewrite(t, buf) : -ENOMEM;
    unsigned i, n;
    bool mapped;

    qemu_vfree(buf);
    for (i = t->i; ret >= 0 && i < t->i + t->n; i += n) {
        n = move_run(m, i, &mapped);
        if (mapped) {
            move_out_commit(m, i, n);
        }
    }
    return ret >= 0;
}

static int coroutine_fn GRAPH_RDLOCK move_out_task(AioTask *task)
{
    BsstMoveOut *t = container_of(task, BsstMoveOut, task);
    BsstMove *m = t->m;
    unsigned i, n;
    bool mapped;

    if (t->pieces > 1 && move_out_joined(t)) {
        return 0;
    }
    for (i = t->i; i < t->i + t->n; i += n) {
        int ret;

        n = move_run(m, i, &mapped);
        if (!mapped) {
            continue;
        }
        n = MIN(n, t->i + t->n - i);
        ret = move_out_write(t, i, n, move_buf(m, i));
        if (ret < 0) {
            move_failed(m, n, ret, false);
        } else {
            move_out_commit(m, i, n);
        }
    }
    return 0;
}

/*
 * How many blocks from @i on, which is to be moved, are written in one go, and
 * how many *@pieces that would be else?
 */
static unsigned move_out_join(const BsstMove *m, unsigned i, unsigned *pieces)
{
    unsigned first, n, gap = 0, joined = 0, left_alone = 0;
    bool mapped;

    *pieces = 0;
    first = move_run(m, i, &mapped);
    for (n = first; joined + gap + n <= MOVE_JOIN_BLOCKS; ) {
        joined += gap + n;
        left_alone += gap;
        ++*pieces;
        if (i + joined == m->n) {
            break;
        }
        gap = move_run(m, i + joined, &mapped);
        if (gap > MOVE_JOIN_GAP || i + joined + gap == m->n) {
            break;
        }
        n = move_run(m, i + joined + gap, &mapped);
    }
    /* To be read: all of them; to be written: those between */
    if (*pieces > 2 &&
        (*pieces - 2) * MOVE_REQUEST_COST > joined + left_alone) {
        return joined;
    }
    *pieces = 1;
    return MIN(first, MOVE_IO_BLOCKS);
}

static void coroutine_fn GRAPH_RDLOCK move_out(BsstMove *m)
{
    int64_t length = bdrv_co_getlength(m->bs->file->bs);
    AioTaskPool *pool;
    unsigned i, n, pieces;

    if (length < 0) {
        move_failed(m, m->n, length, false);
        return;
    }
    pool = aio_task_pool_new(m->limits.parallel);
    for (i = 0; i < m->n && !move_must_stop(m); i += n) {
        BsstMoveOut *t;

        if (m->slot[i] == BSST_SLOT_NONE) {
            n = 1;
            continue;
        }
        n = move_out_join(m, i, &pieces);
        t = g_new(BsstMoveOut, 1);
        *t = (BsstMoveOut) {
            .task.func = move_out_task,
            .m = m,
            .i = i,
            .n = n,
            .pieces = pieces,
            .length = length,
        };
        aio_task_pool_start_task(pool, &t->task);
    }
    aio_task_pool_wait_all(pool);
    aio_task_pool_free(pool);
}

static int coroutine_fn GRAPH_RDLOCK
move_out_all(BlockDriverState *bs, const BsstMoveRun *run, unsigned nruns,
             const BsstMoveLimits *limits, BsstRemoveCause cause,
             BsstMoveResult *res)
{
    BsstMove *m = move_new(bs, run, nruns);

    if (!m) {
        return 0;
    }
    if (limits) {
        m->limits = *limits;
    }
    m->cause = cause;
    move_read(m);
    move_out(m);
    return move_end(m, res);
}

int coroutine_fn GRAPH_RDLOCK
bsst_co_copy_up(BlockDriverState *bs, uint64_t block)
{
    BDRVBsstState *s = bs->opaque;

    if (bsst_map_lookup(s, block) == BSST_SLOT_NONE) {
        return 0;
    }
    stat64_add(&s->copy_ups, 1);
    return move_out_all(bs, &(BsstMoveRun) { block, 1 }, 1, NULL,
                        BSST_REMOVE_COPY_UP, NULL);
}

/* Relay */

/* Into how many pieces of slots in a row do the blocks fall? */
static unsigned move_pieces(const BsstMove *m)
{
    BsstSlot next = BSST_SLOT_NONE;
    unsigned i, pieces = 0;

    for (i = 0; i < m->n; i++) {
        if (m->slot[i] != BSST_SLOT_NONE) {
            pieces += m->slot[i] != next;
            next = m->slot[i] + 1;
        }
    }
    return pieces;
}

/* Leave those alone whose slot is below @from.  Returns how many are left. */
static unsigned move_select(BsstMove *m, BsstSlot from)
{
    unsigned i, count = 0;

    for (i = 0; i < m->n; i++) {
        if (m->slot[i] != BSST_SLOT_NONE && m->slot[i] < from) {
            m->slot[i] = BSST_SLOT_NONE;
        }
        count += m->slot[i] != BSST_SLOT_NONE;
    }
    return count;
}

/* Of the blocks to be moved write the next @n, at block + @i, to @first. */
static int coroutine_fn relay_write(BsstMove *m, unsigned i, BsstSlot first,
                                    unsigned n)
{
    BDRVBsstState *s = m->bs->opaque;
    QEMUIOVector qiov;
    unsigned k;
    int ret;

    qemu_iovec_init(&qiov, n);
    for (k = 0; k < n; i++) {
        if (m->slot[i] != BSST_SLOT_NONE) {
            qemu_iovec_add(&qiov, move_buf(m, i), BSST_PAGE_SIZE);
            k++;
        }
    }
    ret = bsst_store_co_writev(s->store, first, n, &qiov);
    qemu_iovec_destroy(&qiov);
    trace_bsst_relay_write(m->bs, m->block, first, n, ret);
    return ret;
}

/* B3: they have been written.  The map takes over the slots.  Returns @i. */
static unsigned coroutine_fn relay_commit(BsstMove *m, unsigned i,
                                          BsstSlot first, unsigned n)
{
    BsstSlot slot[BSST_CHUNK_BLOCKS];
    unsigned run, k;
    bool mapped;

    while (n) {
        run = move_run(m, i, &mapped);
        if (mapped) {
            run = MIN(run, n);
            for (k = 0; k < run; k++) {
                slot[k] = first++;
            }
            bsst_map_relay(m->bs, m->block + i, slot, run);
            m->res.moved += run;
            n -= run;
        }
        i += run;
    }
    return i;
}

/* Of the blocks to be moved the next @n, at block + *@i, go to @first. */
static bool coroutine_fn relay_piece(BsstMove *m, unsigned *i, BsstSlot first,
                                     unsigned n)
{
    BDRVBsstState *s = m->bs->opaque;
    int ret = relay_write(m, *i, first, n);
    unsigned k;

    if (ret == 0) {
        *i = relay_commit(m, *i, first, n);
        return true;
    }
    for (k = 0; k < n; k++) {
        BsstSlot slot = first + k;

        bsst_slot_unref(s->store, &slot, 1);
    }
    move_failed(m, n, ret, false);
    return false;
}

/* The @count blocks to be moved have been read. */
static void coroutine_fn relay_all(BsstMove *m, unsigned count,
                                   BsstSlot limit)
{
    BDRVBsstState *s = m->bs->opaque;
    unsigned n, i = 0;
    BsstSlot first;

    while (count) {
        unsigned min = limit == BSST_SLOT_NONE ? count
                                               : MIN(count, COMPACT_MIN);

        n = bsst_slot_alloc_low(s->store, count, min, limit, &first);
        if (!n) {
            m->res.no_room = true;
            return;
        }
        if (!relay_piece(m, &i, first, n)) {
            return;
        }
        count -= n;
    }
}

/*
 * Re-lay what is not in a row; or, with a @limit, what is not below it.
 */
static int coroutine_fn GRAPH_RDLOCK
bsst_co_relay_tracked(BlockDriverState *bs, uint64_t block, unsigned n,
                      BsstSlot limit, BsstMoveResult *res)
{
    BDRVBsstState *s = bs->opaque;
    BsstJournal *j = bsst_store_journal(s->store);
    BsstMove *m = move_new(bs, &(BsstMoveRun) { block, n }, 1);
    unsigned promised;

    assert(n <= BSST_CHUNK_BLOCKS);

    if (!m) {
        return 0;
    }
    if (!move_select(m, limit == BSST_SLOT_NONE ? 0 : limit) ||
        (limit == BSST_SLOT_NONE && move_pieces(m) < 2)) {
        return move_end(m, res);
    }
    promised = n + bsst_store_reserve_slots(s->store);
    if (!bsst_journal_reserve(j, promised)) {
        m->res.no_room = true;
        return move_end(m, res);
    }
    move_read(m);
    relay_all(m, move_select(m, 0), limit);
    bsst_journal_unreserve(j, promised);
    return move_end(m, res);
}

/* As requests of their own */

/* Begin a tracked request on an image that is attached. */
static int coroutine_fn GRAPH_RDLOCK
move_track(BlockDriverState *bs, BlockReq *req, uint64_t block, unsigned n,
           BsstMoveResult *res)
{
    int ret;

    *res = (BsstMoveResult) { 0 };
    bsst_track_begin(bs->opaque, req, bsst_block_offset(block),
                     (int64_t)n * BSST_PAGE_SIZE);
    ret = bsst_co_attach_if_mapped(bs);
    if (ret < 0) {
        *res = (BsstMoveResult) { .ret = ret, .failed = n };
    }
    return ret;
}

int coroutine_fn GRAPH_RDLOCK
bsst_co_move_out(BlockDriverState *bs, const BsstMoveRun *run, unsigned nruns,
                 const BsstMoveLimits *limits, BsstMoveResult *res)
{
    BlockReq req;
    int ret = move_track(bs, &req, run[0].block, move_span(run, nruns), res);

    if (ret == 0) {
        ret = move_out_all(bs, run, nruns, limits, BSST_REMOVE_DRAIN, res);
    }
    bsst_track_end(bs->opaque, &req);
    return ret;
}

int coroutine_fn GRAPH_RDLOCK
bsst_co_relay(BlockDriverState *bs, uint64_t block, unsigned n,
              BsstSlot limit, BsstMoveResult *res)
{
    BlockReq req;
    int ret = move_track(bs, &req, block, n, res);

    if (ret == 0) {
        ret = bsst_co_relay_tracked(bs, block, n, limit, res);
    }
    bsst_track_end(bs->opaque, &req);
    return ret;
}

/* Which blocks */

/* Let @run grow up to @end, by LOCK_BLOCKS at most.  Returns by how many. */
static unsigned coroutine_fn move_next_some(BDRVBsstState *s, uint64_t end,
                                            unsigned max, BsstMoveRun *run)
{
    uint64_t next = run->block + run->n;
    unsigned k;

    max = MIN(max, LOCK_BLOCKS);
    QEMU_LOCK_GUARD(&s->image->lock);
    for (k = 0; k < max; k++, next++) {
        if (!indirect_map_next(bsst_map(s), next, &next, NULL) || next >= end) {
            break;
        }
        run->n = next + 1 - run->block;
    }
    return k;
}

bool coroutine_fn bsst_move_next(BDRVBsstState *s, uint64_t *block,
                                 unsigned max, BsstMoveRun *run,
                                 unsigned *mapped)
{
    unsigned n;

    *mapped = 0;
    if (!bsst_map_next(s, block)) {
        return false;
    }
    *run = (BsstMoveRun) { .block = *block };
    do {
        n = move_next_some(s, *block + BSST_MOVE_SPAN, max - *mapped, run);
        *mapped += n;
    } while (n == LOCK_BLOCKS);
    /* Unless it has just gone */
    run->n = MAX(run->n, 1);
    *block = run->block + run->n;
    return true;
}
