/*
 * bsst block driver: reads and block status
 *
 * A read is planned block by block: from the slot if the block is indirected,
 * else from the image.  What comes from the store, and what goes into a whole
 * page that is swapped out, is read into private memory; at the end the pages
 * are installed, so that their old content is never brought in.
 *
 * Then blocks are joined to as few requests as possible, as a request costs
 * more than the blocks in it, and a seek far more:
 *
 *   store   slots in a row are one request, whatever blocks they belong to and
 *           in which order.  Slots that nobody asked for are never read: they
 *           may be changing, and would fail their checksums.
 *   image   blocks are one request even if up to BSST_READ_OVER indirected ones
 *           are between two of them.  What the image has of those is outdated:
 *           it is read to where the block belongs, which it gets from the store
 *           at the end.  If such a request fails the pieces are read one by
 *           one, as what nobody needs may have been at fault.
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
/*
 * A request of the image may read over so many indirected blocks.  64 KiB take
 * some 30 us from a fast disk, about what a request costs on its way through
 * format, thread and kernel; a disk that turns lets them pass by anyway.
 */
#define BSST_READ_OVER 16

/* What is known of one block that a read touches, perhaps in part. */
typedef struct BsstReadBlock {
    BsstSlot slot;              /* where it is, or NONE: in the image */
    void *page;                 /* the absent page it goes to, or NULL */
    uint8_t *bounce;            /* private memory for the block, or NULL */
    /* For what the image has of an indirected one; NULL: as if it were not */
    uint8_t *outdated;
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
    unsigned *by_slot;          /* @slots indices: the indirected, by slot */
    uint8_t *buf;               /* of all bounce and outdated */
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

static int compare_slots(const void *a, const void *b, void *opaque)
{
    const BsstReadBlock *block = opaque;
    BsstSlot x = block[*(const unsigned *)a].slot;
    BsstSlot y = block[*(const unsigned *)b].slot;

    return (x > y) - (x < y);
}

/* The indirected blocks in the order of their slots */
static void bsst_read_sort(BsstRead *r)
{
    unsigned i, k = 0;

    r->by_slot = g_new(unsigned, r->slots);
    for (i = 0; i < r->n; i++) {
        if (r->block[i].slot != BSST_SLOT_NONE) {
            r->by_slot[k++] = i;
        }
    }
    g_qsort_with_data(r->by_slot, k, sizeof(*r->by_slot), compare_slots,
                      r->block);
}

/*
 * Give private memory to all blocks that must not be read into the guest's;
 * that of slots in a row is in a row.
 */
static int bsst_read_bounce(BsstRead *r)
{
    BDRVBsstState *s = r->bs->opaque;
    /* Splitting the guest's memory may make more pieces than the host takes */
    bool all = r->qiov->niov + 2 * r->absent > IOV_MAX;
    uint8_t *next;
    unsigned i;

    r->buf = bsst_store_buffer(s->store, (size_t)BSST_PAGE_SIZE *
                               (all ? r->n + r->slots
                                    : r->slots + 2 * r->absent));
    if (!r->buf) {
        return -ENOMEM;
    }
    bsst_read_sort(r);
    next = r->buf;
    for (i = 0; i < r->slots; i++) {
        r->block[r->by_slot[i]].bounce = next;
        next += BSST_PAGE_SIZE;
    }
    for (i = 0; i < r->n; i++) {
        BsstReadBlock *b = &r->block[i];

        if (all || b->page) {
            *(b->bounce ? &b->outdated : &b->bounce) = next;
            next += BSST_PAGE_SIZE;
        }
    }
    return 0;
}

/* Parts */

/* Where block @i goes when it is read from the image; NULL: to the guest */
static uint8_t *bsst_read_image_place(const BsstRead *r, unsigned i)
{
    const BsstReadBlock *b = &r->block[i];

    return b->slot == BSST_SLOT_NONE ? b->bounce : b->outdated;
}

/* How many of @n blocks from @i on go to one piece of memory, or to the guest? */
static unsigned bsst_read_stretch(const BsstRead *r, unsigned i, unsigned n)
{
    uint8_t *first = bsst_read_image_place(r, i);
    unsigned k;

    for (k = 1; k < n; k++) {
        if (bsst_read_image_place(r, i + k) !=
            (first ? first + (size_t)k * BSST_PAGE_SIZE : NULL)) {
            break;
        }
    }
    return k;
}

/* Read blocks [i, i + n) from the image, those that are indirected, too. */
static int coroutine_fn GRAPH_RDLOCK
bsst_read_image(BsstRead *r, unsigned i, unsigned n)
{
    QEMUIOVector qiov;
    int64_t bytes, offset = bsst_read_clip(r, i, &bytes);
    int64_t last = bsst_read_clip(r, i + n - 1, &bytes), end = last + bytes;
    unsigned k, stretch;
    int ret;

    qemu_iovec_init(&qiov, 4);
    for (k = i; k < i + n; k += stretch) {
        uint8_t *place = bsst_read_image_place(r, k);
        int64_t pos = bsst_read_clip(r, k, &bytes), next;

        stretch = bsst_read_stretch(r, k, i + n - k);
        next = MIN(bsst_block_offset(r->first + k + stretch), end);
        if (place) {
            qemu_iovec_add(&qiov, place + (pos & (BSST_PAGE_SIZE - 1)),
                           next - pos);
        } else {
            qemu_iovec_concat(&qiov, r->qiov, bsst_read_qiov_offset(r, pos),
                              next - pos);
        }
    }
    ret = bdrv_co_preadv(r->bs->file, offset, end - offset, &qiov,
                         r->flags & ~BDRV_REQ_REGISTERED_BUF);
    qemu_iovec_destroy(&qiov);
    return ret;
}

/* How many blocks from @i on are in the image */
static unsigned bsst_read_image_run(const BsstRead *r, unsigned i)
{
    unsigned end = i;

    while (end < r->n && r->block[end].slot == BSST_SLOT_NONE) {
        end++;
    }
    return end - i;
}

/* How many from @i on, which is in the image, are read from there in one go? */
static unsigned bsst_read_image_join(const BsstRead *r, unsigned i)
{
    unsigned end = i + bsst_read_image_run(r, i), next = end;

    while (next < r->n && next - end <= BSST_READ_OVER) {
        if (r->block[next].slot == BSST_SLOT_NONE) {
            next = end = next + bsst_read_image_run(r, next);
        } else {
            next++;
        }
    }
    return end - i;
}

/* The same blocks, without what lies between them */
static int coroutine_fn GRAPH_RDLOCK
bsst_read_image_pieces(BsstRead *r, unsigned i, unsigned n)
{
    unsigned end = i + n, run;
    int ret = 0;

    for (; i < end && ret >= 0; i += MAX(run, 1)) {
        run = bsst_read_image_run(r, i);
        if (run) {
            ret = bsst_read_image(r, i, run);
        }
    }
    return ret;
}

typedef struct BsstReadTask {
    AioTask task;
    BsstRead *r;
    unsigned i;                 /* of the image: from this block on; else ... */
    unsigned n;
    bool store;                 /* ... from by_slot[i] on */
} BsstReadTask;

/* Its creator holds the graph lock until all tasks have ended. */
static int coroutine_fn GRAPH_RDLOCK bsst_read_task(AioTask *task)
{
    BsstReadTask *t = container_of(task, BsstReadTask, task);
    BDRVBsstState *s = t->r->bs->opaque;
    int ret;

    if (t->store) {
        BsstReadBlock *b = &t->r->block[t->r->by_slot[t->i]];

        return bsst_store_co_read_retry(s->store, b->slot, t->n, b->bounce);
    }
    ret = bsst_read_image(t->r, t->i, t->n);
    if (ret < 0 && bsst_read_image_run(t->r, t->i) < t->n) {
        ret = bsst_read_image_pieces(t->r, t->i, t->n);
    }
    return ret;
}

static void coroutine_fn bsst_read_start(AioTaskPool *pool, BsstRead *r,
                                         unsigned i, unsigned n, bool store)
{
    BsstReadTask *t = g_new(BsstReadTask, 1);

    *t = (BsstReadTask) {
        .task.func = bsst_read_task,
        .r = r,
        .i = i,
        .n = n,
        .store = store,
    };
    aio_task_pool_start_task(pool, &t->task);
}

/* How many of by_slot[] from @i on are in a row */
static unsigned bsst_read_store_run(const BsstRead *r, unsigned i)
{
    BsstSlot slot = r->block[r->by_slot[i]].slot;
    unsigned n = 1;

    while (i + n < r->slots && r->block[r->by_slot[i + n]].slot == slot + n) {
        n++;
    }
    return n;
}

static int coroutine_fn GRAPH_RDLOCK bsst_read_parts(BsstRead *r)
{
    BDRVBsstState *s = r->bs->opaque;
    AioTaskPool *pool = aio_task_pool_new(BSST_PARALLEL);
    unsigned i, n, parts = 0;
    int ret;

    for (i = 0; i < r->n && aio_task_pool_status(pool) == 0; i += n) {
        n = 1;
        if (r->block[i].slot == BSST_SLOT_NONE) {
            n = bsst_read_image_join(r, i);
            bsst_read_start(pool, r, i, n, false);
            parts++;
        }
    }
    for (i = 0; i < r->slots && aio_task_pool_status(pool) == 0; i += n) {
        n = bsst_read_store_run(r, i);
        bsst_read_start(pool, r, i, n, true);
        parts++;
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
    g_free(r->by_slot);
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
