/*
 * bsst block driver: which image of the store this is, and its guard
 *
 * A store knows its images by UUID.  A qcow2 image has its own UUID in its
 * header, together with the store's and a generation; a raw image has one that
 * is made from its file name.
 *
 * Attaching an image, before the first change in a session (B8):
 *
 *   0. the image's header says which entry is, or will be, its own (with
 *      generation g = 0 then, and without the guard's bit)
 *   1. the store's entry announces generation g + 1
 *   2. the image's header says g + 1, with the guard's bit
 *   3. the store's entry says g + 1
 *
 * each durable before the next.  So an image that says what its entry says, or
 * announces, is the one that was used last, whatever step a crash came after.
 * Step 0 is for a crash that comes between 1 and 2: the entry is found again.
 * And what was read from a header is not durable, if the process that wrote it
 * has died: it is written once more before anything relies on it.
 *
 * Leaving for good, when there are no entries any more, not in the journal
 * either, and the image is durable:
 *
 *   1. the guard's bit is cleared; header extension and generation stay
 *   2. the store's entry is removed
 *
 * A crash in between leaves an image that is complete, and an entry without
 * indirections.  The extension lets us find it again.
 *
 * This work is licensed under the terms of the GNU GPL, version 2 or later.
 * See the COPYING file in the top-level directory.
 */

#include "qemu/osdep.h"
#include "block/aio-wait.h"
#include "block/block_int.h"
#include "bsst-int.h"
#include "qapi/error.h"
#include "qemu/cutils.h"
#include "qemu/error-report.h"
#include "qemu/lockable.h"
#include "trace.h"

/* Which image */

/* The name of a file that was passed as a descriptor */
static char *bsst_fdset_name(const char *name)
{
    g_autofree char *link = NULL;
    char *path;
    int fd = qemu_open(name, O_RDONLY, NULL);

    if (fd < 0) {
        return g_strdup(name);
    }
    link = g_strdup_printf("/proc/self/fd/%d", fd);
    path = g_file_read_link(link, NULL);
    qemu_close(fd);
    return path ?: g_strdup(name);
}

/* The file's name, so that it is the same at the next start. */
static char *bsst_image_name(BlockDriverState *image)
{
    const char *name = image->exact_filename[0] ? image->exact_filename
                                                : image->filename;
    g_autofree char *path = NULL;

    if (!strstart(name, "file:", &name)) {
        strstart(name, "host_device:", &name);
    }
    if (strstart(name, "/dev/fdset/", NULL)) {
        return bsst_fdset_name(name);
    }
    path = realpath(name, NULL);
    return g_strdup(path ?: name);
}

/* A name-based UUID (RFC 4122, version 5, without a name space). */
static void bsst_raw_uuid(const char *name, QemuUUID *uuid)
{
    g_autoptr(GChecksum) sha1 = g_checksum_new(G_CHECKSUM_SHA1);
    uint8_t digest[20];
    gsize len = sizeof(digest);

    g_checksum_update(sha1, (const guchar *)name, -1);
    g_checksum_get_digest(sha1, digest, &len);
    memcpy(uuid->data, digest, sizeof(uuid->data));
    uuid->data[6] = (uuid->data[6] & 0x0f) | 0x50;
    uuid->data[8] = (uuid->data[8] & 0x3f) | 0x80;
}

static bool bsst_check_store(const BDRVBsstState *s, const char *name,
                             const Qcow2BsstGuard *guard, Error **errp)
{
    g_autofree char *theirs = NULL;
    g_autofree char *ours = NULL;

    if (qemu_uuid_is_equal(&guard->store, bsst_store_uuid(s->store))) {
        return true;
    }
    theirs = qemu_uuid_unparse_strdup(&guard->store);
    ours = qemu_uuid_unparse_strdup(bsst_store_uuid(s->store));
    error_setg(errp, "Image '%s' is guarded by the block-swap store %s, but "
               "node '%s' is the store %s", name, theirs,
               bsst_store_node_name(s->store), ours);
    error_append_hint(errp, "Open it together with its own store.\n");
    return false;
}

static bool bsst_is_of_age(const Qcow2BsstGuard *guard, const BsstImage *image)
{
    return guard->generation == image->entry.generation ||
           guard->generation == image->entry.announced;
}

/* The image's header and the store's entry must be of the same age. */
static bool bsst_check_generation(const BDRVBsstState *s, const char *name,
                                  const Qcow2BsstGuard *guard,
                                  const BsstImage *image, Error **errp)
{
    const char *node = bsst_store_node_name(s->store);

    if (!image) {
        error_setg(errp, "Image '%s' is guarded, but its block-swap store "
                   "'%s' does not know it", name, node);
        error_append_hint(errp, "Either the image was removed from the store, "
                          "and this is an old copy of it: use the newest one. "
                          " Or the store's file is an old copy: bring back "
                          "the newest one.\n");
        return false;
    }
    if (bsst_is_of_age(guard, image)) {
        return true;
    }
    if (guard->generation < image->entry.generation) {
        error_setg(errp, "Image '%s' is outdated: it is of generation %"
                   PRIu64 ", but was used as generation %" PRIu64 " with the "
                   "block-swap store '%s' later", name, guard->generation,
                   image->entry.generation, node);
        error_append_hint(errp, "It is an old copy, perhaps from a backup: "
                          "use the newest one, or bring back image and store "
                          "from the same backup.\n");
    } else {
        error_setg(errp, "The block-swap store '%s' is outdated: it knows "
                   "image '%s' as of generation %" PRIu64 ", but the image is "
                   "of generation %" PRIu64, node, name,
                   image->entry.generation, guard->generation);
        error_append_hint(errp, "The store's file is an old copy, perhaps "
                          "from a backup: use the newest one, or bring back "
                          "image and store from the same backup.\n");
    }
    return false;
}

/* An unguarded image whose entry has survived: see above. */
static bool bsst_can_reuse(const BDRVBsstState *s, const Qcow2BsstGuard *guard,
                           const BsstImage *image)
{
    return image && !image->attached && !image->entry.raw &&
           qemu_uuid_is_equal(&guard->store, bsst_store_uuid(s->store)) &&
           bsst_is_of_age(guard, image) && !durable_map_weight(image->map);
}

static bool bsst_find_guarded(BDRVBsstState *s, BlockDriverState *bs,
                              const char *name, QemuUUID *uuid, Error **errp)
{
    BsstJournal *j = bsst_store_journal(s->store);
    Qcow2BsstGuard guard;

    qcow2_get_bsst_guard(bs, &guard);
    s->guarded = guard.set;
    s->generation = guard.generation;
    s->image = bsst_journal_find_image(j, guard.image.data);
    *uuid = guard.image;
    if (guard.set) {
        return bsst_check_store(s, name, &guard, errp) &&
               bsst_check_generation(s, name, &guard, s->image, errp);
    }
    if (!bsst_can_reuse(s, &guard, s->image)) {
        s->image = NULL;
        s->generation = 0;
        qemu_uuid_generate(uuid);
    }
    return true;
}

bool bsst_find_image(BDRVBsstState *s, BlockDriverState *image,
                     BsstRawImage raw_image, Error **errp)
{
    ERRP_GUARD();
    BsstJournal *j = bsst_store_journal(s->store);
    g_autofree char *name = bsst_image_name(image);
    QemuUUID uuid;

    s->can_guard = qcow2_can_bsst_guard(image, errp);
    if (s->can_guard) {
        if (!bsst_find_guarded(s, image, name, &uuid, errp)) {
            s->image = NULL;
            return false;
        }
    } else if (image->drv == &bdrv_qcow2) {
        return false;
    } else if (raw_image != BSST_RAW_IMAGE_ALLOW) {
        error_append_hint(errp, "Use a qcow2 image, or raw-image=allow if "
                          "nobody else will open this one before it was "
                          "closed cleanly.\n");
        return false;
    } else {
        error_free(*errp);
        *errp = NULL;
        bsst_raw_uuid(name, &uuid);
        s->image = bsst_journal_find_image(j, uuid.data);
    }

    if (s->image && s->image->attached) {
        s->image = NULL;
        error_setg(errp, "Image '%s', or a copy of it, is in use by another "
                   "bsst node", name);
        return false;
    }
    if (!s->image) {
        s->image = bsst_journal_add_image(j, uuid.data, !s->can_guard, name,
                                          image->total_sectors *
                                          BDRV_SECTOR_SIZE);
    }
    s->image->attached = true;
    return true;
}

typedef struct BsstLeave {
    BsstImage *image;
    int ret;
} BsstLeave;

static void coroutine_fn bsst_co_leave_entry(void *opaque)
{
    BsstLeave *l = opaque;

    l->ret = bsst_journal_co_remove_image(l->image, false);
    aio_wait_kick();
}

void bsst_leave_image(BDRVBsstState *s)
{
    BsstLeave l = { .image = s->image, .ret = -EINPROGRESS };

    GLOBAL_STATE_CODE();
    s->image = NULL;
    l.image->attached = false;
    if (l.image->entry.in_use &&
        (s->guarded || (s->can_guard && !s->header_durable) ||
         durable_map_weight(l.image->map) || bsst_store_read_only(s->store))) {
        return;
    }
    qemu_coroutine_enter(qemu_coroutine_create(bsst_co_leave_entry, &l));
    AIO_WAIT_WHILE_UNLOCKED(NULL, qatomic_read(&l.ret) == -EINPROGRESS);
    if (l.ret < 0) {
        warn_report("bsst: an image that is complete could not be removed "
                    "from the block-swap store '%s': %s; this does no harm",
                    bsst_store_node_name(s->store), strerror(-l.ret));
    }
}

/* Guard */

static int coroutine_fn GRAPH_RDLOCK
bsst_co_write_guard(BlockDriverState *bs, bool set, uint64_t generation)
{
    BDRVBsstState *s = bs->opaque;
    Qcow2BsstGuard guard = {
        .set = set,
        .store = *bsst_store_uuid(s->store),
        .generation = generation,
    };
    int ret;

    memcpy(guard.image.data, s->image->entry.uuid, sizeof(guard.image.data));
    ret = qcow2_co_set_bsst_guard(bdrv_skip_filters(bs->file->bs), &guard);
    trace_bsst_guard(bs, set, generation, ret);
    if (ret == 0) {
        s->generation = generation;
        s->header_durable = true;
        qatomic_store_release(&s->guarded, set);
    }
    return ret;
}

/*
 * The image may have shrunk, and we died before this was recorded: what is
 * beyond its end must not come back should it grow again.  No request covers
 * it.  A block that the end cuts is left to bsst_co_truncate().
 */
static int coroutine_fn GRAPH_RDLOCK bsst_co_trim(BlockDriverState *bs)
{
    BDRVBsstState *s = bs->opaque;
    int64_t bytes = bdrv_co_getlength(bs->file->bs);
    BsstSlot none = BSST_SLOT_NONE, old, drop;
    uint64_t block;

    if (bytes < 0) {
        return bytes;
    }
    block = bsst_block_up(bytes);
    WITH_QEMU_LOCK_GUARD(&s->image->lock) {
        while (indirect_map_next(bsst_map(s), block, &block, NULL)) {
            bsst_image_set_locked(s->image, block, &none, 1, &old, &drop);
            if (drop != BSST_SLOT_NONE) {
                bsst_slot_unref(s->store, &drop, 1);
            }
            stat64_add(&s->removed[BSST_REMOVE_TRUNCATE], 1);
        }
        bsst_map_publish_locked(s);
    }
    return 0;
}

/* Under guard_lock. */
static int coroutine_fn GRAPH_RDLOCK bsst_co_attach_locked(BlockDriverState *bs)
{
    BDRVBsstState *s = bs->opaque;
    BsstImageEntry *entry = &s->image->entry;
    int ret = 0;

    if (s->can_guard && !s->header_durable) {
        ret = bsst_co_write_guard(bs, s->guarded, s->generation);
    }
    if (ret == 0 && entry->announced != entry->generation &&
        entry->announced == s->generation) {
        /* A crash came before step 3: the next number is another one. */
        ret = bsst_journal_co_attached(s->image);
    }
    if (ret == 0) {
        ret = bsst_journal_co_announce(s->image);
    }
    if (ret == 0 && s->can_guard) {
        ret = bsst_co_write_guard(bs, true, entry->announced);
    }
    if (ret == 0) {
        ret = bsst_journal_co_attached(s->image);
    }
    return ret ?: bsst_co_trim(bs);
}

int coroutine_fn bsst_co_attach(BlockDriverState *bs)
{
    BDRVBsstState *s = bs->opaque;
    int ret;

    if (bsst_is_attached(s)) {
        return 0;
    }

    QEMU_LOCK_GUARD(&s->guard_lock);
    if (s->attached) {
        return 0;
    }
    ret = bsst_co_attach_locked(bs);
    trace_bsst_attach(bs, s->image->entry.generation, ret);
    if (ret == 0) {
        qatomic_store_release(&s->attached, true);
    } else if (!s->guard_warned) {
        s->guard_warned = true;
        warn_report("bsst: '%s' cannot use the block-swap store: %s",
                    bs->file->bs->filename,
                    ret == -ENOSPC ? "the store's image table, the image's "
                                     "header, or a device is full"
                                   : strerror(-ret));
    }
    return ret;
}

int coroutine_fn bsst_co_unguard(BlockDriverState *bs)
{
    BDRVBsstState *s = bs->opaque;
    int ret = 0;

    QEMU_LOCK_GUARD(&s->guard_lock);
    WITH_QEMU_LOCK_GUARD(&s->image->lock) {
        assert(!durable_map_weight(s->image->map) &&
               !durable_map_changed(s->image->map)); /* B6 */
    }
    if (s->guarded || (s->can_guard && !s->header_durable &&
                       s->image->entry.in_use)) {
        ret = bsst_co_write_guard(bs, false, s->generation);
    }
    if (ret == 0) {
        qatomic_set(&s->attached, false);
    }
    return ret;
}
