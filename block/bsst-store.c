/*
 * The block-swap store
 *
 * Owns the slots: allocation, references, checksums, and the I/O on them; and
 * the superblock.  The journal (bsst-journal.c) is opened and closed here, and
 * does its I/O through us.
 *
 * The store's node is opened, locked and its format resolved through the
 * block layer.  All I/O then bypasses the block graph: a swap-in must never
 * wait for the graph lock or a drained section, whose holder may itself be
 * waiting for a swap-in.  This works because
 *
 *   S1  the node's mapping is total and never moves while we hold it: we own
 *       the only write permission, share no resize, and never write through
 *       the node;
 *   S2  a slot's content changes only between its allocation and the moment
 *       its owner shares it: it is immutable while anybody can read it;
 *   S3  a slot is punched or allocated again only when no reference is left.
 *       What the journal names, or may name, has one (see durable-map.h).
 *
 * Slots that became free keep their space in the file for a while, since most
 * are used again soon; a timer gives larger runs back to the file system.
 *
 * References by pages are in memory only.  References by images come back when
 * the store is opened: the journal knows them, and the table of checksums has
 * what the slots must contain.
 *
 * Deliberately absent: any order between writes and flushes.  That is the
 * journal's business alone.
 *
 * This work is licensed under the terms of the GNU GPL, version 2 or later.
 * See the COPYING file in the top-level directory.
 */

#include "qemu/osdep.h"
#include "block/aio-wait.h"
#include "block/block_int.h"
#include "block/raw-aio.h"
#include "block/thread-pool.h"
#include "bsst/bsst-format.h"
#include "bsst/bsst-journal.h"
#include "bsst/bsst-store.h"
#include "bsst/slot-table.h"
#include "qapi/error.h"
#include "qapi/qapi-visit-block-core.h"
#include "qapi/util.h"
#include "qemu/cutils.h"
#include "qemu/error-report.h"
#include "qemu/iov.h"
#include "qemu/lockable.h"
#include "qemu/memalign.h"
#include "qemu/stats64.h"
#include "qemu/timer.h"
#include "qemu/units.h"
#include "system/block-backend.h"
#include "trace.h"

/* Free runs are looked for this often while there are any. */
#define PUNCH_INTERVAL_MS   2000
/*
 * Shorter runs stay.  While the store is being written to, most free slots are
 * used again soon, and space that was given back must be allocated anew.
 */
#define PUNCH_MIN_SLOTS_BUSY    1024
#define PUNCH_MIN_SLOTS_IDLE    16
/* The most that one request punches, so that it does not hold others up. */
#define PUNCH_MAX_SLOTS     (32 * MiB / BSST_PAGE_SIZE)

/* Locked on our descriptor; file-posix.c uses bytes from 100 and from 200. */
#define STORE_LOCK_BYTE     300
#define LOCK_TRIES          40
#define LOCK_RETRY_US       50000

/* A journal that is longer than this is worth a checkpoint at the end. */
#define LONG_JOURNAL_BYTES  (256 * KiB)

/* How often bsst_store_co_read_retry() reads */
#define READ_TRIES          3

/* Checksums are read in pieces of this many bytes. */
#define CHECKSUMS_BYTES     (1 * MiB)

/*
 * [first, first + n), in pages of the virtual disk, lies at host_offset of the
 * protocol file.
 */
typedef struct StoreExtent {
    uint64_t first;
    uint64_t n;
    uint64_t host_offset;
} StoreExtent;

struct BsstStore {
    /* Set once */
    char *node_name;
    char *filename;
    BlockBackend *blk;
    QemuUUID uuid;
    BlockdevAioOptions aio;
    int fd;
    dev_t dev;
    ino_t ino;
    bool direct;                        /* fd is past the page cache */
    bool read_only;
    GArray *extents;                    /* of StoreExtent, by first */
    uint64_t slots_page;                /* where in the virtual disk they are */
    QEMUTimer *punch_timer;
    BsstSuperblock sb;
    BsstJournalIO journal_io;
    BsstJournal *journal;

    /* Under the BQL */
    unsigned refcnt;
    QLIST_ENTRY(BsstStore) next;

    /* Main thread */
    bool punching;
    uint64_t writes_at_punch;           /* @writes when the timer last fired */

    /* Under @lock, which is a leaf */
    QemuMutex lock;
    SlotTable *slots;
    bool full;                          /* an allocation has failed */

    BsstPager *pager;

    /* Atomic */
    bool armed;                         /* the pager is: a hint */
    bool punch_soon;                    /* the timer is set */

    /* Thread-safe API */
    Stat64 reads, read_bytes, writes, write_bytes, punched_bytes;
    Stat64 checksum_errors, io_errors;
};

/* All open stores.  Under the BQL. */
static QLIST_HEAD(, BsstStore) all_stores = QLIST_HEAD_INITIALIZER(all_stores);

/* Node names given by bsst_default_store_add().  Under the BQL. */
static GList *default_stores;

/* Create */

/* Rename @from to @to, which must not exist. */
static int rename_new(const char *from, const char *to)
{
    int ret = renameat2(AT_FDCWD, from, AT_FDCWD, to, RENAME_NOREPLACE);

    if (ret < 0 && (errno == EINVAL || errno == ENOSYS)) {
        /* Not on this file system */
        if (access(to, F_OK) == 0) {
            errno = EEXIST;
            return -1;
        }
        ret = rename(from, to);
    }
    return ret;
}

/* Under another name first, so that nobody finds it half made after a kill. */
bool bsst_store_create(const char *path, uint64_t size, Error **errp)
{
    ERRP_GUARD();
    g_autofree char *opts = g_strdup("preallocation=metadata,cluster_size=2M");
    g_autofree char *part = g_strconcat(path, ".new-XXXXXX", NULL);
    uint64_t bytes;
    int fd;

    if (size < BSST_MIN_SLOTS * BSST_PAGE_SIZE) {
        error_setg(errp, "store-size of %" PRIu64 " bytes is too small; give "
                   "at least 1M", size);
        return false;
    }
    bytes = bsst_image_bytes_for(MIN(DIV_ROUND_UP(size, BSST_PAGE_SIZE),
                                     BSST_SLOT_NONE - 1));

    /* Ours before there is anything in it that others must not read. */
    fd = g_mkstemp_full(part, O_RDWR | O_CLOEXEC, 0600);
    if (fd < 0) {
        error_setg_errno(errp, errno, "Could not create '%s'", path);
        return false;
    }
    qemu_close(fd);
    bdrv_img_create(part, "qcow2", NULL, NULL, opts, bytes, 0, true, errp);
    if (!*errp && rename_new(part, path) < 0) {
        error_setg_errno(errp, errno, "Could not create '%s'", path);
    }
    if (*errp) {
        unlink(part);
        return false;
    }
    return true;
}

/* Open */

/*
 * Making a raw image allocates its first block.  More than this is not read to
 * find out that it is zero.
 */
#define BLANK_READ_BYTES    (64 * KiB)

static bool store_reads_zero(BsstStore *s, int64_t offset, int64_t bytes)
{
    g_autofree uint8_t *buf = NULL;

    if (bytes > BLANK_READ_BYTES) {
        return false;
    }
    buf = g_malloc(bytes);
    return blk_pread(s->blk, offset, bytes, buf, 0) >= 0 &&
           buffer_is_zero(buf, bytes);
}

static bool GRAPH_RDLOCK store_is_blank(BsstStore *s, int64_t bytes)
{
    int64_t offset, n;

    for (offset = 0; offset < bytes; offset += n) {
        int ret = bdrv_block_status(blk_bs(s->blk), offset, bytes - offset, &n,
                                    NULL, NULL);
        if (ret < 0 || !n) {
            return false;
        }
        if (!(ret & BDRV_BLOCK_ZERO) && !store_reads_zero(s, offset, n)) {
            return false;
        }
    }
    return true;
}

/*
 * Read the superblock, or make one up for a blank image, which *@blank tells.
 */
static bool store_load_superblock(BsstStore *s, bool *blank, Error **errp)
{
    g_autofree uint8_t *buf = g_malloc0(BSST_SUPERBLOCK_BYTES);
    int64_t bytes = blk_getlength(s->blk);
    const char *reason;
    int ret;

    if (bytes < BSST_SUPERBLOCK_BYTES) {
        error_setg(errp, "Node '%s' cannot be a block-swap store: it is too "
                   "small; make it with at least 4M", s->node_name);
        return false;
    }
    ret = blk_pread(s->blk, 0, BSST_SUPERBLOCK_BYTES, buf, 0);
    if (ret < 0) {
        error_setg_errno(errp, -ret, "Could not read the superblock of the "
                         "block-swap store '%s'", s->node_name);
        return false;
    }

    bdrv_graph_rdlock_main_loop();
    *blank = buffer_is_zero(buf, BSST_SUPERBLOCK_BYTES) &&
             store_is_blank(s, bytes);
    bdrv_graph_rdunlock_main_loop();
    if (*blank && s->read_only) {
        error_setg(errp, "Node '%s' is not a block-swap store yet: it is "
                   "blank; open it with read-only=off once", s->node_name);
        return false;
    }
    if (*blank) {
        reason = bsst_superblock_init(&s->sb, bytes);
        qemu_uuid_generate(&s->uuid);
        memcpy(s->sb.uuid, s->uuid.data, sizeof(s->sb.uuid));
    } else {
        reason = bsst_superblock_decode(&s->sb, buf, bytes);
        memcpy(s->uuid.data, s->sb.uuid, sizeof(s->sb.uuid));
    }
    if (reason) {
        error_setg(errp, "Node '%s' cannot be a block-swap store: %s; use a "
                   "new file, as in qemu-img create -f qcow2 -o "
                   "preallocation=metadata FILE SIZE", s->node_name, reason);
        return false;
    }
    s->slots_page = s->sb.slots_offset / BSST_PAGE_SIZE;
    return true;
}

/* The format driver's own file must be a plain file or a host device. */
static bool check_protocol(const BsstStore *s, const BlockDriverState *file,
                           Error **errp)
{
    if (!strcmp(file->drv->format_name, "file") ||
        !strcmp(file->drv->format_name, "host_device")) {
        return true;
    }
    error_setg(errp, "The block-swap store '%s' is on protocol '%s'; only "
               "'file' and 'host_device' are supported (attach others as a "
               "host device or through a FUSE export of qemu-storage-daemon)",
               s->node_name, file->drv->format_name);
    return false;
}

/* Before anything is read: others may not even tell a blank image. */
static bool store_check_protocol(const BsstStore *s, BlockDriverState *bs,
                                 Error **errp)
{
    GRAPH_RDLOCK_GUARD_MAINLOOP();

    bs = bdrv_skip_filters(bs);
    return check_protocol(s, bs->file ? bs->file->bs : bs, errp);
}

static bool append_extent(BsstStore *s, uint64_t offset, uint64_t bytes,
                          uint64_t host_offset)
{
    StoreExtent e = {
        .first = offset / BSST_PAGE_SIZE,
        .n = bytes / BSST_PAGE_SIZE,
        .host_offset = host_offset,
    };

    if (s->extents->len) {
        StoreExtent *last = &g_array_index(s->extents, StoreExtent,
                                           s->extents->len - 1);
        if (last->host_offset + last->n * BSST_PAGE_SIZE == host_offset) {
            last->n += e.n;
            return true;
        }
    }
    g_array_append_val(s->extents, e);
    return host_offset % BSST_PAGE_SIZE == 0 && bytes % BSST_PAGE_SIZE == 0;
}

/* Where the last area of the store ends. */
static uint64_t store_end(const BsstSuperblock *sb)
{
    uint64_t end = sb->slots_offset + (uint64_t)sb->nslots * BSST_PAGE_SIZE;

    end = MAX(end, sb->images_offset +
                   (uint64_t)sb->nimages * BSST_IMAGE_ENTRY_BYTES);
    end = MAX(end, sb->checksums_offset + (uint64_t)sb->nslots * 8);
    end = MAX(end, sb->checkpoint_offset[0] + sb->checkpoint_bytes);
    end = MAX(end, sb->checkpoint_offset[1] + sb->checkpoint_bytes);
    end = MAX(end, sb->journal_offset + sb->journal_bytes);
    return ROUND_UP(end, BSST_PAGE_SIZE);
}

/*
 * Resolve all offsets, metadata and slots, to offsets of the host file; find
 * the protocol node.
 */
static BlockDriverState *GRAPH_RDLOCK store_resolve(BsstStore *s, Error **errp)
{
    BlockDriverState *bs = blk_bs(s->blk), *protocol = NULL, *file;
    uint64_t end = store_end(&s->sb);
    uint64_t offset;
    int64_t n, map;

    for (offset = 0; offset < end; offset += n) {
        int ret = bdrv_block_status(bs, offset, MIN(end - offset, GiB), &n,
                                    &map, &file);
        if (ret < 0) {
            error_setg_errno(errp, -ret, "Could not read the mapping of the "
                             "block-swap store '%s'", s->node_name);
            return NULL;
        }
        if (!(ret & BDRV_BLOCK_OFFSET_VALID) || !n ||
            (protocol && file != protocol) ||
            !append_extent(s, offset, n, map)) {
            error_setg(errp, "The block-swap store '%s' has no complete and "
                       "linear mapping; make it with qemu-img create -f qcow2 "
                       "-o preallocation=metadata, without compression, "
                       "encryption, snapshots or a backing file",
                       s->node_name);
            return NULL;
        }
        protocol = file;
    }
    return check_protocol(s, protocol, errp) ? protocol : NULL;
}

/*
 * Lock our descriptor.  A process that was killed lets go of its files only
 * when its io_uring requests have ended: give it a moment.
 */
static int store_lock_fd(BsstStore *s)
{
    int ret = -EAGAIN;

    for (int i = 0; i < LOCK_TRIES && (ret == -EAGAIN || ret == -EACCES);
         i++) {
        if (i) {
            g_usleep(LOCK_RETRY_US);
        }
        ret = qemu_lock_fd(s->fd, STORE_LOCK_BYTE, 1, !s->read_only);
    }
    return ret;
}

/* Open the private descriptor, past the page cache where that is possible. */
static bool store_open_fd(BsstStore *s, BlockDriverState *protocol,
                          Error **errp)
{
    const char *path = protocol->filename;
    int flags = s->read_only ? O_RDONLY : O_RDWR;
    struct stat st;
    int ret;

    if (!strstart(path, "file:", &path)) {
        strstart(path, "host_device:", &path);
    }
    s->filename = g_strdup(path);
    s->fd = qemu_open(path, flags | O_DIRECT, NULL);
    s->direct = s->fd >= 0;
    if (s->fd < 0) {
        s->fd = qemu_open(path, flags, errp);
    }
    if (s->fd < 0) {
        error_prepend(errp, "Could not open the block-swap store '%s': ",
                      s->node_name);
        return false;
    }
    if (fstat(s->fd, &st) < 0) {
        error_setg_errno(errp, errno, "Could not stat '%s'", path);
        return false;
    }
    /* The node may be closed before us, and its locks go then. */
    ret = store_lock_fd(s);
    if (ret < 0) {
        error_setg_errno(errp, -ret, "The block-swap store '%s' is in use by "
                         "another process", s->node_name);
        return false;
    }
    s->dev = st.st_dev;
    s->ino = st.st_ino;
    return true;
}

static void store_free(BsstStore *s)
{
    timer_free(s->punch_timer);
    if (s->journal) {
        bsst_journal_free(s->journal);
    }
    if (s->fd >= 0) {
        qemu_close(s->fd);
    }
    blk_unref(s->blk);
    g_array_unref(s->extents);
    slot_table_free(s->slots);
    qemu_mutex_destroy(&s->lock);
    g_free(s->node_name);
    g_free(s->filename);
    g_free(s);
}

static bool aio_available(BlockdevAioOptions aio, Error **errp)
{
    AioContext *ctx = qemu_get_aio_context();

    switch (aio) {
    case BLOCKDEV_AIO_OPTIONS_THREADS:
        return true;
#ifdef CONFIG_LINUX_AIO
    case BLOCKDEV_AIO_OPTIONS_NATIVE:
        return aio_setup_linux_aio(ctx, errp);
#endif
#ifdef CONFIG_LINUX_IO_URING
    case BLOCKDEV_AIO_OPTIONS_IO_URING:
        return aio_setup_linux_io_uring(ctx, errp);
#endif
    default:
        error_setg(errp, "aio=%s was specified, but is not supported in this "
                   "build", BlockdevAioOptions_str(aio));
        return false;
    }
}

static void store_punch_timer(void *opaque);
static bool store_start(BsstStore *s, bool blank, Error **errp);
static void store_punch_later(BsstStore *s);

static BsstStore *store_new(BlockDriverState *bs, BlockdevAioOptions aio,
                            Error **errp)
{
    BsstStore *s = g_new0(BsstStore, 1);
    uint64_t perm = BLK_PERM_CONSISTENT_READ;
    BlockDriverState *protocol = NULL;
    bool blank;

    s->refcnt = 1;
    s->node_name = g_strdup(bdrv_get_node_name(bs));
    s->aio = aio;
    s->fd = -1;
    s->read_only = bdrv_is_read_only(bs);
    s->extents = g_array_new(false, false, sizeof(StoreExtent));
    s->punch_timer = aio_timer_new(qemu_get_aio_context(),
                                   QEMU_CLOCK_REALTIME, SCALE_MS,
                                   store_punch_timer, s);
    qemu_mutex_init(&s->lock);

    if (!s->read_only) {
        perm |= BLK_PERM_WRITE;
    }
    s->blk = blk_new(qemu_get_aio_context(), perm, 0);
    if (blk_insert_bs(s->blk, bs, errp) < 0) {
        error_prepend(errp, "The block-swap store '%s' is in use: ",
                      s->node_name);
        goto fail;
    }
    if (!aio_available(aio, errp) || !store_check_protocol(s, bs, errp) ||
        !store_load_superblock(s, &blank, errp)) {
        goto fail;
    }
    bdrv_graph_rdlock_main_loop();
    protocol = store_resolve(s, errp);
    bdrv_graph_rdunlock_main_loop();
    if (!protocol || !store_open_fd(s, protocol, errp) ||
        !store_start(s, blank, errp)) {
        goto fail;
    }
    return s;

fail:
    store_free(s);
    return NULL;
}

BsstStore *bsst_store_open(const char *node_name, BlockdevAioOptions aio,
                           Error **errp)
{
    BlockDriverState *bs;
    BsstStore *s;

    GLOBAL_STATE_CODE();

    QLIST_FOREACH(s, &all_stores, next) {
        if (!strcmp(s->node_name, node_name)) {
            bsst_store_ref(s);
            return s;
        }
    }
    bs = bdrv_find_node(node_name);
    if (!bs) {
        error_setg(errp, "Block-swap store '%s' not found: no block node has "
                   "that name; define it with -blockdev before it is used",
                   node_name);
        return NULL;
    }
    s = store_new(bs, aio, errp);
    if (s) {
        QLIST_INSERT_HEAD(&all_stores, s, next);
        trace_bsst_store_open(s->node_name, slot_table_size(s->slots),
                              s->extents->len);
    }
    return s;
}

void bsst_store_ref(BsstStore *s)
{
    GLOBAL_STATE_CODE();
    s->refcnt++;
}

static void store_forget_free_slots(BsstStore *s);
static void store_stop(BsstStore *s);

void bsst_store_unref(BsstStore *s)
{
    GLOBAL_STATE_CODE();

    if (!s || --s->refcnt) {
        return;
    }
    trace_bsst_store_close(s->node_name);
    assert(!s->pager);
    QLIST_REMOVE(s, next);
    timer_del(s->punch_timer);
    AIO_WAIT_WHILE_UNLOCKED(NULL, s->punching);
    if (!s->read_only) {
        store_forget_free_slots(s);
        store_stop(s);
    }
    store_free(s);
}

BsstStore *bsst_store_next(BsstStore *s)
{
    GLOBAL_STATE_CODE();
    return s ? QLIST_NEXT(s, next) : QLIST_FIRST(&all_stores);
}

const char *bsst_store_node_name(const BsstStore *s)
{
    return s->node_name;
}

const QemuUUID *bsst_store_uuid(const BsstStore *s)
{
    return &s->uuid;
}

const char *bsst_store_filename(const BsstStore *s)
{
    return s->filename;
}

bool bsst_store_is_inode(const BsstStore *s, dev_t dev, ino_t ino)
{
    return s->dev == dev && s->ino == ino;
}

bool bsst_store_read_only(const BsstStore *s)
{
    return s->read_only;
}

BsstJournal *bsst_store_journal(BsstStore *s)
{
    return s->journal;
}

uint32_t bsst_store_nslots(const BsstStore *s)
{
    return slot_table_size(s->slots);
}

/* The store of -drive bsst=on */

void bsst_default_store_add(const char *node_name)
{
    GLOBAL_STATE_CODE();
    default_stores = g_list_prepend(default_stores, g_strdup(node_name));
}

void bsst_default_store_del(const char *node_name)
{
    GList *l = g_list_find_custom(default_stores, node_name,
                                  (GCompareFunc)g_strcmp0);

    GLOBAL_STATE_CODE();
    if (l) {
        g_free(l->data);
        default_stores = g_list_delete_link(default_stores, l);
    }
}

const char *bsst_default_store(Error **errp)
{
    GLOBAL_STATE_CODE();
    if (!default_stores) {
        error_setg(errp, "bsst=on needs a store; add -object host-swapper,"
                   "id=ID,path=FILE,memory-limit=SIZE");
        return NULL;
    }
    if (default_stores->next) {
        error_setg(errp, "bsst=on needs exactly one host-swapper, but there "
                   "are several; use -blockdev driver=bsst,store=NODE");
        return NULL;
    }
    return default_stores->data;
}

/* Slots */

uint32_t bsst_slot_alloc(BsstStore *s, uint32_t want, BsstSlot *first)
{
    QEMU_LOCK_GUARD(&s->lock);
    uint32_t n = s->read_only ? 0 : slot_table_alloc(s->slots, want, first);

    if (!n) {
        s->full = true;
    }
    return n;
}

void bsst_slot_ref(BsstStore *s, const BsstSlot *slot, unsigned n)
{
    QEMU_LOCK_GUARD(&s->lock);

    slot_table_ref_list(s->slots, slot, n);
}

static void store_punch_later(BsstStore *s)
{
    /* In any thread, where timer_pending() may not be called. */
    if (!qatomic_read(&s->punch_soon) && !qatomic_xchg(&s->punch_soon, true)) {
        timer_mod(s->punch_timer, qemu_clock_get_ms(QEMU_CLOCK_REALTIME) +
                                  PUNCH_INTERVAL_MS);
    }
}

/* Enough is free to call a store that was full not full any more. */
static bool has_space_locked(BsstStore *s)
{
    uint32_t enough = MIN(slot_table_size(s->slots) / 64, 1024);

    return slot_table_nfree(s->slots) >= MAX(enough, 1);
}

/* Slots became free.  Returns the pager if it should hear of it, with a ref. */
static BsstPager *space_returned_locked(BsstStore *s)
{
    if (!s->full || !has_space_locked(s)) {
        return NULL;
    }
    s->full = false;
    if (s->pager) {
        bsst_pager_ref(s->pager);
    }
    return s->pager;
}

static void tell_space(BsstPager *pager)
{
    if (pager) {
        pager->ops->space(pager);
        bsst_pager_unref(pager);
    }
}

void bsst_slot_unref(BsstStore *s, const BsstSlot *slot, unsigned n)
{
    BsstPager *pager = NULL;
    bool freed = false;

    WITH_QEMU_LOCK_GUARD(&s->lock) {
        for (unsigned i = 0; i < n; i++) {
            freed |= slot_table_unref(s->slots, slot[i]);
        }
        if (freed) {
            pager = space_returned_locked(s);
        }
    }
    if (freed) {
        store_punch_later(s);
    }
    tell_space(pager);
}

bool bsst_store_has_space(BsstStore *s)
{
    QEMU_LOCK_GUARD(&s->lock);
    return has_space_locked(s);
}

/* I/O */

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

static uint64_t slot_host_offset(const BsstStore *s, BsstSlot slot,
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

static bool store_verify(BsstStore *s, BsstSlot first, uint32_t n,
                         const uint8_t *buf)
{
    bool ok = true;

    for (uint32_t i = 0; i < n; i++) {
        uint64_t sum = bsst_checksum(buf + (size_t)i * BSST_PAGE_SIZE,
                                     BSST_PAGE_SIZE);
        uint64_t expected;

        WITH_QEMU_LOCK_GUARD(&s->lock) {
            expected = slot_table_checksum(s->slots, first + i);
        }
        if (sum != expected) {
            stat64_add(&s->checksum_errors, 1);
            trace_bsst_store_bad_checksum(s->node_name, first + i);
            ok = false;
        }
    }
    return ok;
}

int coroutine_fn bsst_store_co_read(BsstStore *s, BsstSlot first, uint32_t n,
                                    void *buf)
{
    size_t bytes = (size_t)n * BSST_PAGE_SIZE;
    QEMUIOVector qiov = QEMU_IOVEC_INIT_BUF(qiov, buf, bytes);
    int ret;

    stat64_add(&s->reads, 1);
    stat64_add(&s->read_bytes, bytes);
    ret = store_co_rw(s, s->slots_page + first, n, &qiov, false);
    if (ret < 0) {
        return ret;
    }
    return store_verify(s, first, n, buf) ? 0 : -EILSEQ;
}

int coroutine_fn bsst_store_co_read_retry(BsstStore *s, BsstSlot first,
                                          uint32_t n, void *buf)
{
    int tries = 0, ret;

    do {
        ret = bsst_store_co_read(s, first, n, buf);
    } while (ret < 0 && ++tries < READ_TRIES);
    return ret;
}

void *bsst_store_buffer(BsstStore *s, size_t bytes)
{
    return qemu_try_memalign(BSST_PAGE_SIZE, bytes);
}

/* Space */

typedef struct PunchReq {
    BsstStore *s;
    BsstSlot first;
    uint32_t n;
} PunchReq;

/* In a worker thread, or at the very end in the main thread. */
static int store_punch(void *opaque)
{
    PunchReq *r = opaque;
    BsstSlot first = r->first;
    uint32_t n = r->n;

    while (n) {
        uint32_t piece = n;
        uint64_t offset = slot_host_offset(r->s, first, &piece);

        if (fallocate(r->s->fd, FALLOC_FL_PUNCH_HOLE | FALLOC_FL_KEEP_SIZE,
                      offset, (off_t)piece * BSST_PAGE_SIZE) < 0) {
            return -errno;
        }
        first += piece;
        n -= piece;
    }
    return 0;
}

static bool store_punch_next(BsstStore *s, BsstSlot *pos, uint32_t min,
                             PunchReq *req)
{
    QEMU_LOCK_GUARD(&s->lock);

    req->s = s;
    req->n = slot_table_punch_begin(s->slots, pos, min, PUNCH_MAX_SLOTS,
                                    &req->first);
    return req->n;
}

static void store_punch_done(BsstStore *s, const PunchReq *req, int ret)
{
    BsstPager *pager;

    WITH_QEMU_LOCK_GUARD(&s->lock) {
        slot_table_punch_end(s->slots, req->first, req->n, ret == 0);
        pager = space_returned_locked(s);
    }
    tell_space(pager);
    if (ret == 0) {
        stat64_add(&s->punched_bytes, (uint64_t)req->n * BSST_PAGE_SIZE);
    }
    trace_bsst_store_punch(s->node_name, req->first, req->n, ret);
}

/* Main thread's AioContext. */
static void coroutine_fn store_co_punch_all(void *opaque)
{
    BsstStore *s = opaque;
    uint64_t writes = stat64_get(&s->writes);
    bool busy = writes != s->writes_at_punch;
    BsstSlot pos = 0;
    PunchReq req;

    s->writes_at_punch = writes;
    if (busy) {
        store_punch_later(s);
    }
    while (store_punch_next(s, &pos, busy ? PUNCH_MIN_SLOTS_BUSY
                                          : PUNCH_MIN_SLOTS_IDLE, &req)) {
        int ret = thread_pool_submit_co(store_punch, &req);

        store_punch_done(s, &req, ret);
        if (ret < 0) {
            break;      /* not supported here, or try again next time */
        }
    }
    s->punching = false;
    aio_wait_kick();
}

static void store_punch_timer(void *opaque)
{
    BsstStore *s = opaque;

    /* Before the free slots are looked at */
    qatomic_xchg(&s->punch_soon, false);
    if (!s->punching) {
        s->punching = true;
        qemu_coroutine_enter(qemu_coroutine_create(store_co_punch_all, s));
    }
}

/* Nobody needs the free slots any more: give their space back, bit by bit. */
static void store_forget_free_slots(BsstStore *s)
{
    BsstSlot pos = 0;
    PunchReq req;

    while (store_punch_next(s, &pos, 1, &req)) {
        int ret = store_punch(&req);

        store_punch_done(s, &req, ret);
        if (ret < 0) {
            break;
        }
    }
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

static int coroutine_fn store_co_meta_read(void *opaque, uint64_t offset,
                                           void *buf, size_t bytes)
{
    return store_co_meta(opaque, offset, buf, bytes, false);
}

static int coroutine_fn store_co_meta_write(void *opaque, uint64_t offset,
                                            const void *buf, size_t bytes)
{
    return store_co_meta(opaque, offset, (void *)buf, bytes, true);
}

static int store_thread_flush(void *opaque)
{
    BsstStore *s = opaque;

    return qemu_fdatasync(s->fd) < 0 ? -errno : 0;
}

/* Of all that was written to the descriptor, slots too. */
static int coroutine_fn store_co_flush(void *opaque)
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

static void store_journal_unref(void *opaque, const BsstSlot *slot, unsigned n)
{
    bsst_slot_unref(opaque, slot, n);
}

static void store_journal_checksums(void *opaque, BsstSlot first, unsigned n,
                                    uint64_t *sum)
{
    BsstStore *s = opaque;
    QEMU_LOCK_GUARD(&s->lock);
    uint32_t end = slot_table_size(s->slots);

    for (unsigned i = 0; i < n; i++) {
        bool used = first + i < end && slot_table_refs(s->slots, first + i);

        sum[i] = used ? slot_table_checksum(s->slots, first + i) : 0;
    }
}

static const BsstJournalSlots store_journal_slots = {
    .unref = store_journal_unref,
    .get_checksums = store_journal_checksums,
};

/* Begin and end */

static int coroutine_fn store_co_write_superblock(BsstStore *s)
{
    uint8_t *buf = bsst_store_buffer(s, BSST_SUPERBLOCK_BYTES);
    int ret = -ENOMEM;

    if (buf) {
        bsst_superblock_encode(&s->sb, buf);
        ret = store_co_meta_write(s, 0, buf, BSST_SUPERBLOCK_BYTES);
    }
    if (ret == 0) {
        ret = store_co_flush(s);
    }
    qemu_vfree(buf);
    return ret;
}

/* Take the references that the images' maps own. */
static void store_restore_references(BsstStore *s, bool clean)
{
    BsstImage *image = NULL;

    while ((image = bsst_journal_next_image(s->journal, image))) {
        BsstRecord r = { 0 }, batch[256];
        unsigned n, i;

        /* In batches: the processor then waits for many slots at once. */
        do {
            for (n = 0; n < ARRAY_SIZE(batch) &&
                 durable_map_next_committed(image->map, false,
                                            r.block + r.n, &r); n++) {
                batch[n] = r;
            }
            for (i = 0; i < n; i++) {
                slot_table_restore_ref(s->slots, batch[i].slot, batch[i].n);
            }
        } while (n == ARRAY_SIZE(batch));
    }
    slot_table_restore_done(s->slots, !clean);
}

/* Load the checksums of the slots in use. */
static int coroutine_fn store_co_load_checksums(BsstStore *s)
{
    const uint32_t per_piece = CHECKSUMS_BYTES / sizeof(uint64_t);
    uint32_t nslots = s->sb.nslots;
    uint64_t *buf = bsst_store_buffer(s, CHECKSUMS_BYTES);
    int ret = buf ? 0 : -ENOMEM;

    for (uint64_t first = 0; ret == 0 && first < nslots; first += per_piece) {
        uint32_t n = MIN(nslots - first, per_piece);
        uint32_t i = 0;

        while (i < n && !slot_table_refs(s->slots, first + i)) {
            i++;
        }
        if (i == n) {
            continue;
        }
        ret = store_co_meta_read(s, s->sb.checksums_offset + first * 8, buf,
                                 ROUND_UP(n * 8, BSST_PAGE_SIZE));
        for (; ret == 0 && i < n; i++) {
            if (slot_table_refs(s->slots, first + i)) {
                slot_table_set_checksum(s->slots, first + i,
                                        le64_to_cpu(buf[i]));
            }
        }
    }
    qemu_vfree(buf);
    return ret;
}

static void store_report_recovery(BsstStore *s, bool clean)
{
    BsstJournalStats st;

    bsst_journal_get_stats(s->journal, &st);
    trace_bsst_store_recovered(s->node_name, st.recovered_images,
                               st.recovered_indirections, st.replayed_blocks);
    if (!clean && st.recovered_indirections) {
        info_report("block-swap store '%s' was not closed: recovered %" PRIu64
                    " KiB of %" PRIu64 " disks", s->filename,
                    st.recovered_indirections * (BSST_PAGE_SIZE / KiB),
                    st.recovered_images);
    }
}

typedef struct StoreTask {
    BsstStore *s;
    bool blank;
    Error **errp;
    int ret;
} StoreTask;

/*
 * A blank image becomes a store when its superblock is written, which comes
 * last.  Before that nothing is written to a store that exists.
 */
static int coroutine_fn store_co_start(BsstStore *s, bool blank, Error **errp)
{
    bool clean = blank || s->sb.clean;
    int ret = 0;

    s->journal_io = (BsstJournalIO) {
        .co_read = store_co_meta_read,
        .co_write = store_co_meta_write,
        .co_flush = store_co_flush,
        /* The page cache forgets what it could not write. */
        .flush_errors_are_final = !s->direct,
    };
    if (!s->read_only) {
        s->sb.generation++;
        s->sb.clean = false;
    }
    if (blank) {
        ret = bsst_journal_co_format(&s->sb, &s->journal_io, s);
        if (ret < 0) {
            error_setg_errno(errp, -ret, "Could not format the block-swap "
                             "store '%s'", s->node_name);
            return ret;
        }
    }
    s->slots = slot_table_new(s->sb.nslots);
    s->journal = bsst_journal_co_open(&s->sb, &s->journal_io,
                                      &store_journal_slots, s, s->read_only,
                                      errp);
    if (!s->journal) {
        return -EINVAL;
    }
    store_restore_references(s, clean);
    ret = store_co_load_checksums(s);
    if (ret < 0) {
        error_setg_errno(errp, -ret, "Could not read the checksums of the "
                         "block-swap store '%s'", s->node_name);
        return ret;
    }
    store_report_recovery(s, clean);
    if (!s->read_only) {
        ret = store_co_write_superblock(s);
    }
    if (ret < 0) {
        error_setg_errno(errp, -ret, "Could not write the superblock of the "
                         "block-swap store '%s'", s->node_name);
    }
    return ret;
}

static void coroutine_fn store_co_start_entry(void *opaque)
{
    StoreTask *t = opaque;

    t->ret = store_co_start(t->s, t->blank, t->errp);
    aio_wait_kick();
}

static bool store_start(BsstStore *s, bool blank, Error **errp)
{
    StoreTask t = { .s = s, .blank = blank, .errp = errp, .ret = -EINPROGRESS };

    qemu_coroutine_enter(qemu_coroutine_create(store_co_start_entry, &t));
    AIO_WAIT_WHILE_UNLOCKED(NULL, t.ret == -EINPROGRESS);
    if (t.ret == 0 && !s->read_only && !blank) {
        store_punch_later(s);
    }
    return t.ret == 0;
}

/*
 * The end of a store that is in order.  What is written here only saves time
 * at the next start.
 */
static void coroutine_fn store_co_stop_entry(void *opaque)
{
    StoreTask *t = opaque;
    BsstStore *s = t->s;
    BsstJournalStats st;
    int ret = 0;

    bsst_journal_get_stats(s->journal, &st);
    if (st.used_bytes >= LONG_JOURNAL_BYTES) {
        ret = bsst_journal_co_checkpoint(s->journal);
    }
    if (ret == 0) {
        s->sb.clean = true;
        ret = store_co_write_superblock(s);
    }
    t->ret = ret;
    aio_wait_kick();
}

static void store_stop(BsstStore *s)
{
    StoreTask t = { .s = s, .ret = -EINPROGRESS };

    qemu_coroutine_enter(qemu_coroutine_create(store_co_stop_entry, &t));
    AIO_WAIT_WHILE_UNLOCKED(NULL, t.ret == -EINPROGRESS);
    if (t.ret < 0) {
        warn_report("block-swap store '%s' could not be closed properly: %s; "
                    "it recovers when it is opened again", s->filename,
                    strerror(-t.ret));
    }
}

/* Pager */

void bsst_pager_ref(BsstPager *pager)
{
    qatomic_inc(&pager->refcnt);
}

void bsst_pager_unref(BsstPager *pager)
{
    if (pager && qatomic_fetch_dec(&pager->refcnt) == 1) {
        pager->ops->free(pager);
    }
}

bool bsst_store_set_pager(BsstStore *s, BsstPager *pager, Error **errp)
{
    QEMU_LOCK_GUARD(&s->lock);

    if (s->pager) {
        error_setg(errp, "The block-swap store '%s' has a host-swapper "
                   "already", s->node_name);
        return false;
    }
    if (s->read_only) {
        error_setg(errp, "The block-swap store '%s' is read-only; "
                   "host-swapper needs it with read-only=off", s->node_name);
        return false;
    }
    bsst_pager_ref(pager);
    s->pager = pager;
    return true;
}

void bsst_store_clear_pager(BsstStore *s, BsstPager *pager)
{
    WITH_QEMU_LOCK_GUARD(&s->lock) {
        if (s->pager != pager) {
            return;
        }
        s->pager = NULL;
    }
    bsst_pager_unref(pager);
}

void bsst_store_set_armed(BsstStore *s, bool armed)
{
    qatomic_set(&s->armed, armed);
}

BsstPager *bsst_store_get_pager(BsstStore *s)
{
    BsstPager *pager;

    if (!qatomic_read(&s->armed)) {
        return NULL;
    }
    QEMU_LOCK_GUARD(&s->lock);
    pager = s->pager;
    if (!pager || !qatomic_read(&pager->armed)) {
        return NULL;
    }
    bsst_pager_ref(pager);
    return pager;
}

/* Statistics */

static BsstJournalInfo *store_query_journal(BsstStore *s)
{
    BsstJournalInfo *info = g_new0(BsstJournalInfo, 1);
    BsstJournalStats st;

    bsst_journal_get_stats(s->journal, &st);
    info->recovered_indirections = st.recovered_indirections;
    info->recovered_images = st.recovered_images;
    info->replayed_blocks = st.replayed_blocks;
    info->commits = st.commits;
    info->records = st.records;
    info->recorded_blocks = st.recorded_blocks;
    info->journal_bytes = st.journal_bytes;
    info->checksum_bytes = st.checksum_bytes;
    info->checkpoints = st.checkpoints;
    info->checkpoint_bytes = st.checkpoint_bytes;
    info->flushes = st.flushes;
    info->errors = st.errors;
    info->used_bytes = st.used_bytes;
    return info;
}

typedef struct StoreQueryImages {
    BsstStore *s;
    BsstImageInfoList *list;
    bool done;
} StoreQueryImages;

/* The images' locks are taken by coroutines only. */
static void coroutine_fn store_co_query_images(void *opaque)
{
    StoreQueryImages *q = opaque;
    BsstImageInfoList **tail = &q->list;
    BsstImage *image = NULL;

    while ((image = bsst_journal_next_image(q->s->journal, image))) {
        BsstImageInfo *info = g_new0(BsstImageInfo, 1);
        QemuUUID uuid;

        memcpy(uuid.data, image->entry.uuid, sizeof(uuid.data));
        info->uuid = qemu_uuid_unparse_strdup(&uuid);
        info->filename = g_strdup(image->entry.name);
        info->generation = image->entry.generation;
        info->attached = image->attached;
        info->raw = image->entry.raw;
        WITH_QEMU_LOCK_GUARD(&image->lock) {
            const IndirectMap *map = durable_map_current(image->map);

            info->indirections = indirect_map_count(map);
            info->held_slots = durable_map_weight(image->map) -
                               info->indirections;
            info->pending = durable_map_changed(image->map) ||
                            durable_map_preparing(image->map);
        }
        QAPI_LIST_APPEND(tail, info);
    }
    q->done = true;
    aio_wait_kick();
}

static BsstImageInfoList *store_query_images(BsstStore *s)
{
    StoreQueryImages q = { .s = s };

    GLOBAL_STATE_CODE();
    qemu_coroutine_enter(qemu_coroutine_create(store_co_query_images, &q));
    AIO_WAIT_WHILE_UNLOCKED(NULL, !q.done);
    return q.list;
}

BsstStoreStats *bsst_store_query(BsstStore *s)
{
    BsstStoreStats *st = g_new0(BsstStoreStats, 1);

    st->node_name = g_strdup(s->node_name);
    st->uuid = qemu_uuid_unparse_strdup(&s->uuid);
    st->aio = s->aio;
    WITH_QEMU_LOCK_GUARD(&s->lock) {
        st->slots = slot_table_size(s->slots);
        st->slots_free = slot_table_nfree(s->slots);
        st->slots_backed = slot_table_nbacked(s->slots);
        st->metadata_bytes = slot_table_bytes(s->slots);
        st->full = s->full;
    }
    st->reads = stat64_get(&s->reads);
    st->read_bytes = stat64_get(&s->read_bytes);
    st->writes = stat64_get(&s->writes);
    st->write_bytes = stat64_get(&s->write_bytes);
    st->punched_bytes = stat64_get(&s->punched_bytes);
    st->checksum_errors = stat64_get(&s->checksum_errors);
    st->io_errors = stat64_get(&s->io_errors);
    st->generation = s->sb.generation;
    st->journal = store_query_journal(s);
    st->images = store_query_images(s);
    return st;
}
