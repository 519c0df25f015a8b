/*
 * bsst block driver: from the store back into the image; flush, and the end
 *
 * A flush leaves the indirections where they are: the journal makes them
 * durable.  What is copied into the image is a block that is written in part,
 * and, with drain-on-close, everything when the image is closed, becomes
 * inactive or read-only.
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
        ret = bsst_store_co_read_retry(s->store, slot[0], run, buf);
        if (ret < 0) {
            return ret;
        }
        slot += run;
        buf += run * BSST_PAGE_SIZE;
        n -= run;
    }
    return 0;
}

/* A drain that takes longer tells how far it is, this often. */
#define PROGRESS_NS     (3 * NANOSECONDS_PER_SECOND)

/*
 * Copy the @n blocks from @block on, which are all indirected.  (The image may
 * end within the last of them if it shrank just before a crash.)
 */
static int coroutine_fn GRAPH_RDLOCK
bsst_co_copy_run(BlockDriverState *bs, uint64_t block, const BsstSlot *slot,
                 unsigned n)
{
    BDRVBsstState *s = bs->opaque;
    int64_t length = bdrv_co_getlength(bs->file->bs);
    int64_t offset = bsst_block_offset(block);
    void *buf;
    int ret;

    if (length < 0) {
        return length;
    }
    buf = bsst_store_buffer(s->store, (size_t)n * BSST_PAGE_SIZE);
    if (!buf) {
        return -ENOMEM;
    }
    ret = bsst_co_read_slots(s, slot, n, buf);
    if (ret == 0) {
        ret = bdrv_co_pwrite(bs->file, offset,
                             MIN(bsst_block_offset(n), length - offset), buf,
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
    WITH_QEMU_LOCK_GUARD(&s->image->lock) {
        for (i = 0; i < n; i++) {
            slot[i] = indirect_map_lookup(bsst_map(s), block + i);
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
           bsst_map_next_run(s, &block, &n)) {
        BsstDrainTask *t = g_new(BsstDrainTask, 1);

        n = MIN(n, max);
        max -= n;
        *t = (BsstDrainTask) {
            .task.func = bsst_co_drain_task,
            .bs = bs,
            .block = block,
            .n = n,
        };
        aio_task_pool_start_task(pool, &t->task);
        block += n;
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
