/*
 * Jobs that move blocks of a bsst node out of the store: bsst-defrag and
 * bsst-drain
 *
 * A job goes through the map, from the disk's beginning to its end, and moves
 * what is indirected, in batches of moves that are in flight together: one
 * where much is indirected, more where they have few blocks.  How a move works,
 * and why that is safe, is in bsst-move.c.  Between batches nothing of the job
 * is in flight: there it pauses, for the user and for drained sections (so also
 * when the node changes its AioContext), sleeps for its speed, and is cancelled.
 *
 * The job is a parent of the node with BLK_PERM_WRITE_UNCHANGED: the disk's
 * content does not change, but the node needs write permission on the image
 * (bsst_child_perm()), and must not become read-only or inactive meanwhile.
 *
 * What was moved out of the store leaves its slot when a flush has recorded it.
 * The guest's flushes do that; if they are rare, the job flushes itself.
 *
 * bsst-drain ends when nothing is indirected any more and the image's guard has
 * been taken away.  While it exists writes make no new indirections, so it
 * ends.
 *
 * This work is licensed under the terms of the GNU GPL, version 2 or later.
 * See the COPYING file in the top-level directory.
 */

#include "qemu/osdep.h"
#include "block/aio_task.h"
#include "block/blockjob_int.h"
#include "bsst-int.h"
#include "qapi/error.h"
#include "qapi/qapi-commands-bsst.h"
#include "qemu/lockable.h"
#include "qemu/ratelimit.h"
#include "qemu/units.h"
#include "trace.h"

/*
 * Blocks of a batch; with a speed what it allows in this time.  One full move:
 * of two at once, one would read while the other writes, and heads would seek.
 */
#define BATCH_BLOCKS    BSST_MOVE_BLOCKS
#define BATCH_NS        (100 * SCALE_MS)
/* A move counts as so many, however few it has */
#define BATCH_MIN       (BATCH_BLOCKS / BSST_PARALLEL)
/* Blocks that have left the store, after which the job flushes */
#define FLUSH_BLOCKS    (64 * MiB / BSST_PAGE_SIZE)
/* Blocks that are not indirected within a run that is moved in one go */
#define RUN_GAP         16
/* How long a continuous job waits when it has found nothing */
#define IDLE_NS         (1 * NANOSECONDS_PER_SECOND)

typedef struct BsstJob {
    BlockJob common;

    /* Set once */
    BlockDriverState *bs;
    BlockdevOnError on_error;
    BsstDefragMode mode;
    bool drain;                 /* bsst-drain; the mode is then GUEST */
    bool hold;
    bool continuous;
    bool force;                 /* or ask the planner what is worth it */

    /* Of the coroutine */
    DefragCursor cursor;        /* where to go on, with a planner ... */
    uint64_t block;             /* ... or by force */
    int64_t wait_ns;            /* when the planner may know more */
    BsstSlot limit;             /* mode=store: NONE, or for compaction */
    uint64_t pass_moved;        /* blocks, since it was at the beginning */
    uint64_t pass_left;         /* indirected ones that it has not seen yet */
    uint64_t unflushed;         /* blocks moved since the last flush */
    int ret;                    /* the first error that was ignored */
} BsstJob;

static BDRVBsstState *job_state(const BsstJob *j)
{
    return j->bs->opaque;
}

/* A batch */

typedef struct BsstJobBatch {
    BsstJob *job;
    unsigned seen, moved;       /* blocks */
    bool no_room;               /* in the store, for other slots */
    int ret;                    /* the first error ... */
    bool is_read;
    uint64_t failed_block;      /* ... of the chunk that begins here */
} BsstJobBatch;

typedef struct BsstJobTask {
    AioTask task;
    BsstJobBatch *batch;
    BsstMoveRun run;
} BsstJobTask;

/* Its creator holds the graph lock until all tasks have ended. */
static int coroutine_fn GRAPH_RDLOCK job_task(AioTask *task)
{
    BsstJobTask *t = container_of(task, BsstJobTask, task);
    BsstJobBatch *batch = t->batch;
    BsstMoveResult res;

    if (batch->job->mode == BSST_DEFRAG_MODE_GUEST) {
        bsst_co_move_out(batch->job->bs, &t->run, 1, NULL, &res);
    } else {
        bsst_co_relay(batch->job->bs, t->run.block, t->run.n,
                      batch->job->limit, &res);
    }
    trace_bsst_job_chunk(batch->job, t->run.block, t->run.n, res.moved,
                         res.ret);
    batch->seen += res.seen;
    batch->moved += res.moved;
    if (res.no_room && !res.ret && batch->job->limit == BSST_SLOT_NONE) {
        batch->no_room = true;
        res.ret = -ENOSPC;
    }
    if (res.ret && (!batch->ret || t->run.block < batch->failed_block)) {
        batch->ret = res.ret;
        batch->is_read = res.is_read;
        batch->failed_block = t->run.block;
    }
    return 0;
}

/* How many blocks the next batch may move */
static unsigned job_batch_blocks(BsstJob *j)
{
    uint64_t all = BATCH_BLOCKS;
    uint64_t speed;

    WITH_JOB_LOCK_GUARD() {
        speed = j->common.speed;
    }
    if (!speed) {
        return all;
    }
    return MIN(all, MAX(1, speed / (NANOSECONDS_PER_SECOND / BATCH_NS) /
                           BSST_PAGE_SIZE));
}

/* By force: what is indirected next, whatever it is */
static bool coroutine_fn job_find_forced(BsstJob *j, unsigned room,
                                         BsstMoveRun *run, unsigned *mapped)
{
    if (j->mode == BSST_DEFRAG_MODE_GUEST) {
        return bsst_move_next(job_state(j), &j->block,
                              MIN(room, BSST_MOVE_BLOCKS), run, mapped);
    }
    if (!bsst_map_next(job_state(j), &j->block)) {
        return false;
    }
    run->block = j->block;
    run->n = MIN(room, BSST_CHUNK_BLOCKS - j->block % BSST_CHUNK_BLOCKS);
    *mapped = run->n;
    j->block += run->n;
    return true;
}

/* What the planner thinks best */
static bool coroutine_fn job_find_planned(BsstJob *j, unsigned room,
                                          BsstMoveRun *run, unsigned *mapped)
{
    BDRVBsstState *s = job_state(j);
    DefragVerdict verdict = DEFRAG_AGAIN;
    int64_t now_ns = get_clock();
    DefragRun found;

    j->wait_ns = now_ns + IDLE_NS;
    while (verdict == DEFRAG_AGAIN && j->cursor.sweeps < 2) {
        QEMU_LOCK_GUARD(&s->image->lock);
        if (j->mode == BSST_DEFRAG_MODE_GUEST) {
            verdict = defrag_plan_next_guest(s->plan, bsst_map(s), &j->cursor,
                                             false, RUN_GAP, MIN(room,
                                             DEFRAG_REGION_BLOCKS), now_ns,
                                             &found, &j->wait_ns);
        } else {
            verdict = defrag_plan_next_store(s->plan, bsst_map(s), &j->cursor,
                                             false, now_ns, &found,
                                             &j->wait_ns);
        }
    }
    if (verdict != DEFRAG_RUN) {
        return false;
    }
    *run = (BsstMoveRun) { found.block, found.n };
    *mapped = found.mapped;
    return true;
}

static bool coroutine_fn job_find(BsstJob *j, unsigned room, BsstMoveRun *run,
                                  unsigned *mapped)
{
    return j->force || j->limit != BSST_SLOT_NONE
           ? job_find_forced(j, room, run, mapped)
           : job_find_planned(j, room, run, mapped);
}

/* Move the next blocks.  False if there are none. */
static bool coroutine_fn GRAPH_RDLOCK job_batch(BsstJob *j,
                                                BsstJobBatch *batch)
{
    unsigned mapped, room = job_batch_blocks(j);
    AioTaskPool *pool = aio_task_pool_new(BSST_PARALLEL);
    bool found = false;
    BsstMoveRun run;

    *batch = (BsstJobBatch) { .job = j };
    while (room && !batch->ret && job_find(j, room, &run, &mapped)) {
        BsstJobTask *t = g_new(BsstJobTask, 1);

        *t = (BsstJobTask) {
            .task.func = job_task,
            .batch = batch,
            .run = run,
        };
        /* Where little is indirected not too many in one batch */
        room -= MIN(MAX(mapped, BATCH_MIN), room);
        found = true;
        aio_task_pool_start_task(pool, &t->task);
    }
    aio_task_pool_wait_all(pool);
    aio_task_pool_free(pool);
    return found;
}

/* The job */

/*
 * Returns 0 if the job goes on, or the error that ends it.  *@again: after a
 * pause it is to try again.
 */
static int job_handle_error(BsstJob *j, const BsstJobBatch *batch, bool *again)
{
    switch (block_job_error_action(&j->common, j->on_error, batch->is_read,
                                   -batch->ret)) {
    case BLOCK_ERROR_ACTION_REPORT:
        return batch->ret;
    case BLOCK_ERROR_ACTION_IGNORE:
        j->ret = j->ret ?: batch->ret;
        return 0;
    default:
        *again = true;
        return 0;
    }
}

static int coroutine_fn job_flush(BsstJob *j)
{
    int ret;

    GRAPH_RDLOCK_GUARD();
    ret = bsst_co_flush(j->bs);
    if (ret == 0) {
        j->unflushed = 0;
    }
    return ret;
}

static void job_set_progress(BsstJob *j, const BsstJobBatch *batch)
{
    j->pass_left -= MIN(j->pass_left, batch->seen);
    if (j->mode == BSST_DEFRAG_MODE_GUEST) {
        j->pass_left = qatomic_read(&job_state(j)->map_count);
    }
    job_progress_update(&j->common.job,
                        (uint64_t)batch->seen * BSST_PAGE_SIZE);
    job_progress_set_remaining(&j->common.job, j->pass_left * BSST_PAGE_SIZE);
    block_job_ratelimit_processed_bytes(&j->common, (uint64_t)batch->moved *
                                        BSST_PAGE_SIZE);
}

/* Move one batch.  *@found: there was something. */
static int coroutine_fn job_step(BsstJob *j, bool *found)
{
    BsstJobBatch batch;
    bool again = false;
    int ret = 0;

    WITH_GRAPH_RDLOCK_GUARD() {
        *found = job_batch(j, &batch);
    }
    j->pass_moved += batch.moved;
    j->unflushed += batch.moved;
    if (batch.no_room && j->unflushed) {
        ret = job_flush(j);     /* which makes slots free */
        again = true;
    } else if (batch.ret) {
        ret = job_handle_error(j, &batch, &again);
    }
    if (again) {
        j->block = MIN(j->block, batch.failed_block);
    }
    job_set_progress(j, &batch);
    return ret;
}

static void job_pass_begin(BsstJob *j)
{
    j->block = 0;
    j->cursor = (DefragCursor) { 0 };
    j->pass_moved = 0;
    j->pass_left = qatomic_read(&job_state(j)->map_count);
    job_progress_set_remaining(&j->common.job, j->pass_left * BSST_PAGE_SIZE);
}

/*
 * After what was re-laid, take what still lies high in the store down, so that
 * the store's end becomes free.  Returns false after that.
 */
static bool job_begin_compaction(BsstJob *j)
{
    if (j->limit != BSST_SLOT_NONE) {
        j->limit = BSST_SLOT_NONE;
        return false;
    }
    j->limit = bsst_store_used_slots(job_state(j)->store);
    return true;
}

/* There is nothing more to be found.  *@done: so the job has ended. */
static int coroutine_fn job_pass_end(BsstJob *j, bool *done)
{
    bool progress = j->pass_moved;
    int ret = 0;

    job_pass_begin(j);
    if (j->drain) {
        WITH_GRAPH_RDLOCK_GUARD() {
            ret = bsst_co_complete(j->bs, done);
        }
        /* What is left could not be moved, and will not be in another pass */
        return *done || progress ? ret : j->ret;
    }
    if (j->unflushed) {
        ret = job_flush(j);
    }
    /* Over and over, the two would undo what the other has done */
    if (ret == 0 && j->mode == BSST_DEFRAG_MODE_STORE && !j->continuous &&
        job_begin_compaction(j)) {
        return 0;
    }
    *done = !j->continuous;
    if (ret == 0 && !*done && !progress) {
        job_sleep_ns(&j->common.job, j->force ? IDLE_NS
                                     : MAX(j->wait_ns - get_clock(), 1));
    }
    return *done ? ret ?: j->ret : ret;
}

static int coroutine_fn bsst_job_run(Job *job, Error **errp)
{
    BsstJob *j = container_of(job, BsstJob, common.job);
    bool found, done = false;
    int ret = 0;

    job_pass_begin(j);
    while (ret == 0 && !done) {
        block_job_ratelimit_sleep(&j->common);
        if (job_is_cancelled(job)) {
            break;
        }
        ret = job_step(j, &found);
        if (ret == 0 && j->unflushed >= FLUSH_BLOCKS) {
            ret = job_flush(j);
        } else if (ret == 0 && !found) {
            ret = job_pass_end(j, &done);
        }
        trace_bsst_job_step(j, j->block, j->pass_moved, ret);
    }
    if (done && ret == 0) {
        job_progress_set_remaining(job, 0); /* the rest is to stay */
    }
    return ret;
}

static void bsst_job_commit(Job *job)
{
    BsstJob *j = container_of(job, BsstJob, common.job);

    if (j->hold) {
        qatomic_set(&job_state(j)->held, true);
    }
}

static void bsst_job_clean(Job *job)
{
    BsstJob *j = container_of(job, BsstJob, common.job);

    qatomic_set(&job_state(j)->draining, false);
    bsst_defrag_set_job(j->bs, NULL);
}

static const BlockJobDriver bsst_defrag_driver = {
    .job_driver = {
        .instance_size = sizeof(BsstJob),
        .job_type      = JOB_TYPE_BSST_DEFRAG,
        .free          = block_job_free,
        .user_resume   = block_job_user_resume,
        .run           = bsst_job_run,
        .clean         = bsst_job_clean,
    },
};

static const BlockJobDriver bsst_drain_driver = {
    .job_driver = {
        .instance_size = sizeof(BsstJob),
        .job_type      = JOB_TYPE_BSST_DRAIN,
        .free          = block_job_free,
        .user_resume   = block_job_user_resume,
        .run           = bsst_job_run,
        .commit        = bsst_job_commit,
        .clean         = bsst_job_clean,
    },
};

/* QMP */

/* The bsst node @name, if a job may work on it. */
static BlockDriverState *job_find_node(const char *name, Error **errp)
{
    BlockDriverState *bs = bdrv_lookup_bs(name, name, errp);

    GRAPH_RDLOCK_GUARD_MAINLOOP();

    if (!bs) {
        return NULL;
    }
    bs = bdrv_skip_implicit_filters(bs);
    if (bs->drv != &bdrv_bsst) {
        error_setg(errp, "Node '%s' is not a bsst node", name);
        return NULL;
    }
    if (bdrv_is_read_only(bs) || bdrv_is_inactive(bs)) {
        error_setg(errp, "Node '%s' is %s", bdrv_get_node_name(bs),
                   bdrv_is_inactive(bs) ? "inactive" : "read-only");
        return NULL;
    }
    /* There is no type for us; this one writes into the node's image, too */
    if (bdrv_op_is_blocked(bs, BLOCK_OP_TYPE_STREAM, errp)) {
        return NULL;
    }
    return bs;
}

static BsstJob *job_create_for(const BsstJobOptions *o,
                               const BlockJobDriver *driver, Error **errp)
{
    int flags = 0;
    BlockDriverState *bs = job_find_node(o->node, errp);
    BDRVBsstState *s;
    BsstJob *j;

    if (!bs) {
        return NULL;
    }
    if (o->has_auto_finalize && !o->auto_finalize) {
        flags |= JOB_MANUAL_FINALIZE;
    }
    if (o->has_auto_dismiss && !o->auto_dismiss) {
        flags |= JOB_MANUAL_DISMISS;
    }
    j = block_job_create(o->job_id, driver, NULL, bs, BLK_PERM_WRITE_UNCHANGED,
                         BLK_PERM_ALL, o->has_speed ? o->speed : 0, flags,
                         NULL, NULL, errp);
    if (!j) {
        return NULL;
    }
    s = bs->opaque;
    assert(!s->job);
    bsst_defrag_set_job(bs, &j->common);
    j->bs = bs;
    j->on_error = o->has_on_error ? o->on_error : BLOCKDEV_ON_ERROR_REPORT;
    j->limit = BSST_SLOT_NONE;
    /* A move waits for a change of the size, and the other way round. */
    bdrv_op_unblock(bs, BLOCK_OP_TYPE_RESIZE, j->common.blocker);
    return j;
}

void qmp_bsst_defrag(BsstDefragOptions *o, Error **errp)
{
    BsstJob *j = job_create_for(qapi_BsstDefragOptions_base(o),
                                &bsst_defrag_driver, errp);

    if (!j) {
        return;
    }
    j->mode = o->mode;
    j->continuous = o->has_continuous && o->continuous;
    j->force = o->has_force ? o->force : !j->continuous;
    if (!j->force) {
        bsst_defrag_observe(job_state(j));
    }
    trace_bsst_job_start(j, j->bs, "defrag");
    job_start(&j->common.job);
}

void qmp_bsst_drain(BsstDrainOptions *o, Error **errp)
{
    BsstJob *j = job_create_for(qapi_BsstDrainOptions_base(o),
                                &bsst_drain_driver, errp);

    if (!j) {
        return;
    }
    j->mode = BSST_DEFRAG_MODE_GUEST;
    j->drain = true;
    j->force = true;
    j->hold = o->has_hold && o->hold;
    qatomic_set(&job_state(j)->draining, true);
    trace_bsst_job_start(j, j->bs, "drain");
    job_start(&j->common.job);
}
