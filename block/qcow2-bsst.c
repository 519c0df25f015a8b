/*
 * qcow2: the guard of an image whose blocks may be in a block-swap store
 *
 * Header extension (all integers big-endian):
 *
 *    Byte   0 - 15:  UUID of the store
 *          16 - 23:  generation
 *          24 - 39:  UUID of the image
 *
 * It must be present if the incompatible feature bit is set.
 *
 * A power cut may tear the header between sectors, and must leave the old one
 * or the new one nevertheless:
 *
 *   The first sector holds all of a header that has the extension, but the
 *   name of the backing file.  What it refers to is durable before it is
 *   written, and not in the way of what the first sector on disk refers to.
 *
 * So qcow2_update_header() leaves out the names of QEMU's other features, and
 * fails with -ENOSPC if extensions of the image need more than is left.  The
 * name stays where it is; if it is new, or where extensions come to lie, it is
 * written beside the old one.
 *
 * This work is licensed under the terms of the GNU GPL, version 2 or later.
 * See the COPYING file in the top-level directory.
 */

#include "qemu/osdep.h"
#include "block/block-io.h"
#include "block/block_int.h"
#include "qcow2.h"
#include "bsst/qcow2-guard.h"
#include "qapi/error.h"
#include "qemu/lockable.h"

QEMU_BUILD_BUG_ON(sizeof(Qcow2BsstHeaderExt) != 40);

static bool qcow2_is_bsst_guarded(BDRVQcow2State *s)
{
    return s->incompatible_features & QCOW2_INCOMPAT_BSST;
}

bool qcow2_can_bsst_guard(BlockDriverState *bs, Error **errp)
{
    BDRVQcow2State *s = bs->opaque;

    if (bs->drv != &bdrv_qcow2) {
        error_setg(errp, "Format '%s' of '%s' has no room for the guard that "
                   "keeps others away while blocks are in the store",
                   bs->drv ? bs->drv->format_name : "none", bs->filename);
        return false;
    }
    if (s->qcow_version < 3) {
        error_setg(errp, "'%s' is a qcow2 image of version %d, which has no "
                   "feature bits", bs->filename, s->qcow_version);
        error_append_hint(errp, "Upgrade it with: qemu-img amend -f qcow2 "
                          "-o compat=1.1 %s\n", bs->filename);
        return false;
    }
    return true;
}

void qcow2_get_bsst_guard(BlockDriverState *bs, Qcow2BsstGuard *guard)
{
    BDRVQcow2State *s = bs->opaque;

    assert(bs->drv == &bdrv_qcow2);
    guard->set = qcow2_is_bsst_guarded(s);
    guard->generation = be64_to_cpu(s->bsst_guard.generation);
    memcpy(guard->store.data, s->bsst_guard.uuid, sizeof(guard->store.data));
    memcpy(guard->image.data, s->bsst_guard.image_uuid,
           sizeof(guard->image.data));
}

/*
 * Find a place for @name, which does not fit into the first sector behind
 * @extensions_end.  Returns its offset, or -errno.
 */
static int GRAPH_RDLOCK
qcow2_bsst_place_name(BlockDriverState *bs, const char *name, size_t len,
                      size_t extensions_end)
{
    BDRVQcow2State *s = bs->opaque;
    char old_name[1024];
    uint64_t old_offset, old_end;
    uint32_t old_len;
    QCowHeader old;
    int ret;

    ret = bdrv_pread(bs->file, 0, sizeof(old), &old, 0);
    if (ret < 0) {
        return ret;
    }
    old_offset = be64_to_cpu(old.backing_file_offset);
    old_len = be32_to_cpu(old.backing_file_size);
    if (old_offset > s->cluster_size || old_len >= sizeof(old_name) ||
        old_len > s->cluster_size - old_offset) {
        return -EIO;
    }
    ret = bdrv_pread(bs->file, old_offset, old_len, old_name, 0);
    if (ret < 0) {
        return ret;
    }

    if (old_offset >= extensions_end && old_len == len &&
        !memcmp(old_name, name, len)) {
        return old_offset;
    }
    /* Others' extensions may be anywhere before the old name */
    old_end = MAX(old_offset + old_len, BDRV_SECTOR_SIZE);
    if (len <= s->cluster_size - old_end) {
        return old_end;
    }
    /* But these are no others' if there is so little room behind it */
    return BDRV_SECTOR_SIZE + len <= old_offset ? BDRV_SECTOR_SIZE : -ENOSPC;
}

int qcow2_write_bsst_header(BlockDriverState *bs, QCowHeader *header)
{
    char *buf = (char *)header;
    size_t name = be64_to_cpu(header->backing_file_offset);
    size_t len = be32_to_cpu(header->backing_file_size);
    int offset, ret;

    if (name + len > BDRV_SECTOR_SIZE) {
        offset = qcow2_bsst_place_name(bs, buf + name, len, name);
        if (offset < 0) {
            return offset;
        }
        memmove(buf + offset, buf + name, len);
        header->backing_file_offset = cpu_to_be64(offset);
        /* Also if it is there: who wrote it may have died before a flush */
        ret = bdrv_pwrite(bs->file, offset, len, buf + offset, 0);
        if (ret == 0) {
            ret = bdrv_flush(bs->file->bs);
        }
        if (ret < 0) {
            return ret;
        }
    }
    return bdrv_pwrite(bs->file, 0, BDRV_SECTOR_SIZE, buf, 0);
}

int coroutine_fn
qcow2_co_set_bsst_guard(BlockDriverState *bs, const Qcow2BsstGuard *guard)
{
    BDRVQcow2State *s = bs->opaque;
    Qcow2BsstHeaderExt old_ext;
    uint64_t old_features;
    int ret;

    QEMU_LOCK_GUARD(&s->lock);
    old_ext = s->bsst_guard;
    old_features = s->incompatible_features;

    s->bsst_guard.generation = cpu_to_be64(guard->generation);
    memcpy(s->bsst_guard.uuid, guard->store.data, sizeof(s->bsst_guard.uuid));
    memcpy(s->bsst_guard.image_uuid, guard->image.data,
           sizeof(s->bsst_guard.image_uuid));

    if (guard->set) {
        s->incompatible_features |= QCOW2_INCOMPAT_BSST;
    } else {
        s->incompatible_features &= ~(uint64_t)QCOW2_INCOMPAT_BSST;
    }
    ret = qcow2_update_header(bs);
    if (ret == 0) {
        ret = bdrv_co_flush(bs->file->bs);
    }
    if (ret < 0) {
        s->incompatible_features = old_features;
        s->bsst_guard = old_ext;
    }
    return ret;
}

int qcow2_bsst_check_perm(BlockDriverState *bs, uint64_t perm, uint64_t shared,
                          Error **errp)
{
    BDRVQcow2State *s = bs->opaque;
    const uint64_t uses_data = BLK_PERM_CONSISTENT_READ | BLK_PERM_WRITE |
                               BLK_PERM_WRITE_UNCHANGED | BLK_PERM_RESIZE;
    g_autofree char *uuid = NULL;
    QemuUUID id;

    /* Only a bsst node shares no consistent read. */
    if (!qcow2_is_bsst_guarded(s) || !(perm & uses_data) ||
        !(shared & BLK_PERM_CONSISTENT_READ) ||
        (bs->open_flags & BDRV_O_BSST)) {
        return 0;
    }

    memcpy(id.data, s->bsst_guard.uuid, sizeof(id.data));
    uuid = qemu_uuid_unparse_strdup(&id);
    error_setg(errp, "Image '%s' is guarded: some of its blocks may be in the "
               "block-swap store %s", bs->filename, uuid);
    error_append_hint(errp, "Open it together with that store, through -drive "
                      "...,bsst=on or driver=bsst,store=NODE.\n");
    return -EPERM;
}
