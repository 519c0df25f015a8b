/*
 * The block-swap store: what can be one, and where it lies
 *
 * The store's node is opened, locked and its format resolved through the
 * block layer, once.  S1 (see bsst-store.c) makes what is found here last.
 *
 * This work is licensed under the terms of the GNU GPL, version 2 or later.
 * See the COPYING file in the top-level directory.
 */

#include "qemu/osdep.h"
#include "block/block_int.h"
#include "bsst-store-int.h"
#include "qapi/error.h"
#include "qemu/cutils.h"
#include "qemu/units.h"

/* Locked on our descriptor; file-posix.c uses bytes from 100 and from 200. */
#define STORE_LOCK_BYTE     300
#define LOCK_TRIES          40
#define LOCK_RETRY_US       50000

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

/* Only who writes can make a new store, or go on with it. */
static bool store_check_writable(const BsstStore *s, const char *why,
                                 Error **errp)
{
    if (s->read_only) {
        error_setg(errp, "Node '%s' is not a block-swap store yet: %s; open "
                   "it with read-only=off once", s->node_name, why);
    }
    return !s->read_only;
}

/*
 * Read the superblock, or make one up for a blank image.  *@blank tells that
 * all else has to be made yet.
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
    if (*blank) {
        if (!store_check_writable(s, "it is blank", errp)) {
            return false;
        }
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
    *blank |= s->sb.unfinished;
    return !s->sb.unfinished ||
           store_check_writable(s, "making it was cut off", errp);
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

bool bsst_store_examine(BsstStore *s, BlockDriverState *bs, bool *blank,
                        Error **errp)
{
    BlockDriverState *protocol;

    if (!store_check_protocol(s, bs, errp) ||
        !store_load_superblock(s, blank, errp)) {
        return false;
    }
    bdrv_graph_rdlock_main_loop();
    protocol = store_resolve(s, errp);
    bdrv_graph_rdunlock_main_loop();
    return protocol && store_open_fd(s, protocol, errp);
}
