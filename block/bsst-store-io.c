/*
 * The block-swap store: private I/O
 *
 * On our own descriptor of the protocol file, past the block graph, and from
 * private memory only.  Slots have checksums; metadata have their own.
 *
 * This work is licensed under the terms of the GNU GPL, version 2 or later.
 * See the COPYING file in the top-level directory.
 */

#include "qemu/osdep.h"
#include "block/block_int.h"
#include "block/raw-aio.h"
#include "block/thread-pool.h"
#include "bsst-store-int.h"
#include "qemu/iov.h"
#include "qemu/memalign.h"
#include "trace.h"

/* How often bsst_store_co_read_retry() reads */
#define READ_TRIES          3

/*
 * Find where @page of the virtual disk lies, and how many of the @n from it on
 * lie in one piece.
 */
static uint64_t store_host_offset(const BsstStore *s, uint64_t page,
                                  uint32_t *n)
{
    unsigned lo = 0, hi = s->extents->len - 1;
    const StoreExtent *e;

    while (lo < hi) {
        unsigned mid = (lo + hi + 1) / 2;

        e = &g_array_index(s->extents, StoreExtent, mid);
        if (e->first <= page) {
            lo = mid;
        } else {
            hi = mid - 1;
        }
    }
    e = &g_array_index(s->extents, StoreExtent, lo);
    *n = MIN(*n, e->n - (page - e->first));
    return e->host_offset + (page - e->first) * BSST_PAGE_SIZE;
}

uint64_t bsst_store_slot_offset(const BsstStore *s, BsstSlot slot,
                                uint32_t *n)
{
    return store_host_offset(s, s->slots_page + slot, n);
}

typedef struct StoreThreadReq {
    int fd;
    uint64_t offset;
    QEMUIOVector *qiov;
    bool is_write;
} StoreThreadReq;

static int store_thread_io(void *opaque)
{
    StoreThreadReq *r = opaque;
    size_t done = 0;

    while (done < r->qiov->size) {
        g_autofree struct iovec *iov = g_new(struct iovec, r->qiov->niov);
        unsigned niov = iov_copy(iov, r->qiov->niov, r->qiov->iov,
                                 r->qiov->niov, done, r->qiov->size - done);
        ssize_t len = r->is_write
                      ? pwritev(r->fd, iov, niov, r->offset + done)
                      : preadv(r->fd, iov, niov, r->offset + done);

        if (len < 0 && errno != EINTR) {
            return -errno;
        }
        if (len == 0) {
            return r->is_write ? -ENOSPC : -EIO;
        }
        done += MAX(len, 0);
    }
    return 0;
}

static int coroutine_fn store_co_io(BsstStore *s, uint64_t offset,
                                    QEMUIOVector *qiov, bool is_write)
{
    int type = is_write ? QEMU_AIO_WRITE : QEMU_AIO_READ;
    StoreThreadReq req = {
        .fd = s->fd,
        .offset = offset,
        .qiov = qiov,
        .is_write = is_write,
    };

    switch (s->aio) {
#ifdef CONFIG_LINUX_AIO
    case BLOCKDEV_AIO_OPTIONS_NATIVE:
        if (aio_setup_linux_aio(qemu_get_current_aio_context(), NULL)) {
            return laio_co_submit(s->fd, offset, qiov, type, 0, 0);
        }
        break;
#endif
#ifdef CONFIG_LINUX_IO_URING
    case BLOCKDEV_AIO_OPTIONS_IO_URING:
        if (aio_setup_linux_io_uring(qemu_get_current_aio_context(), NULL)) {
            return luring_co_submit(NULL, s->fd, offset, qiov, type, 0);
        }
        break;
#endif
    default:
        break;
    }
    return thread_pool_submit_co(store_thread_io, &req);
}

/* Transfer @n pages from @page on, whose extents may differ. */
static int coroutine_fn store_co_rw(BsstStore *s, uint64_t page, uint32_t n,
                                    QEMUIOVector *qiov, bool is_write)
{
    size_t done = 0;
    int ret = 0;

    while (n && ret >= 0) {
        uint32_t piece = n;
        uint64_t offset = store_host_offset(s, page, &piece);
        size_t bytes = (size_t)piece * BSST_PAGE_SIZE;

        if (bytes == qiov->size) {
            ret = store_co_io(s, offset, qiov, is_write);
        } else {
            QEMUIOVector part;

            qemu_iovec_init_slice(&part, qiov, done, bytes);
            ret = store_co_io(s, offset, &part, is_write);
            qemu_iovec_destroy(&part);
        }
        page += piece;
        n -= piece;
        done += bytes;
    }
    if (ret < 0) {
        stat64_add(&s->io_errors, 1);
        trace_bsst_store_io_error(s->node_name, page, is_write, ret);
    }
    return MIN(ret, 0);
}

/* Compute the checksum of each of @n slots in @qiov. */
static void qiov_checksums(QEMUIOVector *qiov, uint32_t n, uint64_t *sum)
{
    g_autofree uint8_t *bounce = NULL;
    size_t skip = 0;    /* position in the vector element @v */
    int v = 0;

    for (uint32_t i = 0; i < n; i++, skip += BSST_PAGE_SIZE) {
        while (skip >= qiov->iov[v].iov_len) {
            skip -= qiov->iov[v++].iov_len;
        }
        if (qiov->iov[v].iov_len - skip >= BSST_PAGE_SIZE) {
            sum[i] = bsst_checksum((uint8_t *)qiov->iov[v].iov_base + skip,
                                   BSST_PAGE_SIZE);
            continue;
        }
        if (!bounce) {
            bounce = g_malloc(BSST_PAGE_SIZE);
        }
        qemu_iovec_to_buf(qiov, (size_t)i * BSST_PAGE_SIZE, bounce,
                          BSST_PAGE_SIZE);
        sum[i] = bsst_checksum(bounce, BSST_PAGE_SIZE);
    }
}

int coroutine_fn bsst_store_co_writev(BsstStore *s, BsstSlot first, uint32_t n,
                                      QEMUIOVector *qiov)
{
    size_t bytes = (size_t)n * BSST_PAGE_SIZE;
    g_autofree uint64_t *sum = g_new(uint64_t, n);

    assert(qiov->size == bytes);
    qiov_checksums(qiov, n, sum);
    WITH_QEMU_LOCK_GUARD(&s->lock) {
        for (uint32_t i = 0; i < n; i++) {
            slot_table_set_checksum(s->slots, first + i, sum[i]);
        }
    }
    stat64_add(&s->writes, 1);
    stat64_add(&s->write_bytes, bytes);
    return store_co_rw(s, s->slots_page + first, n, qiov, true);
}

int coroutine_fn bsst_store_co_write(BsstStore *s, BsstSlot first, uint32_t n,
                                     const void *buf)
{
    QEMUIOVector qiov = QEMU_IOVEC_INIT_BUF(qiov, (void *)buf,
                                            (size_t)n * BSST_PAGE_SIZE);

    return bsst_store_co_writev(s, first, n, &qiov);
}

/* Up to so many checksums are on the stack. */
#define STACK_SUMS  32

static bool store_verify(BsstStore *s, BsstSlot first, uint32_t n,
                         QEMUIOVector *qiov)
{
    QEMU_UNINITIALIZED uint64_t stack_sum[STACK_SUMS];
    g_autofree uint64_t *heap_sum = NULL;
    uint64_t *sum = stack_sum;
    bool ok = true;

    if (n > STACK_SUMS) {
        sum = heap_sum = g_new(uint64_t, n);
    }
    qiov_checksums(qiov, n, sum);
    for (uint32_t i = 0; i < n; i++) {
        uint64_t expected;

        WITH_QEMU_LOCK_GUARD(&s->lock) {
            expected = slot_table_checksum(s->slots, first + i);
        }
        if (sum[i] != expected) {
            stat64_add(&s->checksum_errors, 1);
            trace_bsst_store_bad_checksum(s->node_name, first + i);
            ok = false;
        }
    }
    return ok;
}

bool bsst_store_slot_matches(BsstStore *s, BsstSlot slot, const void *buf)
{
    uint64_t sum = bsst_checksum(buf, BSST_PAGE_SIZE);
    QEMU_LOCK_GUARD(&s->lock);

    return slot_table_checksum(s->slots, slot) == sum;
}

static int coroutine_fn store_co_readv(BsstStore *s, BsstSlot first, uint32_t n,
                                       QEMUIOVector *qiov)
{
    int ret;

    assert(qiov->size == (size_t)n * BSST_PAGE_SIZE);
    stat64_add(&s->reads, 1);
    stat64_add(&s->read_bytes, qiov->size);
    ret = store_co_rw(s, s->slots_page + first, n, qiov, false);
    if (ret < 0) {
        return ret;
    }
    return store_verify(s, first, n, qiov) ? 0 : -EILSEQ;
}

int coroutine_fn bsst_store_co_read(BsstStore *s, BsstSlot first, uint32_t n,
                                    void *buf)
{
    QEMUIOVector qiov = QEMU_IOVEC_INIT_BUF(qiov, buf,
                                            (size_t)n * BSST_PAGE_SIZE);

    return store_co_readv(s, first, n, &qiov);
}

int coroutine_fn bsst_store_co_readv_retry(BsstStore *s, BsstSlot first,
                                           uint32_t n, QEMUIOVector *qiov)
{
    int tries = 0, ret;

    do {
        ret = store_co_readv(s, first, n, qiov);
    } while (ret < 0 && ++tries < READ_TRIES);
    return ret;
}

int coroutine_fn bsst_store_co_read_retry(BsstStore *s, BsstSlot first,
                                          uint32_t n, void *buf)
{
    QEMUIOVector qiov = QEMU_IOVEC_INIT_BUF(qiov, buf,
                                            (size_t)n * BSST_PAGE_SIZE);

    return bsst_store_co_readv_retry(s, first, n, &qiov);
}

void *bsst_store_buffer(BsstStore *s, size_t bytes)
{
    return qemu_try_memalign(BSST_PAGE_SIZE, bytes);
}

/* Metadata I/O, for the journal */

static int coroutine_fn store_co_meta(BsstStore *s, uint64_t offset, void *buf,
                                      size_t bytes, bool is_write)
{
    QEMUIOVector qiov = QEMU_IOVEC_INIT_BUF(qiov, buf, bytes);

    assert(offset % BSST_PAGE_SIZE == 0 && bytes % BSST_PAGE_SIZE == 0);
    return store_co_rw(s, offset / BSST_PAGE_SIZE, bytes / BSST_PAGE_SIZE,
                       &qiov, is_write);
}

int coroutine_fn bsst_store_co_meta_read(void *opaque, uint64_t offset,
                                         void *buf, size_t bytes)
{
    return store_co_meta(opaque, offset, buf, bytes, false);
}

int coroutine_fn bsst_store_co_meta_write(void *opaque, uint64_t offset,
                                          const void *buf, size_t bytes)
{
    return store_co_meta(opaque, offset, (void *)buf, bytes, true);
}

static int store_thread_flush(void *opaque)
{
    BsstStore *s = opaque;

    return qemu_fdatasync(s->fd) < 0 ? -errno : 0;
}

int coroutine_fn bsst_store_co_flush(void *opaque)
{
    BsstStore *s = opaque;
    int ret;

#ifdef CONFIG_LINUX_IO_URING
    if (s->aio == BLOCKDEV_AIO_OPTIONS_IO_URING &&
        aio_setup_linux_io_uring(qemu_get_current_aio_context(), NULL)) {
        ret = luring_co_submit(NULL, s->fd, 0, NULL, QEMU_AIO_FLUSH, 0);
    } else
#endif
    {
        ret = thread_pool_submit_co(store_thread_flush, s);
    }
    if (ret < 0) {
        stat64_add(&s->io_errors, 1);
        trace_bsst_store_flush_error(s->node_name, ret);
    }
    return MIN(ret, 0);
}
