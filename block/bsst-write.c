/*
 * bsst block driver: requests that modify the disk
 *
 * A write is planned block by block: what is in memory goes to the image from
 * there; what the swapper still has in a buffer goes from the buffer; and for
 * a page that is swapped out nothing is moved at all: when everything else has
 * been written, the block is indirected to the page's slot.
 *
 * With the swapper's property tesseract=off nothing is intercepted: absent
 * pages are brought in one by one first, as a kernel would do it.  That is the
 * baseline for measurements.
 *
 * This work is licensed under the terms of the GNU GPL, version 2 or later.
 * See the COPYING file in the top-level directory.
 */

#include "qemu/osdep.h"
#include "block/aio_task.h"
#include "block/block_int.h"
#include "bsst-int.h"
#include "qapi/error.h"
#include "qemu/memalign.h"
#include "qemu/timer.h"
#include "trace.h"

/* Requests of up to this many blocks need no memory allocation. */
#define BSST_STACK_BLOCKS 256

static const uint8_t zero_page[BSST_PAGE_SIZE]
    QEMU_ALIGNED(BSST_PAGE_SIZE);

/* One write request.  "Whole blocks" are those that it covers completely. */
typedef struct BsstWrite {
    BlockDriverState *bs;
    BsstPager *pager;           /* a reference, or NULL */
    int64_t offset;
    int64_t bytes;
    QEMUIOVector *qiov;
    size_t qiov_offset;
    BdrvRequestFlags flags;
    int64_t start_ns;

    /*
     * Of whole block first + i: its page or NULL; where its data are; and the
     * slot that the map will name for it or NONE.  If all are in slots, nobody
     * looks at the claims.
     */
    uint64_t first;
    unsigned n;
    void **page;
    BsstPageClaim *claim;
    BsstSlot *slot;

    /* How many of the claims are of these kinds */
    unsigned slots;
    unsigned buffers;
    unsigned zeroes;
    unsigned clean;             /* of the slots: the page is there, too */
    unsigned loaded;            /* absent, but brought in */

    unsigned reserved;          /* entries that the journal expects */
} BsstWrite;

static bool bsst_write_is_slot(const BsstWrite *w, uint64_t block)
{
    return block >= w->first && block - w->first < w->n &&
           w->slot[block - w->first] != BSST_SLOT_NONE;
}

/* The part of the request's memory that is written to @offset. */
static size_t bsst_write_qiov_offset(const BsstWrite *w, int64_t offset)
{
    return w->qiov_offset + (offset - w->offset);
}

/* The baseline: touch absent pages in order; each waits for the swapper. */
static void bsst_write_load(BsstWrite *w)
{
    bool absent[64];
    unsigned i, k;

    for (i = 0; i < w->n; i += k) {
        unsigned batch = MIN(w->n - i, ARRAY_SIZE(absent));

        w->pager->ops->absent(w->pager, w->page + i, absent, batch);
        for (k = 0; k < batch; k++) {
            if (absent[k]) {
                (void)qatomic_read((uint8_t *)w->page[i + k]);
                w->loaded++;
            }
        }
    }
    trace_bsst_baseline_load(w->bs, w->offset, w->bytes, w->loaded);
}

static void bsst_write_count(BsstWrite *w)
{
    unsigned i;

    for (i = 0; i < w->n; i++) {
        BsstPageKind kind = w->claim[i].kind;

        w->slot[i] = kind == BSST_PAGE_SLOT ? w->claim[i].slot
                                            : BSST_SLOT_NONE;
        w->slots += kind == BSST_PAGE_SLOT;
        w->clean += kind == BSST_PAGE_SLOT && w->claim[i].bound;
        w->buffers += kind == BSST_PAGE_BUFFER;
        w->zeroes += kind == BSST_PAGE_ZERO;
    }
}

/*
 * For tests: does a block whose data are at @qiov_offset go to the store?  The
 * data have a say, so that a block goes either way when it is written again.
 */
static bool bsst_test_chosen(const BDRVBsstState *s, uint64_t block,
                             QEMUIOVector *qiov, size_t qiov_offset)
{
    uint8_t byte;

    qemu_iovec_to_buf(qiov, qiov_offset, &byte, 1);
    return !((block * 257 + byte + s->test_seed) * 0x9e3779b97f4a7c15ULL >> 63);
}

static bool bsst_test_wants(const BDRVBsstState *s, int64_t offset,
                            int64_t bytes, QEMUIOVector *qiov,
                            size_t qiov_offset)
{
    uint64_t end = bsst_block_down(offset + bytes);
    uint64_t block;

    for (block = bsst_block_up(offset); s->test_seed && block < end; block++) {
        if (bsst_test_chosen(s, block, qiov, qiov_offset +
                             (bsst_block_offset(block) - offset))) {
            return true;
        }
    }
    return false;
}

/*
 * For tests without a swapper: put a pseudo-random half of the whole blocks
 * into the store, as if their pages had been swapped out.
 */
static int coroutine_fn bsst_write_test_indirect(BsstWrite *w)
{
    BDRVBsstState *s = w->bs->opaque;
    void *buf = NULL;
    int ret = 0;
    unsigned i;

    for (i = 0; i < w->n && ret == 0; i++) {
        int64_t offset = bsst_block_offset(w->first + i);
        size_t qiov_offset = bsst_write_qiov_offset(w, offset);
        BsstPageClaim *claim = &w->claim[i];

        if (!bsst_test_chosen(s, w->first + i, w->qiov, qiov_offset) ||
            !bsst_slot_alloc(s->store, 1, &claim->slot)) {
            continue;
        }
        claim->kind = BSST_PAGE_SLOT;
        buf = buf ?: bsst_store_buffer(s->store, BSST_PAGE_SIZE);
        if (!buf) {
            ret = -ENOMEM;
            break;
        }
        qemu_iovec_to_buf(w->qiov, qiov_offset, buf, BSST_PAGE_SIZE);
        ret = bsst_store_co_write(s->store, claim->slot, 1, buf);
    }
    qemu_vfree(buf);
    return ret;
}

/* Give the claimed slots back; the pages are written from memory instead. */
static void bsst_write_drop_slots(BsstWrite *w)
{
    BDRVBsstState *s = w->bs->opaque;
    unsigned i;

    for (i = 0; i < w->n; i++) {
        if (w->slot[i] != BSST_SLOT_NONE) {
            bsst_slot_unref(s->store, &w->slot[i], 1);
            w->claim[i].kind = BSST_PAGE_PRESENT;
            w->slot[i] = BSST_SLOT_NONE;
        }
    }
    w->slots = w->clean = 0;
}

/* Find out for each whole block where its data are. */
static void coroutine_fn bsst_write_claim(BsstWrite *w)
{
    BDRVBsstState *s = w->bs->opaque;
    size_t qiov_offset = bsst_write_qiov_offset(w, bsst_block_offset(w->first));
    BsstPager *pager = w->pager;
    bool tesseract = pager && qatomic_read(&pager->tesseract);
    unsigned i;
    int ret = 0;

    if (pager) {
        bsst_qiov_pages(w->qiov, qiov_offset, w->page, w->n);
    }
    if (tesseract && pager->ops->claim_slots(pager, w->page, w->slot, w->n)) {
        w->slots = w->n;
        return;
    }
    if (tesseract) {
        pager->ops->claim(pager, w->page, w->claim, w->n);
    } else {
        for (i = 0; i < w->n; i++) {
            w->claim[i] = (BsstPageClaim) { .kind = BSST_PAGE_PRESENT };
        }
        if (pager) {
            bsst_write_load(w);
        } else if (s->test_seed) {
            ret = bsst_write_test_indirect(w);
        }
    }
    bsst_write_count(w);
    if (ret < 0) {
        bsst_write_drop_slots(w);
    }
}

/* May the claimed slots become indirections (B6)? */
static bool coroutine_fn GRAPH_RDLOCK bsst_write_reserve(BsstWrite *w)
{
    BDRVBsstState *s = w->bs->opaque;
    BsstJournal *j = bsst_store_journal(s->store);

    if (qatomic_read(&s->draining) || qatomic_read(&s->held) ||
        !bsst_journal_reserve(j, w->slots)) {
        return false;
    }
    if (!bsst_is_attached(s) && bsst_co_attach(w->bs) < 0) {
        bsst_journal_unreserve(j, w->slots);
        return false;
    }
    w->reserved = w->slots;
    return true;
}

/*
 * Where are the data?  Afterwards we own a reference of each slot that the map
 * will name, and there are none unless the image is guarded (B6) and the journal
 * has room for them.
 */
static void coroutine_fn GRAPH_RDLOCK bsst_write_plan(BsstWrite *w)
{
    bsst_write_claim(w);
    if (w->slots && !bsst_write_reserve(w)) {
        w->loaded = w->slots - w->clean;
        bsst_write_drop_slots(w);
    }
    trace_bsst_write(w->bs, w->offset, w->bytes, w->slots, w->buffers,
                     w->zeroes);
}

/* Append what is written to [offset, offset + bytes) to @qiov. */
static void bsst_write_compose(BsstWrite *w, QEMUIOVector *qiov,
                               int64_t offset, int64_t bytes)
{
    int64_t end = offset + bytes;

    while (offset < end) {
        uint64_t block = bsst_block_down(offset);
        int64_t next = MIN(bsst_block_offset(block + 1), end);
        const BsstPageClaim *claim = NULL;

        if (block >= w->first && block - w->first < w->n) {
            claim = &w->claim[block - w->first];
        }
        if (claim && claim->kind == BSST_PAGE_BUFFER) {
            qemu_iovec_add(qiov, (void *)claim->buf, next - offset);
        } else if (claim && claim->kind == BSST_PAGE_ZERO) {
            qemu_iovec_add(qiov, (void *)zero_page, next - offset);
        } else {
            qemu_iovec_concat(qiov, w->qiov, bsst_write_qiov_offset(w, offset),
                              next - offset);
        }
        offset = next;
    }
}

/* Composing split the memory into more pieces than the host takes: copy it. */
static int bsst_write_linearize(BlockDriverState *bs, QEMUIOVector *qiov,
                                void **buf)
{
    size_t bytes = qiov->size;

    *buf = qemu_try_blockalign(bs->file->bs, bytes);
    if (!*buf) {
        return -ENOMEM;
    }
    qemu_iovec_to_buf(qiov, 0, *buf, bytes);
    qemu_iovec_reset(qiov);
    qemu_iovec_add(qiov, *buf, bytes);
    return 0;
}

/* Write [offset, offset + bytes), which has no SLOT block, to the image. */
static int coroutine_fn GRAPH_RDLOCK
bsst_write_run(BsstWrite *w, int64_t offset, int64_t bytes)
{
    QEMUIOVector qiov;
    int ret;

    void *buf = NULL;

    if (!w->buffers && !w->zeroes) {
        return bdrv_co_pwritev_part(w->bs->file, offset, bytes, w->qiov,
                                    bsst_write_qiov_offset(w, offset),
                                    w->flags);
    }

    qemu_iovec_init(&qiov, bsst_block_up(bytes) + 1);
    bsst_write_compose(w, &qiov, offset, bytes);
    if (qiov.niov > IOV_MAX) {
        ret = bsst_write_linearize(w->bs, &qiov, &buf);
        if (ret < 0) {
            goto out;
        }
    }
    ret = bdrv_co_pwritev(w->bs->file, offset, bytes, &qiov,
                          w->flags & ~BDRV_REQ_REGISTERED_BUF);
out:
    qemu_vfree(buf);
    qemu_iovec_destroy(&qiov);
    return ret;
}

typedef struct BsstWriteTask {
    AioTask task;
    BsstWrite *w;
    int64_t offset;
    int64_t bytes;
} BsstWriteTask;

/* Its creator holds the graph lock until all tasks have ended. */
static int coroutine_fn GRAPH_RDLOCK bsst_write_task(AioTask *task)
{
    BsstWriteTask *t = container_of(task, BsstWriteTask, task);

    return bsst_write_run(t->w, t->offset, t->bytes);
}

/* Find the next run of blocks that are no SLOT; false if there is none. */
static bool bsst_write_next_run(BsstWrite *w, int64_t *offset, int64_t *bytes)
{
    int64_t end = w->offset + w->bytes;
    int64_t pos = *offset;

    while (pos < end && bsst_write_is_slot(w, bsst_block_down(pos))) {
        pos = bsst_block_offset(bsst_block_down(pos) + 1);
    }
    *offset = pos;
    while (pos < end && !bsst_write_is_slot(w, bsst_block_down(pos))) {
        pos = MIN(bsst_block_offset(bsst_block_down(pos) + 1), end);
    }
    *bytes = pos - *offset;
    return *bytes > 0;
}

/* Write everything that is not a SLOT. */
static int coroutine_fn GRAPH_RDLOCK bsst_write_image(BsstWrite *w)
{
    int64_t offset = w->offset, bytes;
    AioTaskPool *pool;
    int ret;

    if (!w->slots) {
        return bsst_write_run(w, w->offset, w->bytes);
    }
    if (w->slots == w->n && w->bytes == (int64_t)w->n * BSST_PAGE_SIZE) {
        return 0;
    }

    pool = aio_task_pool_new(BSST_PARALLEL);
    while (aio_task_pool_status(pool) == 0 &&
           bsst_write_next_run(w, &offset, &bytes)) {
        BsstWriteTask *t = g_new(BsstWriteTask, 1);

        *t = (BsstWriteTask) {
            .task.func = bsst_write_task,
            .w = w,
            .offset = offset,
            .bytes = bytes,
        };
        aio_task_pool_start_task(pool, &t->task);
        offset += bytes;
    }
    aio_task_pool_wait_all(pool);
    ret = aio_task_pool_status(pool);
    aio_task_pool_free(pool);
    return ret;
}

/* B3: all parts have been written.  The map takes over the slots. */
static void coroutine_fn bsst_write_commit(BsstWrite *w)
{
    BDRVBsstState *s = w->bs->opaque;

    if (w->slots || qatomic_read(&s->map_count)) {
        bsst_map_update(w->bs, w->first, w->slot, w->n, w->slots);
    }
}

/* Tell the swapper which swapped-out pages are on disk now. */
static void bsst_write_notify(BsstWrite *w)
{
    unsigned i, k = 0;

    for (i = 0; i < w->n; i++) {
        if (w->slot[i] != BSST_SLOT_NONE) {
            w->page[k++] = w->page[i];
        }
    }
    if (k) {
        w->pager->ops->written(w->pager, w->page, k);
    }
}

static void bsst_write_account(BsstWrite *w)
{
    BDRVBsstState *s = w->bs->opaque;

    stat64_add(&s->double_paged_pages, w->slots);
    stat64_add(&s->avoided_bytes,
               (2ULL * w->slots - w->clean) * BSST_PAGE_SIZE);
    stat64_add(&s->buffered_pages, w->buffers);
    stat64_add(&s->zero_pages, w->zeroes);
    stat64_add(&s->loaded_pages, w->loaded);
    stat64_add(&s->moved_bytes, 2ULL * w->loaded * BSST_PAGE_SIZE);
}

/*
 * A write, or with @discard a discard, of blocks that are not indirected (any
 * more) may be news to the planner: it watches what was moved.
 */
static void coroutine_fn bsst_write_observe(BDRVBsstState *s, int64_t offset,
                                            int64_t bytes, bool discard,
                                            int ret)
{
    if (ret >= 0 && qatomic_read(&s->watch)) {
        bsst_observe_write(s, offset, bytes, discard);
    }
}

/* The blocks that a write covers in part, or all of those that it has. */
static void coroutine_fn bsst_write_observe_rest(BsstWrite *w)
{
    BDRVBsstState *s = w->bs->opaque;
    int64_t end = w->offset + w->bytes;
    int64_t head = MIN(bsst_block_offset(bsst_block_up(w->offset)), end);
    int64_t tail = MAX(bsst_block_offset(bsst_block_down(end)), head);

    if (!w->slots && !qatomic_read(&s->map_count)) {
        bsst_write_observe(s, w->offset, w->bytes, false, 0);
        return;
    }
    if (head > w->offset) {
        bsst_write_observe(s, w->offset, head - w->offset, false, 0);
    }
    if (end > tail) {
        bsst_write_observe(s, tail, end - tail, false, 0);
    }
}

/* After the last child request: B3, then give everything back. */
static void coroutine_fn bsst_write_finish(BsstWrite *w, int ret)
{
    if (ret < 0) {
        bsst_write_drop_slots(w);
    } else {
        bsst_write_observe_rest(w);
        bsst_write_commit(w);
    }
    if (w->reserved) {
        BDRVBsstState *s = w->bs->opaque;

        bsst_journal_unreserve(bsst_store_journal(s->store), w->reserved);
    }
    if (!w->pager) {
        return;
    }
    if (w->buffers) {
        w->pager->ops->release(w->pager, w->claim, w->n);
    }
    if (w->slots) {
        bsst_write_notify(w);
    }
    if (ret == 0) {
        bsst_write_account(w);
    }
}

/* Copy up what the request covers partly: its first and its last block. */
static int coroutine_fn GRAPH_RDLOCK
bsst_co_copy_up_ends(BlockDriverState *bs, int64_t offset, int64_t bytes)
{
    int64_t end = offset + bytes;
    int ret = 0;

    if (!QEMU_IS_ALIGNED(offset, BSST_PAGE_SIZE)) {
        ret = bsst_co_copy_up(bs, bsst_block_down(offset));
    }
    if (ret == 0 && !QEMU_IS_ALIGNED(end, BSST_PAGE_SIZE)) {
        ret = bsst_co_copy_up(bs, bsst_block_down(end));
    }
    return ret;
}

/* The request @w is tracked. */
static int coroutine_fn GRAPH_RDLOCK bsst_write_tracked(BsstWrite *w)
{
    BDRVBsstState *s = w->bs->opaque;
    int64_t prepared_ns = 0, written_ns;
    bool had_absent;
    int ret;

    ret = bsst_co_attach_if_mapped(w->bs);
    if (ret == 0) {
        ret = bsst_co_copy_up_ends(w->bs, w->offset, w->bytes);
    }
    if (ret < 0) {
        return ret;
    }

    bsst_write_plan(w);
    had_absent = w->slots || w->buffers || w->zeroes || w->loaded;
    if (had_absent && w->start_ns) {
        prepared_ns = get_clock();
        bsst_latency_add(&s->write_prepare, prepared_ns - w->start_ns);
    }

    ret = bsst_write_image(w);
    written_ns = prepared_ns ? get_clock() : 0;
    bsst_write_finish(w, ret);
    trace_bsst_write_done(w->bs, w->offset, w->bytes, ret);

    if (prepared_ns) {
        bsst_latency_add(&s->write_completion, get_clock() - written_ns);
    }
    return ret;
}

static int coroutine_fn GRAPH_RDLOCK
bsst_co_pwritev_tracked(BlockDriverState *bs, BsstPager *pager, int64_t offset,
                        int64_t bytes, QEMUIOVector *qiov, size_t qiov_offset,
                        BdrvRequestFlags flags)
{
    BDRVBsstState *s = bs->opaque;
    uint64_t first = bsst_block_up(offset);
    uint64_t end = bsst_block_down(offset + bytes);
    QEMU_UNINITIALIZED void *stack_page[BSST_STACK_BLOCKS];
    QEMU_UNINITIALIZED BsstPageClaim stack_claim[BSST_STACK_BLOCKS];
    QEMU_UNINITIALIZED BsstSlot stack_slot[BSST_STACK_BLOCKS];
    g_autofree void **heap_page = NULL;
    g_autofree BsstPageClaim *heap_claim = NULL;
    g_autofree BsstSlot *heap_slot = NULL;
    BlockReq req;
    BsstWrite w = {
        .bs = bs,
        .pager = pager,
        .offset = offset,
        .bytes = bytes,
        .qiov = qiov,
        .qiov_offset = qiov_offset,
        .flags = flags,
        .start_ns = pager ? get_clock() : 0,
        .first = first,
        .n = end > first ? end - first : 0,
        .page = stack_page,
        .claim = stack_claim,
        .slot = stack_slot,
    };
    int ret;

    if (w.n > BSST_STACK_BLOCKS) {
        w.page = heap_page = g_new(void *, w.n);
        w.claim = heap_claim = g_new(BsstPageClaim, w.n);
        w.slot = heap_slot = g_new(BsstSlot, w.n);
    }

    bsst_track_begin(s, &req, offset, bytes);
    ret = bsst_write_tracked(&w);
    bsst_track_end(s, &req);
    return ret;
}

static int coroutine_fn GRAPH_RDLOCK
bsst_co_pwritev_any(BlockDriverState *bs, int64_t offset, int64_t bytes,
                    QEMUIOVector *qiov, size_t qiov_offset,
                    BdrvRequestFlags flags)
{
    BDRVBsstState *s = bs->opaque;
    BsstPager *pager = bsst_store_get_pager(s->store);
    int ret;

    if (!pager && !bsst_test_wants(s, offset, bytes, qiov, qiov_offset) &&
        bsst_direct_begin(s)) {
        ret = bdrv_co_pwritev_part(bs->file, offset, bytes, qiov, qiov_offset,
                                   flags);
        bsst_write_observe(s, offset, bytes, false, ret);
        bsst_direct_end(s);
        return ret;
    }

    ret = bsst_co_pwritev_tracked(bs, pager, offset, bytes, qiov, qiov_offset,
                                  flags);
    if (pager) {
        bsst_pager_unref(pager);
    }
    return ret;
}

int coroutine_fn GRAPH_RDLOCK
bsst_co_pwritev_part(BlockDriverState *bs, int64_t offset, int64_t bytes,
                     QEMUIOVector *qiov, size_t qiov_offset,
                     BdrvRequestFlags flags)
{
    BDRVBsstState *s = bs->opaque;
    DefragLoadReq req;
    int ret;

    if (!qatomic_read(&s->measure)) {
        return bsst_co_pwritev_any(bs, offset, bytes, qiov, qiov_offset, flags);
    }
    bsst_load_begin(s, &req);
    ret = bsst_co_pwritev_any(bs, offset, bytes, qiov, qiov_offset, flags);
    bsst_load_end(s, &req, ret);
    return ret;
}

/* Tracked requests wait for direct ones: no mix of them while we are busy. */
static bool bsst_is_armed(BDRVBsstState *s)
{
    BsstPager *pager = bsst_store_get_pager(s->store);

    if (pager) {
        bsst_pager_unref(pager);
    }
    return pager;
}

int coroutine_fn GRAPH_RDLOCK
bsst_co_pwrite_zeroes(BlockDriverState *bs, int64_t offset, int64_t bytes,
                      BdrvRequestFlags flags)
{
    BDRVBsstState *s = bs->opaque;
    BlockReq req;
    int ret;

    trace_bsst_discard(bs, offset, bytes, true);
    if (!bsst_is_armed(s) && bsst_direct_begin(s)) {
        ret = bdrv_co_pwrite_zeroes(bs->file, offset, bytes, flags);
        bsst_write_observe(s, offset, bytes, true, ret);
        bsst_direct_end(s);
        return ret;
    }

    bsst_track_begin(s, &req, offset, bytes);
    ret = bsst_co_attach_if_mapped(bs);
    if (ret == 0) {
        ret = bsst_co_copy_up_ends(bs, offset, bytes);
    }
    if (ret == 0) {
        ret = bdrv_co_pwrite_zeroes(bs->file, offset, bytes, flags);
    }
    if (ret == 0) {
        bsst_map_remove(bs, bsst_block_up(offset),
                        bsst_block_down(offset + bytes), BSST_REMOVE_DISCARD);
    }
    bsst_write_observe(s, offset, bytes, true, ret);
    bsst_track_end(s, &req);
    return ret;
}

/*
 * Discard the indirections of [@block, @end).  What the image has there is
 * older than what the guest wrote, and a discard need not have any effect on
 * it: only zeroes may take the place of what was in the store.
 */
static int coroutine_fn GRAPH_RDLOCK
bsst_co_discard_indirect(BlockDriverState *bs, uint64_t block, uint64_t end)
{
    BDRVBsstState *s = bs->opaque;
    unsigned n;

    while (bsst_map_next_run(s, &block, &n) && block < end) {
        int ret;

        n = MIN(n, end - block);
        ret = bdrv_co_pwrite_zeroes(bs->file, bsst_block_offset(block),
                                    bsst_block_offset(n), BDRV_REQ_MAY_UNMAP);
        if (ret < 0) {
            return ret;
        }
        bsst_map_remove(bs, block, block + n, BSST_REMOVE_DISCARD);
        block += n;
    }
    return 0;
}

/*
 * Blocks that are covered partly keep their indirection: a discard need not
 * discard everything.
 */
int coroutine_fn GRAPH_RDLOCK
bsst_co_pdiscard(BlockDriverState *bs, int64_t offset, int64_t bytes)
{
    BDRVBsstState *s = bs->opaque;
    BlockReq req;
    int ret;

    trace_bsst_discard(bs, offset, bytes, false);
    if (!bsst_is_armed(s) && bsst_direct_begin(s)) {
        ret = bdrv_co_pdiscard(bs->file, offset, bytes);
        bsst_write_observe(s, offset, bytes, true, ret);
        bsst_direct_end(s);
        return ret;
    }

    bsst_track_begin(s, &req, offset, bytes);
    ret = bsst_co_attach_if_mapped(bs);
    if (ret == 0) {
        ret = bdrv_co_pdiscard(bs->file, offset, bytes);
    }
    if (ret == 0) {
        ret = bsst_co_discard_indirect(bs, bsst_block_up(offset),
                                       bsst_block_down(offset + bytes));
    }
    /* Blocks that are covered partly may be indirected still. */
    bsst_write_observe(s, ROUND_UP(offset, BSST_PAGE_SIZE),
                       MAX(0, QEMU_ALIGN_DOWN(offset + bytes, BSST_PAGE_SIZE) -
                              ROUND_UP(offset, BSST_PAGE_SIZE)), true, ret);
    bsst_track_end(s, &req);
    return ret;
}

/*
 * What truncate has to do before and after the image's own: the block that the
 * new end cuts is copied out first (B5), so that what remains of it is in the
 * image, and what comes after it is the image's business should it grow again.
 * The same holds for the old end, which may be news to us after a crash.
 *
 * What was cut off must not come back after a crash either, in an image that
 * has grown since: it grows only after the journal knows.
 */
static int coroutine_fn GRAPH_RDLOCK
bsst_co_before_truncate(BlockDriverState *bs, int64_t offset, int64_t length)
{
    int64_t end = MIN(offset, length);
    int ret = bsst_co_attach_if_mapped(bs);

    if (ret == 0 && !QEMU_IS_ALIGNED(end, BSST_PAGE_SIZE)) {
        ret = bsst_co_copy_up(bs, bsst_block_down(end));
    }
    if (ret == 0 && offset > length) {
        ret = bsst_co_flush(bs);
    }
    return ret;
}

int coroutine_fn GRAPH_RDLOCK
bsst_co_truncate(BlockDriverState *bs, int64_t offset, bool exact,
                 PreallocMode prealloc, BdrvRequestFlags flags, Error **errp)
{
    BDRVBsstState *s = bs->opaque;
    int64_t length = bdrv_co_getlength(bs->file->bs);
    int64_t start = QEMU_ALIGN_DOWN(MIN(offset, MAX(length, 0)),
                                    BSST_PAGE_SIZE);
    BlockReq req;
    int ret;

    if (!bsst_check_size(offset, errp)) {
        return -EFBIG;
    }
    bsst_track_begin(s, &req, start, INT64_MAX - start);
    ret = length < 0 ? length : bsst_co_before_truncate(bs, offset, length);
    if (ret < 0) {
        error_setg_errno(errp, -ret, "Could not prepare the block-swap store "
                         "for another size");
    } else {
        ret = bdrv_co_truncate(bs->file, offset, exact, prealloc, flags, errp);
    }
    if (ret == 0) {
        bsst_map_remove(bs, bsst_block_up(offset), UINT64_MAX,
                        BSST_REMOVE_TRUNCATE);
    }
    if (length > offset) {
        bsst_write_observe(s, offset, length - offset, true, ret);
    }
    bsst_track_end(s, &req);
    return ret;
}
