/*
 * bsst block driver: everything back into the image; flush, and the end
 *
 * A flush leaves the indirections where they are: the journal makes them
 * durable.  With drain-on-close, everything is copied into the image when it is
 * closed, becomes inactive or read-only.
 *
 * This work is licensed under the terms of the GNU GPL, version 2 or later.
 * See the COPYING file in the top-level directory.
 */

#include "qemu/osdep.h"
#include "block/aio-wait.h"
#include "block/aio_task.h"
#include "block/block_int.h"
#include "bsst-int.h"
#include "bsst/bsst.h"
#include "qemu/error-report.h"
#include "qemu/lockable.h"
#include "qemu/memalign.h"
#include "qemu/timer.h"
#include "qemu/units.h"
#include "trace.h"

/* A drain that takes longer tells how far it is, this often. */
#define PROGRESS_NS     (3 * NANOSECONDS_PER_SECOND)

typedef struct BsstDrainTask {
    AioTask task;
    BlockDriverState *bs;
    BsstMoveRun run;
} BsstDrainTask;

/*
 * The task's coroutine is not the one that holds the graph lock, but its
 * creator holds it until all tasks have ended.
 */
static int coroutine_fn GRAPH_RDLOCK bsst_co_drain_task(AioTask *task)
{
    BsstDrainTask *t = container_of(task, BsstDrainTask, task);
    BDRVBsstState *s = t->bs->opaque;
    BsstMoveResult res;
    int ret = bsst_co_move_out(t->bs, &t->run, 1, NULL, &res);

    stat64_add(&s->drain_errors, res.failed);
    return ret;
}

static void bsst_drain_progress(BlockDriverState *bs, size_t all,
                                int64_t *next_ns)
{
    BDRVBsstState *s = bs->opaque;
    size_t left = qatomic_read(&s->map_count);

    if (get_clock() >= *next_ns) {
        *next_ns = get_clock() + PROGRESS_NS;
        info_report("bsst: copying from the block-swap store into '%s': %zu "
                    "of %zu MiB left", bs->file->bs->filename,
                    left * BSST_PAGE_SIZE / MiB, all * BSST_PAGE_SIZE / MiB);
    }
}

int coroutine_fn GRAPH_RDLOCK bsst_co_drain(BlockDriverState *bs, uint64_t max,
                                            bool progress)
{
    BDRVBsstState *s = bs->opaque;
    size_t all = qatomic_read(&s->map_count);
    int64_t next_ns = progress ? get_clock() + PROGRESS_NS : INT64_MAX;
    AioTaskPool *pool;
    uint64_t block = 0;
    BsstMoveRun run;
    unsigned n;
    int ret;

    ret = bsst_co_attach_if_mapped(bs);
    if (ret < 0 || !all) {
        return ret;
    }

    trace_bsst_drain_begin(bs, all);
    stat64_add(&s->drains, 1);
    pool = aio_task_pool_new(BSST_PARALLEL);
    while (max && aio_task_pool_status(pool) == 0 &&
           bsst_move_next(s, &block, MIN(max, BSST_CHUNK_BLOCKS), &run, &n)) {
        BsstDrainTask *t = g_new(BsstDrainTask, 1);

        max -= n;
        *t = (BsstDrainTask) {
            .task.func = bsst_co_drain_task,
            .bs = bs,
            .run = run,
        };
        aio_task_pool_start_task(pool, &t->task);
        bsst_drain_progress(bs, all, &next_ns);
    }
    aio_task_pool_wait_all(pool);
    ret = aio_task_pool_status(pool);
    aio_task_pool_free(pool);
    trace_bsst_drain_end(bs, qatomic_read(&s->map_count), ret);
    return ret;
}

static int coroutine_fn bsst_co_flush_image(void *opaque)
{
    BlockDriverState *bs = opaque;

    /* The caller of bsst_image_co_flush() holds the graph lock. */
    assume_graph_lock();
    return bdrv_co_flush(bs->file->bs);
}

int coroutine_fn GRAPH_RDLOCK bsst_co_flush(BlockDriverState *bs)
{
    BDRVBsstState *s = bs->opaque;
    int ret = bsst_image_co_flush(s->image, bsst_co_flush_image, bs);

    if (qatomic_read(&s->map_held)) {
        QEMU_LOCK_GUARD(&s->image->lock);
        bsst_map_publish_locked(s);
    }
    return ret;
}

static int coroutine_fn GRAPH_RDLOCK bsst_co_settle(BlockDriverState *bs,
                                                    bool *flushed)
{
    BDRVBsstState *s = bs->opaque;
    int drain_ret = s->drain_on_close ? bsst_co_drain(bs, UINT64_MAX, true) : 0;
    int ret = bsst_co_flush(bs);

    *flushed = ret == 0;
    if (ret == 0 && !qatomic_read(&s->map_count)) {
        ret = bsst_co_unguard(bs);
    }
    /* Whoever copies the image from now on may get all of it. */
    qatomic_set(&s->attached, false);
    return ret ?: drain_ret;
}

typedef struct BsstSettle {
    BlockDriverState *bs;
    bool flushed;
    int ret;
} BsstSettle;

static void coroutine_fn bsst_co_settle_entry(void *opaque)
{
    BsstSettle *data = opaque;

    GRAPH_RDLOCK_GUARD();
    data->ret = bsst_co_settle(data->bs, &data->flushed);
    aio_wait_kick();
}

int bsst_settle(BlockDriverState *bs, bool *flushed)
{
    BsstSettle data = { .bs = bs, .ret = -EINPROGRESS };

    GLOBAL_STATE_CODE();
    aio_co_enter(bdrv_get_aio_context(bs),
                 qemu_coroutine_create(bsst_co_settle_entry, &data));
    AIO_WAIT_WHILE(NULL, qatomic_read(&data.ret) == -EINPROGRESS);
    if (flushed) {
        *flushed = data.flushed;
    }
    return data.ret;
}

typedef struct BsstDrain {
    BlockDriverState *bs;
    uint64_t blocks;
    int ret;
} BsstDrain;

static int coroutine_fn GRAPH_RDLOCK bsst_co_drain_some(BlockDriverState *bs,
                                                        uint64_t blocks)
{
    BDRVBsstState *s = bs->opaque;
    int drain_ret = bsst_co_drain(bs, blocks, false);
    int ret = bsst_co_flush(bs);

    if (ret == 0 && !qatomic_read(&s->map_count)) {
        ret = bsst_co_unguard(bs);
    }
    return drain_ret ?: ret;
}

/* While the disk serves requests: they are kept off for that moment. */
int coroutine_fn GRAPH_RDLOCK bsst_co_complete(BlockDriverState *bs,
                                               bool *complete)
{
    BDRVBsstState *s = bs->opaque;
    BlockReq req;
    int ret = 0;

    bsst_track_begin_all(s, &req);
    *complete = !qatomic_read(&s->map_count);
    if (*complete) {
        ret = bsst_co_flush(bs);
    }
    if (*complete && ret == 0) {
        ret = bsst_co_unguard(bs);
    }
    bsst_track_end_all(s, &req);
    return ret;
}

static void coroutine_fn bsst_co_drain_entry(void *opaque)
{
    BsstDrain *data = opaque;

    GRAPH_RDLOCK_GUARD();
    data->ret = bsst_co_drain_some(data->bs, data->blocks);
    aio_wait_kick();
}

int bsst_drain(BlockDriverState *bs, uint64_t blocks, uint64_t *left)
{
    BDRVBsstState *s = bs->opaque;
    BsstDrain data = { .bs = bs, .blocks = blocks, .ret = -EINPROGRESS };

    GLOBAL_STATE_CODE();
    assert(bs->drv == &bdrv_bsst);
    aio_co_enter(bdrv_get_aio_context(bs),
                 qemu_coroutine_create(bsst_co_drain_entry, &data));
    AIO_WAIT_WHILE(NULL, qatomic_read(&data.ret) == -EINPROGRESS);
    *left = qatomic_read(&s->map_count);
    return data.ret;
}
