/*
 * bsst block driver: moving blocks back into the image while the disk is idle
 *
 * The automatic works in slices.  A timer in the main loop asks whether one may
 * begin; then a coroutine in the node's AioContext begins slices as long as the
 * foreground can bear it (defrag-load.c), there is something worth moving
 * (defrag-plan.c), and nobody wants it to stop; then it says when to ask again.
 * A slice stops in the middle when a request comes that must not be disturbed:
 * no I/O begins any more, and what has not been moved stays where it is.
 *
 * It is a source of requests within the node, so for the block layer:
 *
 *   - while the coroutine exists the node has a request in flight, and
 *     bdrv_drain_begin() tells it to stop and keeps the next one from starting.
 *     What counts is looked at after the request has been counted, and drained
 *     sections look at the requests after they have begun.
 *   - the timer is the main loop's.  So are drained sections, closing, changes
 *     of the AioContext and reopening: none of them happens while it fires.
 *   - it has no permissions of its own.  A node that nobody has used yet has no
 *     write permission on the image; once it has it, it keeps it while the map
 *     is not empty (B6), so it is enough to look before a slice.
 *
 * Nothing of this is needed by, or waits for, what handles a fault of the
 * guest: moves use private memory and take the driver's locks (bsst-move.c).
 *
 * While there is a job the automatic stands aside.
 *
 * Here is also what planner and load are told of requests.  Without a planner
 * (defrag=off and no job so far) a request looks at two flags.
 *
 * This work is licensed under the terms of the GNU GPL, version 2 or later.
 * See the COPYING file in the top-level directory.
 */

#include "qemu/osdep.h"
#include "block/aio-wait.h"
#include "block/block_int.h"
#include "bsst-int.h"
#include "qemu/lockable.h"
#include "qemu/main-loop.h"
#include "qemu/thread.h"
#include "qemu/timer.h"
#include "qemu/units.h"
#include "trace.h"

/* Runs of one slice, while the disk is idle */
#define IDLE_RUNS       64
/* I/O in flight, while the disk is in use */
#define BUSY_IO         2
#define IDLE_IO         64
/* Blocks that are not indirected within a run that is moved in one go */
#define RUN_GAP         16
/* Blocks that the planner looks at with the lock held, before a query */
#define CATCH_UP        4096
/* How often the planner is asked in one go */
#define PLAN_TRIES      64

/* Blocks that have left the store, after which a flush frees their slots */
#define FLUSH_BLOCKS    (64 * MiB / BSST_PAGE_SIZE)
/* While nobody uses the node */
#define UNUSED_WAIT_NS  (1 * NANOSECONDS_PER_SECOND)
/* After an error, doubling */
#define ERROR_WAIT_NS   (1 * NANOSECONDS_PER_SECOND)
#define ERROR_WAIT_MAX  10
/* Splits before: from a pause of moves of this length on */
#define EPISODE_NS      (10 * NANOSECONDS_PER_SECOND)
/* Weight of a new read in the moving average of split reads */
#define SPLIT_WEIGHT    (1.0 / 256)

struct BsstDefrag {
    BlockDriverState *bs;
    QEMUTimer *timer;

    /* Main thread */
    bool quiesced;

    /* Atomic */
    bool armed;                 /* the timer is set, or there is a coroutine */
    bool stop;                  /* the slice in flight is to end */
    bool suspended;             /* quiesced, read-only, inactive, or a job */
    BsstDefragState state;

    /* Of the coroutine */
    DefragCursor cursor;
    BsstMoveRun next;           /* what did not fit into the last slice, or n=0 */
    uint64_t unflushed;         /* blocks moved since the last flush */
    unsigned errors;            /* in a row */
    int64_t last_slice_ns;

    /* Under @load_lock, a leaf */
    QemuMutex load_lock;
    DefragLoad load;
    double split_now, split_before;

    /* Thread-safe API */
    Stat64 cuts;
    BsstLatency without, with;
};

/* Observation: the load */

void bsst_load_begin(BDRVBsstState *s, DefragLoadReq *req)
{
    BsstDefrag *d = s->defrag;

    QEMU_LOCK_GUARD(&d->load_lock);
    if (defrag_load_begin(&d->load, req, get_clock()) &&
        !qatomic_read(&d->stop)) {
        qatomic_set(&d->stop, true);
        stat64_add(&d->cuts, 1);
    }
}

void bsst_load_end(BDRVBsstState *s, DefragLoadReq *req, int ret)
{
    BsstDefrag *d = s->defrag;
    int64_t now_ns = get_clock();
    bool disturbed;

    WITH_QEMU_LOCK_GUARD(&d->load_lock) {
        disturbed = defrag_load_end(&d->load, req, ret >= 0, now_ns);
    }
    if (ret >= 0) {
        bsst_latency_add(disturbed ? &d->with : &d->without,
                         now_ns - req->start_ns);
    }
}

/* Observation: the planner */

void coroutine_fn bsst_observe_read(BDRVBsstState *s, int64_t offset,
                                    int64_t bytes, unsigned parts)
{
    uint64_t first = bsst_block_down(offset);
    BsstDefrag *d = s->defrag;

    if (d) {
        QEMU_LOCK_GUARD(&d->load_lock);
        d->split_now += ((parts > 1) - d->split_now) * SPLIT_WEIGHT;
    }
    if (parts > 1) {
        QEMU_LOCK_GUARD(&s->image->lock);
        defrag_plan_read_split(s->plan, first,
                               bsst_block_up(offset + bytes) - first,
                               get_clock());
    }
}

void coroutine_fn bsst_observe_write(BDRVBsstState *s, int64_t offset,
                                     int64_t bytes, bool discard)
{
    uint64_t first = bsst_block_down(offset);
    uint64_t n = bsst_block_up(offset + bytes) - first;

    if (!bytes) {
        return;
    }
    QEMU_LOCK_GUARD(&s->image->lock);
    if (discard) {
        defrag_plan_discarded(s->plan, first, n, get_clock());
    } else {
        defrag_plan_overwritten(s->plan, first, n, get_clock());
    }
}

/* A write of whole blocks: some got slots, the others have none any more. */
static void observe_update_locked(BDRVBsstState *s, uint64_t block,
                                  const BsstSlot *slot, unsigned n,
                                  int64_t now_ns)
{
    unsigned i, k;

    for (i = 0; i < n; i += k) {
        bool mapped = slot[i] != BSST_SLOT_NONE;

        k = 1;
        while (i + k < n && (slot[i + k] != BSST_SLOT_NONE) == mapped) {
            k++;
        }
        if (mapped) {
            defrag_plan_indirected(s->plan, block + i, k, now_ns);
        } else {
            defrag_plan_overwritten(s->plan, block + i, k, now_ns);
        }
    }
}

void bsst_observe_map_locked(BDRVBsstState *s, uint64_t block,
                             const BsstSlot *slot, unsigned n,
                             BsstRemoveCause cause)
{
    int64_t now_ns = get_clock();

    switch (cause) {
    case BSST_REMOVE_OVERWRITE:
        observe_update_locked(s, block, slot, n, now_ns);
        break;
    case BSST_REMOVE_DRAIN:
        defrag_plan_moved(s->plan, block, n, now_ns);
        break;
    case BSST_REMOVE_RELAY:
        defrag_plan_relaid(s->plan, n);
        break;
    default:
        break;                  /* told by the request, for all its blocks */
    }
    if (!s->watch) {
        qatomic_set(&s->watch, true);
    }
}

/* A slice */

typedef struct AutoSlice {
    BlockDriverState *bs;
    BsstMoveLimits limits;
    BsstMoveRun run[IDLE_RUNS];
    unsigned nruns;
    unsigned moved;
} AutoSlice;

/* Ask for the next run.  If there is none, *@wait_ns is when to ask again. */
static DefragVerdict coroutine_fn auto_next_run(BDRVBsstState *s,
                                                unsigned max, DefragRun *run,
                                                int64_t *wait_ns)
{
    BsstDefrag *d = s->defrag;
    DefragVerdict verdict = DEFRAG_AGAIN;
    int64_t now_ns = get_clock();
    unsigned tries;

    /* In several steps, for those who wait for the lock */
    for (tries = 0; verdict == DEFRAG_AGAIN && tries < PLAN_TRIES; tries++) {
        QEMU_LOCK_GUARD(&s->image->lock);
        verdict = defrag_plan_next_guest(s->plan, bsst_map(s), &d->cursor,
                                         false, RUN_GAP, max, now_ns, run,
                                         wait_ns);
    }
    if (verdict == DEFRAG_AGAIN) {
        *wait_ns = now_ns;
    }
    return verdict;
}

/* Is @run behind the slice's others, and may be moved together with them? */
static bool auto_fits(const AutoSlice *slice, const DefragRun *run)
{
    const BsstMoveRun *last;

    if (!slice->nruns) {
        return true;
    }
    last = &slice->run[slice->nruns - 1];
    return run->block >= last->block + last->n &&
           run->block + run->n - slice->run[0].block <= BSST_MOVE_SPAN;
}

/* Find runs of @blocks in all, or less.  False if there are none now. */
static bool coroutine_fn auto_collect(AutoSlice *slice, unsigned blocks,
                                      unsigned max_runs, int64_t *wait_ns)
{
    BDRVBsstState *s = slice->bs->opaque;
    BsstDefrag *d = s->defrag;
    DefragRun run;

    if (d->next.n) {
        unsigned n = MIN(d->next.n, blocks);

        slice->run[slice->nruns++] = (BsstMoveRun) { d->next.block, n };
        d->next.block += n;
        d->next.n -= n;
        blocks -= n;
    }
    while (blocks && !d->next.n && slice->nruns < max_runs &&
           auto_next_run(s, MIN(blocks, DEFRAG_REGION_BLOCKS), &run,
                         wait_ns) == DEFRAG_RUN) {
        BsstMoveRun next = { run.block, run.n };

        if (!auto_fits(slice, &run)) {
            d->next = next;
            break;
        }
        slice->run[slice->nruns++] = next;
        blocks -= MIN(blocks, run.mapped);
    }
    return slice->nruns;
}

static int coroutine_fn GRAPH_RDLOCK auto_move(AutoSlice *slice)
{
    BDRVBsstState *s = slice->bs->opaque;
    BsstMoveResult res;
    int ret = bsst_co_move_out(slice->bs, slice->run, slice->nruns,
                               &slice->limits, &res);

    slice->moved = res.moved;
    stat64_add(&s->drain_errors, res.failed);
    return ret;
}

/* May a slice begin?  Then how many blocks should it move? */
static unsigned auto_slice_begin(BsstDefrag *d, bool *idle, int64_t *wait_ns)
{
    int64_t now_ns = get_clock();
    unsigned blocks;

    QEMU_LOCK_GUARD(&d->load_lock);
    if (!defrag_load_may_slice(&d->load, now_ns, wait_ns)) {
        *wait_ns += now_ns;
        return 0;
    }
    *idle = defrag_load_is_idle(&d->load, now_ns);
    blocks = defrag_load_slice_begin(&d->load, now_ns);
    if (now_ns - d->last_slice_ns > EPISODE_NS) {
        d->split_before = d->split_now;
    }
    d->last_slice_ns = now_ns;
    qatomic_set(&d->stop, qatomic_read(&d->suspended));
    return blocks;
}

static void auto_slice_end(BsstDefrag *d)
{
    QEMU_LOCK_GUARD(&d->load_lock);
    defrag_load_slice_end(&d->load, get_clock());
}

static void auto_set_state(BsstDefrag *d, BsstDefragState state)
{
    qatomic_set(&d->state, state);
}

/* What was moved leaves the store.  Counts as a slice. */
static int coroutine_fn GRAPH_RDLOCK auto_flush(BlockDriverState *bs)
{
    BDRVBsstState *s = bs->opaque;
    int ret = bsst_co_flush(bs);

    if (ret == 0) {
        s->defrag->unflushed = 0;
    }
    return ret;
}

static int coroutine_fn GRAPH_RDLOCK auto_work(AutoSlice *slice,
                                               unsigned blocks, bool idle,
                                               int64_t *wait_ns)
{
    BDRVBsstState *s = slice->bs->opaque;
    BsstDefrag *d = s->defrag;
    int ret;

    *wait_ns = 0;
    if (d->unflushed >= FLUSH_BLOCKS) {
        return auto_flush(slice->bs);
    }
    if (!auto_collect(slice, MIN(blocks, BSST_MOVE_BLOCKS),
                      idle ? IDLE_RUNS : 1, wait_ns)) {
        return d->unflushed && !qatomic_read(&d->stop)
               ? auto_flush(slice->bs) : 0;
    }
    trace_bsst_auto_begin(slice->bs, blocks);
    ret = auto_move(slice);
    d->unflushed += slice->moved;
    *wait_ns = 0;
    trace_bsst_auto_end(slice->bs, slice->moved, qatomic_read(&d->stop), ret);
    return ret;
}

/* A slice, if it may be.  Returns 0 to go on, or when to ask again. */
static int64_t coroutine_fn auto_slice(BlockDriverState *bs)
{
    BDRVBsstState *s = bs->opaque;
    BsstDefrag *d = s->defrag;
    AutoSlice slice = {
        .bs = bs,
        .limits.stop = &d->stop,
    };
    int64_t wait_ns;
    unsigned blocks;
    bool idle;
    int ret;

    blocks = auto_slice_begin(d, &idle, &wait_ns);
    if (!blocks) {
        auto_set_state(d, BSST_DEFRAG_STATE_YIELDING);
        return wait_ns;
    }
    auto_set_state(d, BSST_DEFRAG_STATE_MOVING);
    slice.limits.parallel = idle ? IDLE_IO : BUSY_IO;
    WITH_GRAPH_RDLOCK_GUARD() {
        ret = auto_work(&slice, blocks, idle, &wait_ns);
    }
    auto_slice_end(d);
    if (wait_ns) {
        auto_set_state(d, BSST_DEFRAG_STATE_WAITING);
    }
    if (ret < 0) {
        d->errors = MIN(d->errors + 1, ERROR_WAIT_MAX);
        auto_set_state(d, BSST_DEFRAG_STATE_WAITING);
        return get_clock() + (ERROR_WAIT_NS << (d->errors - 1));
    }
    d->errors = slice.moved ? 0 : d->errors;
    return wait_ns;
}

/* When nothing is indirected: how long are moved blocks watched? */
static bool coroutine_fn auto_watches(BDRVBsstState *s)
{
    QEMU_LOCK_GUARD(&s->image->lock);
    if (qatomic_read(&s->map_count) ||
        defrag_plan_watching(s->plan, get_clock())) {
        return true;
    }
    qatomic_set(&s->watch, false);
    return false;
}

static void auto_arm(BsstDefrag *d, int64_t wait_ns)
{
    if (!qatomic_xchg(&d->armed, true)) {
        timer_mod(d->timer, qemu_clock_get_ns(QEMU_CLOCK_REALTIME) + wait_ns);
    }
}

static void auto_set_measure(BDRVBsstState *s, bool on)
{
    if (qatomic_read(&s->measure) != on) {
        qatomic_set(&s->measure, on);
    }
}

static void coroutine_fn auto_co_entry(void *opaque)
{
    BlockDriverState *bs = opaque;
    BDRVBsstState *s = bs->opaque;
    BsstDefrag *d = s->defrag;
    int64_t wait_ns = 0;

    while (!qatomic_read(&d->suspended) && qatomic_read(&s->map_count) &&
           !wait_ns) {
        wait_ns = auto_slice(bs);
    }
    if (!qatomic_read(&s->map_count) && d->unflushed &&
        !qatomic_read(&d->suspended)) {
        WITH_GRAPH_RDLOCK_GUARD() {
            auto_flush(bs);
        }
    }
    /* From here on bsst_defrag_kick() starts the next one. */
    qatomic_xchg(&d->armed, false);
    if (qatomic_read(&d->suspended)) {
        auto_set_state(d, BSST_DEFRAG_STATE_SUSPENDED);
    } else if (qatomic_read(&s->map_count)) {
        auto_arm(d, MAX(wait_ns - get_clock(), 1));
    } else {
        auto_set_state(d, BSST_DEFRAG_STATE_EMPTY);
        auto_set_measure(s, false);
        if (auto_watches(s)) {
            auto_arm(d, DEFRAG_WATCH_NS);
        }
    }
    bdrv_dec_in_flight(bs);
}

/* Main thread: nothing of this changes meanwhile. */
static bool auto_is_suspended(BlockDriverState *bs)
{
    BDRVBsstState *s = bs->opaque;

    return s->defrag->quiesced || s->frozen || s->job ||
           bdrv_is_read_only(bs) || (bs->open_flags & BDRV_O_INACTIVE);
}

static bool auto_may_write(BlockDriverState *bs)
{
    GRAPH_RDLOCK_GUARD_MAINLOOP();

    return bs->file->perm & BLK_PERM_WRITE;
}

static void auto_timer(void *opaque)
{
    BlockDriverState *bs = opaque;
    BDRVBsstState *s = bs->opaque;
    BsstDefrag *d = s->defrag;
    bool suspended = auto_is_suspended(bs);

    qatomic_set(&d->suspended, suspended);
    if (suspended) {
        auto_set_state(d, BSST_DEFRAG_STATE_SUSPENDED);
        qatomic_xchg(&d->armed, false);
        return;
    }
    if (!auto_may_write(bs)) {
        /* Nobody tells when it may */
        auto_set_state(d, BSST_DEFRAG_STATE_SUSPENDED);
        timer_mod(d->timer, qemu_clock_get_ns(QEMU_CLOCK_REALTIME) +
                            UNUSED_WAIT_NS);
        return;
    }
    auto_set_measure(s, true);
    bdrv_inc_in_flight(bs);
    aio_co_enter(bdrv_get_aio_context(bs),
                 qemu_coroutine_create(auto_co_entry, bs));
}

/* Something has changed for auto_is_suspended(). */
static void auto_reconsider(BlockDriverState *bs)
{
    BDRVBsstState *s = bs->opaque;
    BsstDefrag *d = s->defrag;
    bool suspended;

    if (!d) {
        return;
    }
    suspended = auto_is_suspended(bs);
    qatomic_set(&d->suspended, suspended);
    smp_mb(); /* bdrv_inc_in_flight() comes before others look at it */
    if (suspended) {
        qatomic_set(&d->stop, true);
    } else {
        bsst_defrag_kick(s);
    }
}

/* What others call */

void bsst_defrag_kick(BDRVBsstState *s)
{
    BsstDefrag *d = s->defrag;

    if (d && qatomic_read(&s->map_count) && !qatomic_read(&d->armed)) {
        auto_arm(d, 1);
    }
}

void bsst_defrag_set_job(BlockDriverState *bs, BlockJob *job)
{
    BDRVBsstState *s = bs->opaque;

    GLOBAL_STATE_CODE();
    s->job = job;
    auto_reconsider(bs);
}

void bsst_drain_begin(BlockDriverState *bs)
{
    BDRVBsstState *s = bs->opaque;

    if (s->defrag) {
        s->defrag->quiesced = true;
        auto_reconsider(bs);
    }
}

void bsst_drain_end(BlockDriverState *bs)
{
    BDRVBsstState *s = bs->opaque;

    if (s->defrag) {
        s->defrag->quiesced = false;
        auto_reconsider(bs);
    }
}

void bsst_defrag_observe(BDRVBsstState *s)
{
    GLOBAL_STATE_CODE();
    if (!s->plan) {
        qatomic_store_release(&s->plan, defrag_plan_new(0));
        qatomic_store_release(&s->watch, true);
    }
}

void bsst_defrag_open(BlockDriverState *bs, bool automatic)
{
    BDRVBsstState *s = bs->opaque;
    BsstDefrag *d;

    if (!automatic) {
        return;
    }
    d = g_new0(BsstDefrag, 1);
    d->bs = bs;
    d->quiesced = bs->quiesce_counter > 0;
    d->timer = aio_timer_new(qemu_get_aio_context(), QEMU_CLOCK_REALTIME,
                             SCALE_NS, auto_timer, bs);
    d->state = BSST_DEFRAG_STATE_EMPTY;
    qemu_mutex_init(&d->load_lock);
    defrag_load_init(&d->load, get_clock());
    bsst_defrag_observe(s);
    s->defrag = d;
    bsst_defrag_kick(s);
}

/* The node is drained, so there is no coroutine. */
void bsst_defrag_close(BlockDriverState *bs)
{
    BDRVBsstState *s = bs->opaque;
    BsstDefrag *d = s->defrag;

    s->watch = s->measure = false;
    s->defrag = NULL;
    if (d) {
        timer_free(d->timer);
        qemu_mutex_destroy(&d->load_lock);
        g_free(d);
    }
    defrag_plan_free(s->plan);
    s->plan = NULL;
}

/* Statistics */

typedef struct AutoQuery {
    BDRVBsstState *s;
    DefragStats stats;
    bool done;
} AutoQuery;

static void coroutine_fn auto_co_query(void *opaque)
{
    AutoQuery *q = opaque;
    DefragPlan *plan = q->s->plan;
    bool ready = !plan;

    while (!ready) {
        QEMU_LOCK_GUARD(&q->s->image->lock);
        ready = defrag_plan_catch_up(plan, CATCH_UP);
        defrag_plan_stats(plan, &q->stats);
    }
    q->done = true;
    aio_wait_kick();
}

static void auto_query_load(BsstDefrag *d, BsstDefragStats *st)
{
    QEMU_LOCK_GUARD(&d->load_lock);

    st->slices = d->load.slices;
    st->share = d->load.share * 1024;
    st->baseline_ns = d->load.alone.ns;
    st->disturbed_ns = d->load.disturbed.ns;
    st->split_now = d->split_now * 1000;
    st->split_before = d->split_before * 1000;
}

BsstDefragStats *bsst_defrag_query(BlockDriverState *bs)
{
    static const BsstLatency none;
    BDRVBsstState *s = bs->opaque;
    BsstDefrag *d = s->defrag;
    BsstDefragStats *st = g_new0(BsstDefragStats, 1);
    AutoQuery q = { .s = s };

    GLOBAL_STATE_CODE();
    qemu_coroutine_enter(qemu_coroutine_create(auto_co_query, &q));
    AIO_WAIT_WHILE_UNLOCKED(NULL, !q.done);
    st->automatic = d;
    st->state = d ? qatomic_read(&d->state) : BSST_DEFRAG_STATE_OFF;
    st->moved = stat64_get(&s->removed[BSST_REMOVE_DRAIN]);
    st->relaid = stat64_get(&s->removed[BSST_REMOVE_RELAY]);
    st->failed = stat64_get(&s->drain_errors);
    st->spared = q.stats.spared;
    st->wasted_1s = q.stats.wasted_1s;
    st->wasted_10s = q.stats.wasted_10s;
    st->split_reads = q.stats.split_reads;
    if (d) {
        auto_query_load(d, st);
        st->cuts = stat64_get(&d->cuts);
    }
    st->foreground_without = bsst_latency_info(d ? &d->without : &none);
    st->foreground_with = bsst_latency_info(d ? &d->with : &none);
    return st;
}
