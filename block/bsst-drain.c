/*
 * bsst block driver: from the store back into the image, and the guard
 *
 * Until there is a journal nothing names the indirections but our memory.  So
 * a flush copies them into the image first, and so do close, inactivation and
 * reopening read-only.  The guard is set before the first indirection and
 * stays until the image is complete again at one of the latter three.
 *
 * This work is licensed under the terms of the GNU GPL, version 2 or later.
 * See the COPYING file in the top-level directory.
 */

#include "qemu/osdep.h"
#include "block/aio-wait.h"
#include "block/aio_task.h"
#include "block/block_int.h"
#include "bsst-int.h"
#include "bsst/qcow2-guard.h"
#include "qemu/lockable.h"
#include "qemu/memalign.h"
#include "trace.h"

/* Read the @n blocks whose slots are @slot[], which are all set, into @buf. */
static int coroutine_fn bsst_co_read_slots(BDRVBsstState *s,
                                           const BsstSlot *slot, unsigned n,
                                           uint8_t *buf)
{
    while (n) {
        unsigned run = 1;
        int ret;

        while (run < n && slot[run] == slot[0] + run) {
            run++;
        }
        ret = bsst_store_co_read(s->store, slot[0], run, buf);
        if (ret < 0) {
            return ret;
        }
        slot += run;
        buf += run * BSST_PAGE_SIZE;
        n -= run;
    }
    return 0;
}

/* Copy the @n blocks from @block on, which are all indirected. */
static int coroutine_fn GRAPH_RDLOCK
bsst_co_copy_run(BlockDriverState *bs, uint64_t block, const BsstSlot *slot,
                 unsigned n)
{
    BDRVBsstState *s = bs->opaque;
    int64_t bytes = (int64_t)n * BSST_PAGE_SIZE;
    void *buf = bsst_store_buffer(s->store, bytes);
    int ret;

    if (!buf) {
        return -ENOMEM;
    }
    ret = bsst_co_read_slots(s, slot, n, buf);
    if (ret == 0) {
        ret = bdrv_co_pwrite(bs->file, bsst_block_offset(block), bytes, buf,
                             0);
    }
    qemu_vfree(buf);
    trace_bsst_copy_run(bs, block, n, ret);
    if (ret < 0) {
        return ret;
    }
    bsst_map_remove(bs, block, block + n, BSST_REMOVE_DRAIN);
    return 0;
}

int coroutine_fn GRAPH_RDLOCK
bsst_co_copy_out(BlockDriverState *bs, uint64_t block, unsigned n)
{
    BDRVBsstState *s = bs->opaque;
    BsstSlot slot[BSST_CHUNK_BLOCKS];
    unsigned i, first;

    assert(n <= BSST_CHUNK_BLOCKS);
    WITH_QEMU_LOCK_GUARD(&s->lock) {
        for (i = 0; i < n; i++) {
            slot[i] = indirect_map_lookup(s->map, block + i);
        }
    }

    /* B2: what was read stays true, the requests around us being tracked. */
    for (first = 0; first < n; first = i) {
        bool mapped = slot[first] != BSST_SLOT_NONE;
        int ret;

        for (i = first + 1; i < n; i++) {
            if ((slot[i] != BSST_SLOT_NONE) != mapped) {
                break;
            }
        }
        if (!mapped) {
            continue;
        }
        ret = bsst_co_copy_run(bs, block + first, slot + first, i - first);
        if (ret < 0) {
            return ret;
        }
    }
    return 0;
}

int coroutine_fn GRAPH_RDLOCK
bsst_co_copy_up(BlockDriverState *bs, uint64_t block)
{
    BDRVBsstState *s = bs->opaque;

    if (bsst_map_lookup(s, block) == BSST_SLOT_NONE) {
        return 0;
    }
    stat64_add(&s->copy_ups, 1);
    return bsst_co_copy_out(bs, block, 1);
}

typedef struct BsstDrainTask {
    AioTask task;
    BlockDriverState *bs;
    uint64_t block;
    unsigned n;
} BsstDrainTask;

static int coroutine_fn GRAPH_RDLOCK bsst_co_drain_chunk(BlockDriverState *bs,
                                                         uint64_t block,
                                                         unsigned n)
{
    BDRVBsstState *s = bs->opaque;
    BlockReq req;
    int ret;

    bsst_track_begin(s, &req, bsst_block_offset(block),
                     (int64_t)n * BSST_PAGE_SIZE);
    ret = bsst_co_copy_out(bs, block, n);
    bsst_track_end(s, &req);
    if (ret < 0) {
        stat64_add(&s->drain_errors, n);
    }
    return ret;
}

/*
 * The task's coroutine is not the one that holds the graph lock, but its
 * creator holds it until all tasks have ended.
 */
static int coroutine_fn GRAPH_RDLOCK bsst_co_drain_task(AioTask *task)
{
    BsstDrainTask *t = container_of(task, BsstDrainTask, task);

    return bsst_co_drain_chunk(t->bs, t->block, t->n);
}

int coroutine_fn GRAPH_RDLOCK bsst_co_drain(BlockDriverState *bs)
{
    BDRVBsstState *s = bs->opaque;
    AioTaskPool *pool;
    uint64_t block = 0;
    unsigned n;
    int ret;

    if (!qatomic_read(&s->map_count)) {
        return 0;
    }

    trace_bsst_drain_begin(bs, qatomic_read(&s->map_count));
    stat64_add(&s->drains, 1);
    pool = aio_task_pool_new(BSST_PARALLEL);
    while (aio_task_pool_status(pool) == 0 &&
           bsst_map_next_run(s, &block, &n)) {
        BsstDrainTask *t = g_new(BsstDrainTask, 1);

        *t = (BsstDrainTask) {
            .task.func = bsst_co_drain_task,
            .bs = bs,
            .block = block,
            .n = n,
        };
        aio_task_pool_start_task(pool, &t->task);
        block += n;
    }
    aio_task_pool_wait_all(pool);
    ret = aio_task_pool_status(pool);
    aio_task_pool_free(pool);
    trace_bsst_drain_end(bs, qatomic_read(&s->map_count), ret);
    return ret;
}

int coroutine_fn GRAPH_RDLOCK bsst_co_flush(BlockDriverState *bs)
{
    int ret = bsst_co_drain(bs);

    return ret < 0 ? ret : bdrv_co_flush(bs->file->bs);
}

int coroutine_fn GRAPH_RDLOCK bsst_co_guard(BlockDriverState *bs)
{
    BDRVBsstState *s = bs->opaque;
    int ret;

    if (bsst_is_guarded(s)) {
        return 0;
    }

    QEMU_LOCK_GUARD(&s->guard_lock);
    if (s->guarded) {
        return 0;
    }
    ret = qcow2_co_set_bsst_guard(bdrv_skip_filters(bs->file->bs),
                                  bsst_store_uuid(s->store), 0);
    trace_bsst_guard(bs, true, ret);
    if (ret == 0) {
        qatomic_store_release(&s->guarded, true);
    }
    return ret;
}

static int coroutine_fn GRAPH_RDLOCK bsst_co_settle(BlockDriverState *bs)
{
    BDRVBsstState *s = bs->opaque;
    int ret;

    if (!qatomic_read(&s->map_count) && !qatomic_read(&s->guarded)) {
        return 0;
    }

    ret = bsst_co_flush(bs);
    if (ret < 0) {
        return ret;
    }

    QEMU_LOCK_GUARD(&s->guard_lock);
    if (!s->guarded) {
        return 0;
    }
    assert(!qatomic_read(&s->map_count)); /* B6 */
    ret = qcow2_co_clear_bsst_guard(bdrv_skip_filters(bs->file->bs));
    trace_bsst_guard(bs, false, ret);
    if (ret == 0) {
        qatomic_set(&s->guarded, false);
    }
    return ret;
}

typedef struct BsstSettle {
    BlockDriverState *bs;
    int ret;
} BsstSettle;

static void coroutine_fn bsst_co_settle_entry(void *opaque)
{
    BsstSettle *data = opaque;

    GRAPH_RDLOCK_GUARD();
    data->ret = bsst_co_settle(data->bs);
    aio_wait_kick();
}

int bsst_settle(BlockDriverState *bs)
{
    BsstSettle data = { .bs = bs, .ret = -EINPROGRESS };

    GLOBAL_STATE_CODE();
    aio_co_enter(bdrv_get_aio_context(bs),
                 qemu_coroutine_create(bsst_co_settle_entry, &data));
    AIO_WAIT_WHILE(NULL, qatomic_read(&data.ret) == -EINPROGRESS);
    return data.ret;
}
