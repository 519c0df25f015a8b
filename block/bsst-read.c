/*
 * bsst block driver: reads and block status
 *
 * A read is planned block by block: from the slot if the block is indirected,
 * else from the image.  What comes from the store, and what goes into a whole
 * page that is swapped out, is read into private memory; at the end the pages
 * are installed, so that their old content is never brought in.
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
#include "qemu/timer.h"
#include "trace.h"

/* Requests of up to this many blocks need no memory for their plan. */
#define BSST_STACK_BLOCKS 256

/* What is known of one block that a read touches, perhaps in part. */
typedef struct BsstReadBlock {
    BsstSlot slot;              /* where it is, or NONE: in the image */
    void *page;                 /* the absent page it goes to, or NULL */
    uint8_t *bounce;            /* private memory for the block, or NULL */
} BsstReadBlock;

typedef struct BsstRead {
    BlockDriverState *bs;
    BsstPager *pager;           /* a reference, or NULL */
    int64_t offset;
    int64_t bytes;
    QEMUIOVector *qiov;
    size_t qiov_offset;
    BdrvRequestFlags flags;

    /* Block first + i is block[i] */
    uint64_t first;
    unsigned n;
    BsstReadBlock *block;

    unsigned slots;
    unsigned absent;
    uint8_t *buf;               /* of all bounce */
} BsstRead;

void bsst_qiov_pages(QEMUIOVector *qiov, size_t qiov_offset, void **page,
                     unsigned n)
{
    const struct iovec *iov = qiov->iov;
    const struct iovec *end = qiov->iov + qiov->niov;
    size_t pos = qiov_offset;   /* in *iov */
    unsigned i = 0, whole;

    while (i < n) {
        uint8_t *base;

        while (iov < end && pos >= iov->iov_len) {
            pos -= iov->iov_len;
            iov++;
        }
        assert(iov < end);
        base = (uint8_t *)iov->iov_base + pos;
        whole = MIN(n - i, (iov->iov_len - pos) / BSST_PAGE_SIZE);
        if (!whole || !QEMU_PTR_IS_ALIGNED(base, BSST_PAGE_SIZE)) {
            page[i++] = NULL;
            pos += BSST_PAGE_SIZE;
            continue;
        }
        pos += (size_t)whole * BSST_PAGE_SIZE;
        for (; whole; whole--, base += BSST_PAGE_SIZE) {
            page[i++] = base;
        }
    }
}

/* The part of block @i that is read: its offset on disk and its length. */
static int64_t bsst_read_clip(const BsstRead *r, unsigned i, int64_t *bytes)
{
    int64_t start = bsst_block_offset(r->first + i);
    int64_t end = MIN(start + BSST_PAGE_SIZE, r->offset + r->bytes);

    start = MAX(start, r->offset);
    *bytes = end - start;
    return start;
}

static size_t bsst_read_qiov_offset(const BsstRead *r, int64_t offset)
{
    return r->qiov_offset + (offset - r->offset);
}

/* Call @fn, which takes or drops references, with all slots. */
static void bsst_read_foreach_slot(BsstRead *r,
                                   void (*fn)(BsstStore *, const BsstSlot *,
                                              unsigned))
{
    BDRVBsstState *s = r->bs->opaque;
    BsstSlot slot[64];
    unsigned i, k = 0;

    for (i = 0; i < r->n; i++) {
        if (r->block[i].slot != BSST_SLOT_NONE) {
            slot[k++] = r->block[i].slot;
        }
        if (k == ARRAY_SIZE(slot) || (k && i == r->n - 1)) {
            fn(s->store, slot, k);
            k = 0;
        }
    }
}

/* Find the slots, and take a reference of each. */
static void coroutine_fn bsst_read_find_slots(BsstRead *r)
{
    BDRVBsstState *s = r->bs->opaque;
    bool mapped;
    unsigned i;

    if (!qatomic_read(&s->map_count)) {
        return;
    }
    QEMU_LOCK_GUARD(&s->image->lock);
    if (indirect_map_extent(bsst_map(s), r->first, r->n, &mapped) == r->n &&
        !mapped) {
        return;
    }
    for (i = 0; i < r->n; i++) {
        r->block[i].slot = indirect_map_lookup(bsst_map(s), r->first + i);
        r->slots += r->block[i].slot != BSST_SLOT_NONE;
    }
    bsst_read_foreach_slot(r, bsst_slot_ref);
}

/* Ask about @n pages behind the blocks from @i on; NULL is no page. */
static void bsst_read_ask_absent(BsstRead *r, unsigned i, void *const *page,
                                 unsigned n)
{
    bool absent[64];
    unsigned k, end;

    for (k = 0; k < n; k = end + 1) {
        unsigned j;

        end = k;
        while (end < n && page[end]) {
            end++;
        }
        if (end == k) {
            continue;
        }
        r->pager->ops->absent(r->pager, page + k, absent, end - k);
        for (j = k; j < end; j++) {
            if (absent[j - k]) {
                r->block[i + j].page = page[j];
                r->absent++;
            }
        }
    }
}

/* Find whole pages that are absent. */
static void bsst_read_find_absent(BsstRead *r)
{
    uint64_t first = bsst_block_up(r->offset);
    uint64_t end = bsst_block_down(r->offset + r->bytes);

    if (!r->pager) {
        return;
    }
    while (first < end) {
        void *page[64];
        unsigned n = MIN(end - first, ARRAY_SIZE(page));
        int64_t offset = bsst_block_offset(first);

        bsst_qiov_pages(r->qiov, bsst_read_qiov_offset(r, offset), page, n);
        bsst_read_ask_absent(r, first - r->first, page, n);
        first += n;
    }
}

/* Give private memory to all blocks that must not be read into the guest's. */
static int bsst_read_bounce(BsstRead *r)
{
    BDRVBsstState *s = r->bs->opaque;
    /* Splitting the guest's memory may make more pieces than the host takes */
    bool all = r->qiov->niov + 2 * r->absent > IOV_MAX;
    uint8_t *next;
    unsigned i;

    r->buf = bsst_store_buffer(s->store, (size_t)BSST_PAGE_SIZE *
                               (all ? r->n : r->slots + r->absent));
    if (!r->buf) {
        return -ENOMEM;
    }
    next = r->buf;
    for (i = 0; i < r->n; i++) {
        BsstReadBlock *b = &r->block[i];

        if (all || b->slot != BSST_SLOT_NONE || b->page) {
            b->bounce = next;
            next += BSST_PAGE_SIZE;
        }
    }
    return 0;
}

/* Read blocks [i, i + n) from the image, those with bounce into that. */
static int coroutine_fn GRAPH_RDLOCK
bsst_read_image(BsstRead *r, unsigned i, unsigned n)
{
    QEMUIOVector qiov;
    int64_t bytes, total = 0;
    int64_t offset = bsst_read_clip(r, i, &bytes);
    unsigned k;
    int ret;

    qemu_iovec_init(&qiov, n + 1);
    for (k = i; k < i + n; k++) {
        int64_t pos = bsst_read_clip(r, k, &bytes);
        uint8_t *bounce = r->block[k].bounce;

        if (bounce) {
            qemu_iovec_add(&qiov, bounce + (pos & (BSST_PAGE_SIZE - 1)),
                           bytes);
        } else {
            qemu_iovec_concat(&qiov, r->qiov, bsst_read_qiov_offset(r, pos),
                              bytes);
        }
        total += bytes;
    }
    ret = bdrv_co_preadv(r->bs->file, offset, total, &qiov,
                         r->flags & ~BDRV_REQ_REGISTERED_BUF);
    qemu_iovec_destroy(&qiov);
    return ret;
}

typedef struct BsstReadTask {
    AioTask task;
    BsstRead *r;
    unsigned i;
    unsigned n;
} BsstReadTask;

/* Its creator holds the graph lock until all tasks have ended. */
static int coroutine_fn GRAPH_RDLOCK bsst_read_task(AioTask *task)
{
    BsstReadTask *t = container_of(task, BsstReadTask, task);
    BDRVBsstState *s = t->r->bs->opaque;
    BsstReadBlock *b = &t->r->block[t->i];

    if (b->slot == BSST_SLOT_NONE) {
        return bsst_read_image(t->r, t->i, t->n);
    }
    return bsst_store_co_read_retry(s->store, b->slot, t->n, b->bounce);
}

/* How many blocks from @i on can be read in one go. */
static unsigned bsst_read_run(const BsstRead *r, unsigned i)
{
    BsstSlot slot = r->block[i].slot;
    unsigned end = i + 1;

    while (end < r->n) {
        BsstSlot want = slot == BSST_SLOT_NONE ? slot : slot + (end - i);

        if (r->block[end].slot != want) {
            break;
        }
        end++;
    }
    return end - i;
}

static int coroutine_fn GRAPH_RDLOCK bsst_read_parts(BsstRead *r)
{
    BDRVBsstState *s = r->bs->opaque;
    AioTaskPool *pool = aio_task_pool_new(BSST_PARALLEL);
    unsigned i, n, parts = 0;
    int ret;

    for (i = 0; i < r->n && aio_task_pool_status(pool) == 0; i += n) {
        BsstReadTask *t = g_new(BsstReadTask, 1);

        n = bsst_read_run(r, i);
        parts++;
        *t = (BsstReadTask) {
            .task.func = bsst_read_task,
            .r = r,
            .i = i,
            .n = n,
        };
        aio_task_pool_start_task(pool, &t->task);
    }
    aio_task_pool_wait_all(pool);
    ret = aio_task_pool_status(pool);
    aio_task_pool_free(pool);
    if (qatomic_read(&s->plan)) {
        bsst_observe_read(s, r->offset, r->bytes, parts);
    }
    return ret;
}

/* All parts have arrived: from private memory to where they belong. */
static void bsst_read_deliver(BsstRead *r)
{
    BDRVBsstState *s = r->bs->opaque;
    unsigned i;

    for (i = 0; i < r->n; i++) {
        BsstReadBlock *b = &r->block[i];
        int64_t bytes, offset = bsst_read_clip(r, i, &bytes);

        if (!b->bounce) {
            continue;
        }
        if (b->page && r->pager->ops->install(r->pager, b->page, b->bounce)) {
            stat64_add(&s->installed_pages, 1);
            continue;
        }
        qemu_iovec_from_buf(r->qiov, bsst_read_qiov_offset(r, offset),
                            b->bounce + (offset & (BSST_PAGE_SIZE - 1)),
                            bytes);
    }
}

static void bsst_read_account(BsstRead *r)
{
    BDRVBsstState *s = r->bs->opaque;

    if (r->slots == r->n) {
        stat64_add(&s->store_reads, 1);
    } else if (r->slots) {
        stat64_add(&s->split_reads, 1);
    }
}

static int coroutine_fn GRAPH_RDLOCK bsst_read_planned(BsstRead *r,
                                                       int64_t start_ns)
{
    BDRVBsstState *s = r->bs->opaque;
    int64_t arrived_ns;
    int ret;

    trace_bsst_read(r->bs, r->offset, r->bytes, r->slots, r->absent);
    bsst_read_account(r);
    ret = bsst_read_bounce(r);
    if (ret < 0) {
        return ret;
    }
    bsst_latency_add(&s->read_prepare, get_clock() - start_ns);
    ret = bsst_read_parts(r);
    arrived_ns = get_clock();
    if (ret >= 0) {
        if (r->absent) {
            r->pager->ops->co_admit(r->pager);
        }
        bsst_read_deliver(r);
    }
    qemu_vfree(r->buf);
    bsst_latency_add(&s->read_completion, get_clock() - arrived_ns);
    trace_bsst_read_done(r->bs, r->offset, r->bytes, ret);
    return ret;
}

static int coroutine_fn GRAPH_RDLOCK
bsst_co_preadv_plan(BlockDriverState *bs, BsstPager *pager, int64_t offset,
                    int64_t bytes, QEMUIOVector *qiov, size_t qiov_offset,
                    BdrvRequestFlags flags)
{
    BsstReadBlock stack_block[BSST_STACK_BLOCKS];
    g_autofree BsstReadBlock *heap_block = NULL;
    uint64_t first = bsst_block_down(offset);
    int64_t start_ns = get_clock();
    BsstRead r = {
        .bs = bs,
        .pager = pager,
        .offset = offset,
        .bytes = bytes,
        .qiov = qiov,
        .qiov_offset = qiov_offset,
        .flags = flags,
        .first = first,
        .n = bsst_block_up(offset + bytes) - first,
        .block = stack_block,
    };
    unsigned i;
    int ret;

    if (r.n > BSST_STACK_BLOCKS) {
        r.block = heap_block = g_new(BsstReadBlock, r.n);
    }
    for (i = 0; i < r.n; i++) {
        r.block[i] = (BsstReadBlock) { .slot = BSST_SLOT_NONE };
    }

    bsst_read_find_slots(&r);
    bsst_read_find_absent(&r);
    if (!r.slots && !r.absent) {
        return bdrv_co_preadv_part(bs->file, offset, bytes, qiov, qiov_offset,
                                   flags);
    }
    ret = bsst_read_planned(&r, start_ns);
    bsst_read_foreach_slot(&r, bsst_slot_unref);
    return ret;
}

static int coroutine_fn GRAPH_RDLOCK
bsst_co_preadv_any(BlockDriverState *bs, int64_t offset, int64_t bytes,
                   QEMUIOVector *qiov, size_t qiov_offset,
                   BdrvRequestFlags flags)
{
    BDRVBsstState *s = bs->opaque;
    BsstPager *pager = bsst_store_get_pager(s->store);
    int ret;

    if (!pager && !qatomic_read(&s->map_count)) {
        return bdrv_co_preadv_part(bs->file, offset, bytes, qiov, qiov_offset,
                                   flags);
    }
    ret = bsst_co_preadv_plan(bs, pager, offset, bytes, qiov, qiov_offset,
                              flags);
    if (pager) {
        bsst_pager_unref(pager);
    }
    return ret;
}

int coroutine_fn GRAPH_RDLOCK
bsst_co_preadv_part(BlockDriverState *bs, int64_t offset, int64_t bytes,
                    QEMUIOVector *qiov, size_t qiov_offset,
                    BdrvRequestFlags flags)
{
    BDRVBsstState *s = bs->opaque;
    DefragLoadReq req;
    int ret;

    if (!qatomic_read(&s->measure)) {
        return bsst_co_preadv_any(bs, offset, bytes, qiov, qiov_offset, flags);
    }
    bsst_load_begin(s, &req);
    ret = bsst_co_preadv_any(bs, offset, bytes, qiov, qiov_offset, flags);
    bsst_load_end(s, &req, ret);
    return ret;
}

/*
 * How much of [offset, offset + bytes) is alike; *mapped tells whether it is
 * indirected.
 */
static int64_t coroutine_fn bsst_status_extent(BDRVBsstState *s,
                                               int64_t offset, int64_t bytes,
                                               bool *mapped)
{
    uint64_t first = bsst_block_down(offset);
    uint64_t n = bsst_block_up(offset + bytes) - first;

    QEMU_LOCK_GUARD(&s->image->lock);
    n = indirect_map_extent(bsst_map(s), first, n, mapped);
    return MIN(bytes, bsst_block_offset(first + n) - offset);
}

/*
 * Not simply BDRV_BLOCK_RAW for what is not indirected: an image with a
 * backing file says "unallocated" of what is in there, and our parents, for
 * whom we are the end of the chain, would take that for nothing at all.  So
 * ask for the whole chain.
 */
int coroutine_fn GRAPH_RDLOCK
bsst_co_block_status(BlockDriverState *bs, bool want_zero, int64_t offset,
                     int64_t bytes, int64_t *pnum, int64_t *map,
                     BlockDriverState **file)
{
    const int keep = BDRV_BLOCK_DATA | BDRV_BLOCK_ZERO |
                     BDRV_BLOCK_OFFSET_VALID | BDRV_BLOCK_COMPRESSED;
    bool mapped;
    int ret;

    bytes = bsst_status_extent(bs->opaque, offset, bytes, &mapped);
    if (mapped) {
        *pnum = bytes;
        return BDRV_BLOCK_DATA;
    }
    ret = bdrv_co_block_status_above(bs->file->bs, NULL, offset, bytes, pnum,
                                     map, file);
    if (ret < 0) {
        return ret;
    }
    if (!*pnum) {
        /* Beyond the image's end, because of rounding: reads as zeroes */
        *pnum = bytes;
        return BDRV_BLOCK_ZERO;
    }
    ret &= keep;
    return ret & (BDRV_BLOCK_DATA | BDRV_BLOCK_ZERO) ? ret
                                                     : ret | BDRV_BLOCK_DATA;
}
