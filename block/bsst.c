/*
 * bsst block driver: a guest disk some of whose blocks are in the block-swap
 * store
 *
 * When the guest writes a page to disk that the host has swapped out, the page
 * is not brought in and written: the disk block becomes an indirection to the
 * slot of the store that already holds the content.  bsst-int.h has the
 * invariants.
 *
 * The node's data differ from its child's, so it is not a filter, and nobody
 * else may use the child.  What the block layer forwards for filters is
 * forwarded here by hand; what must not be forwarded (internal snapshots,
 * copy offloading, compressed writes, FUA) is absent on purpose.  The store is
 * no child: that would tie its AioContext to ours.
 *
 * This work is licensed under the terms of the GNU GPL, version 2 or later.
 * See the COPYING file in the top-level directory.
 */

#include "qemu/osdep.h"
#include "block/block_int.h"
#include "bsst-int.h"
#include "block/qdict.h"
#include "bsst/bsst.h"
#include "migration/blocker.h"
#include "qapi/error.h"
#include "qapi/qapi-types-block-core.h"
#include "qapi/util.h"
#include "qemu/cutils.h"
#include "qemu/error-report.h"
#include "qemu/module.h"
#include "qemu/option.h"
#include "qemu/units.h"
#include "qobject/qdict.h"
#include "trace.h"

static QemuOptsList bsst_runtime_opts = {
    .name = "bsst",
    .head = QTAILQ_HEAD_INITIALIZER(bsst_runtime_opts.head),
    .desc = {
        {
            .name = "aio",
            .type = QEMU_OPT_STRING,
            .help = "how the store's own I/O is done",
        }, {
            .name = "raw-image",
            .type = QEMU_OPT_STRING,
            .help = "images without a guard (refuse, allow)",
        }, {
            .name = "drain-on-close",
            .type = QEMU_OPT_BOOL,
            .help = "copy what is in the store into the image at the end",
        }, {
            .name = "defrag",
            .type = QEMU_OPT_STRING,
            .help = "copy blocks back into the image while the disk is idle "
                    "(off, auto)",
        }, {
            .name = "x-test-indirect",
            .type = QEMU_OPT_NUMBER,
            .help = "for tests: seed of the blocks that go to the store",
        },
        { /* end of list */ }
    },
};

/* What the user asked for. */
typedef struct BsstOptions {
    BlockdevAioOptions aio;
    BsstRawImage raw_image;
    OnOffAuto drain_on_close;
    BsstDefragPolicy defrag;
    uint64_t test_seed;
} BsstOptions;

/* Take our options, without the store, out of @options. */
static bool bsst_parse_options(BsstOptions *o, QDict *options, Error **errp)
{
    ERRP_GUARD();
    QemuOpts *opts = qemu_opts_create(&bsst_runtime_opts, NULL, 0,
                                      &error_abort);

    if (qemu_opts_absorb_qdict(opts, options, errp)) {
#ifdef CONFIG_LINUX_IO_URING
        o->aio = BLOCKDEV_AIO_OPTIONS_IO_URING;
#else
        o->aio = BLOCKDEV_AIO_OPTIONS_THREADS;
#endif
        o->aio = qapi_enum_parse(&BlockdevAioOptions_lookup,
                                 qemu_opt_get(opts, "aio"), o->aio, errp);
    }
    if (!*errp) {
        o->raw_image = qapi_enum_parse(&BsstRawImage_lookup,
                                       qemu_opt_get(opts, "raw-image"),
                                       BSST_RAW_IMAGE_REFUSE, errp);
        if (!*errp) {
            o->defrag = qapi_enum_parse(&BsstDefragPolicy_lookup,
                                        qemu_opt_get(opts, "defrag"),
                                        BSST_DEFRAG_POLICY_AUTO, errp);
        }
        if (qemu_opt_get(opts, "drain-on-close")) {
            o->drain_on_close = qemu_opt_get_bool(opts, "drain-on-close", 0)
                                ? ON_OFF_AUTO_ON : ON_OFF_AUTO_OFF;
        }
        o->test_seed = qemu_opt_get_number(opts, "x-test-indirect", 0);
    }
    qemu_opts_del(opts);
    return !*errp;
}

/*
 * Open the store: a node that exists (store=NAME), or one that is opened for
 * us only (store.driver=...), as tools need it that have no -blockdev.
 */
static BsstStore *bsst_open_store(BlockDriverState *bs, QDict *options,
                                  BlockdevAioOptions aio, Error **errp)
{
    g_autofree char *name = g_strdup(qdict_get_try_str(options, "store"));
    const int flags = BDRV_O_RDWR | BDRV_O_CACHE_MASK;
    QDict *store_options;
    BlockDriverState *node;
    BsstStore *store;

    qdict_del(options, "store");
    qdict_extract_subqdict(options, &store_options, "store.");
    if (!name && !qdict_size(store_options)) {
        error_setg(errp, "Parameter 'store' is missing");
        qobject_unref(store_options);
        return NULL;
    }
    if (!qdict_size(store_options)) {
        qobject_unref(store_options);
        store_options = NULL;
    }
    node = bdrv_open(NULL, name, store_options, bs->open_flags & flags, errp);
    if (!node) {
        error_prepend(errp, "Could not open the block-swap store: ");
        return NULL;
    }
    store = bsst_store_open(bdrv_get_node_name(node), aio, errp);
    bdrv_unref(node);
    return store;
}

/* The inode of the file that a protocol node has open. */
static bool bsst_stat_node(BlockDriverState *bs, struct stat *st)
{
    const char *name = bs->exact_filename;
    int fd, ret;

    if (!name[0]) {
        return false;
    }
    strstart(name, "file:", &name);
    if (!strstart(name, "/dev/fdset/", NULL)) {
        return stat(name, st) == 0;
    }
    fd = qemu_open(name, O_RDONLY, NULL);
    if (fd < 0) {
        return false;
    }
    ret = fstat(fd, st);
    qemu_close(fd);
    return ret == 0;
}

/* Refuse an image one of whose files, backing files included, is the store. */
static bool GRAPH_RDLOCK bsst_check_inode(BlockDriverState *bs,
                                          BsstStore *store, Error **errp)
{
    BdrvChild *child;
    struct stat st;

    if (QLIST_EMPTY(&bs->children) && bsst_stat_node(bs, &st) &&
        bsst_store_is_inode(store, st.st_dev, st.st_ino)) {
        error_setg(errp, "'%s' is the block-swap store itself",
                   bs->exact_filename);
        error_append_hint(errp, "A store and a guest disk need a file each.\n");
        return false;
    }
    QLIST_FOREACH(child, &bs->children, next) {
        if (!bsst_check_inode(child->bs, store, errp)) {
            return false;
        }
    }
    return true;
}

static bool bsst_check_store_writable(const BDRVBsstState *s, Error **errp)
{
    if (!bsst_store_read_only(s->store)) {
        return true;
    }
    error_setg(errp, "The block-swap store '%s' is read-only",
               bsst_store_node_name(s->store));
    error_append_hint(errp, "Open it with read-only=off, or add read-only=on "
                      "to the bsst node.\n");
    return false;
}

static int bsst_open_image(BlockDriverState *bs, const BsstOptions *o,
                           Error **errp)
{
    BDRVBsstState *s = bs->opaque;
    BlockDriverState *image;

    GRAPH_RDLOCK_GUARD_MAINLOOP();

    if (!bdrv_is_read_only(bs) && bdrv_is_read_only(bs->file->bs)) {
        error_setg(errp, "Image '%s' is read-only",
                   bs->file->bs->filename);
        error_append_hint(errp, "Add read-only=on to the bsst node.\n");
        return -EACCES;
    }
    if (!bdrv_is_read_only(bs) && !bsst_check_store_writable(s, errp)) {
        return -EACCES;
    }
    image = bdrv_skip_filters(bs->file->bs);
    bdrv_refresh_filename(image);
    if (!bsst_check_inode(image, s->store, errp) ||
        !bsst_find_image(s, image, o->raw_image, errp)) {
        return -EINVAL;
    }
    s->drain_on_close = o->drain_on_close == ON_OFF_AUTO_ON ||
        (o->drain_on_close == ON_OFF_AUTO_AUTO && !s->can_guard);
    bsst_map_publish_locked(s);

    bs->total_sectors = bs->file->bs->total_sectors;
    bs->supported_write_flags = BDRV_REQ_WRITE_UNCHANGED;
    bs->supported_zero_flags = BDRV_REQ_WRITE_UNCHANGED |
        ((BDRV_REQ_MAY_UNMAP | BDRV_REQ_NO_FALLBACK) &
         bs->file->bs->supported_zero_flags);
    bs->supported_truncate_flags = bs->file->bs->supported_truncate_flags &
                                   BDRV_REQ_ZERO_WRITE;
    return 0;
}

static int bsst_block_migration(BlockDriverState *bs, Error **errp)
{
    BDRVBsstState *s = bs->opaque;

    if (bs->open_flags & BDRV_O_INACTIVE) {
        error_setg(errp, "The bsst driver does not support incoming "
                   "migration");
        return -ENOTSUP;
    }
    error_setg(&s->migration_blocker, "Node '%s' is a bsst disk, which "
               "does not support live migration and snapshots of the VM "
               "state; start the VM without bsst=on for these",
               bdrv_get_node_name(bs));
    return migrate_add_blocker_normal(&s->migration_blocker, errp);
}

static void bsst_free(BDRVBsstState *s)
{
    migrate_del_blocker(&s->migration_blocker);
    error_free(s->migration_blocker);   /* tools only have a stub of that */
    if (s->image) {
        bsst_leave_image(s);
    }
    bsst_store_unref(s->store);
}

bool bsst_check_size(int64_t bytes, Error **errp)
{
    if (bytes > BSST_MAX_DISK_BYTES) {
        error_setg(errp, "bsst: a block-swap store cannot name the blocks of a "
                   "disk of more than %" PRId64 " EiB",
                   BSST_MAX_DISK_BYTES / EiB);
        return false;
    }
    return true;
}

static int bsst_check_image_size(BlockDriverState *bs, Error **errp)
{
    GRAPH_RDLOCK_GUARD_MAINLOOP();

    return bsst_check_size(bdrv_getlength(bs->file->bs), errp) ? 0 : -EFBIG;
}

static int bsst_open(BlockDriverState *bs, QDict *options, int flags,
                     Error **errp)
{
    BDRVBsstState *s = bs->opaque;
    BsstOptions o = { 0 };
    int ret;

    if (!bsst_parse_options(&o, options, errp)) {
        return -EINVAL;
    }
    if (!bdrv_open_child(NULL, options, "file", bs, &child_of_bds,
                         BDRV_CHILD_DATA | BDRV_CHILD_PRIMARY, false, errp)) {
        return -EINVAL;
    }
    ret = bsst_check_image_size(bs, errp);
    if (ret < 0) {
        return ret;
    }
    s->store = bsst_open_store(bs, options, o.aio, errp);
    if (!s->store) {
        return -EINVAL;
    }

    qemu_co_mutex_init(&s->guard_lock);
    qemu_co_queue_init(&s->no_direct);
    qemu_co_queue_init(&s->no_barrier);
    QLIST_INIT(&s->reqs);
    s->test_seed = o.test_seed;

    ret = bsst_block_migration(bs, errp);
    if (ret == 0) {
        ret = bsst_open_image(bs, &o, errp);
    }
    if (ret < 0) {
        bsst_free(s);
        return ret;
    }
    bsst_defrag_open(bs, o.defrag == BSST_DEFRAG_POLICY_AUTO);
    trace_bsst_open(bs, bsst_store_node_name(s->store), s->can_guard,
                    s->guarded, s->map_count);
    return 0;
}

static void bsst_report_close(BlockDriverState *bs, bool flushed, int ret)
{
    BDRVBsstState *s = bs->opaque;
    const char *name = bs->file->bs->filename;
    size_t left = qatomic_read(&s->map_count);

    if (!flushed) {
        error_report("bsst: '%s' could not be flushed when it was closed: %s; "
                     "what was written since its last flush may be lost", name,
                     strerror(-ret));
    } else if (left) {
        error_report("bsst: %zu KiB of '%s' could not be copied from the "
                     "block-swap store when it was closed: %s; it needs the "
                     "store '%s' still", left * (BSST_PAGE_SIZE / KiB), name,
                     strerror(-ret), bsst_store_node_name(s->store));
    } else {
        error_report("bsst: '%s' is complete, but its guard could not be "
                     "taken away: %s; open it with its store and close it "
                     "once more", name, strerror(-ret));
    }
}

static void bsst_close(BlockDriverState *bs)
{
    BDRVBsstState *s = bs->opaque;
    bool flushed = true;
    int ret = 0;

    assert(QLIST_EMPTY(&s->reqs) && !s->direct && !s->tracked);
    bsst_defrag_close(bs);
    if (!bdrv_is_read_only(bs) && !(bs->open_flags & BDRV_O_INACTIVE)) {
        ret = bsst_settle(bs, &flushed);
    }
    trace_bsst_close(bs, s->map_count, ret);
    if (ret < 0) {
        bsst_report_close(bs, flushed, ret);
    }
    bsst_free(s);
}

/*
 * Nobody else may use the image while blocks of it are in the store, and a
 * drain at close needs to write although no parent does any more (B6).
 * Before we have parents we take nothing: bdrv_insert_node() opens us below
 * those who still use the image.
 */
static void GRAPH_RDLOCK
bsst_child_perm(BlockDriverState *bs, BdrvChild *c, BdrvChildRole role,
                BlockReopenQueue *reopen_queue,
                uint64_t perm, uint64_t shared,
                uint64_t *nperm, uint64_t *nshared)
{
    BDRVBsstState *s = bs->opaque;

    bdrv_default_perms(bs, c, role, reopen_queue, perm, shared, nperm,
                       nshared);
    if (bs->open_flags & BDRV_O_INACTIVE) {
        return;
    }
    if (QLIST_EMPTY(&bs->parents) && !qatomic_read(&s->map_count)) {
        return;
    }
    if (qatomic_read(&s->map_count) && !bdrv_is_read_only(bs) && !s->frozen) {
        *nperm |= BLK_PERM_WRITE;
    }
    if (perm & BLK_PERM_WRITE_UNCHANGED) {
        *nperm |= BLK_PERM_WRITE;       /* a job that moves blocks into it */
    }
    *nshared &= ~(BLK_PERM_WRITE | BLK_PERM_RESIZE |
                  BLK_PERM_CONSISTENT_READ);
}

static int bsst_reopen_prepare(BDRVReopenState *state,
                               BlockReopenQueue *queue, Error **errp)
{
    BDRVBsstState *s = state->bs->opaque;
    bool writable = state->flags & BDRV_O_RDWR;
    int ret;

    /* The block layer refuses changes of options that we leave alone. */
    if (writable == !bdrv_is_read_only(state->bs)) {
        return 0;
    }
    if (writable) {
        return bsst_check_store_writable(s, errp) ? 0 : -EACCES;
    }
    s->frozen = true;
    ret = bsst_settle(state->bs, NULL);
    if (ret < 0) {
        s->frozen = false;
        error_setg_errno(errp, -ret, "Could not flush the blocks that are in "
                         "the block-swap store");
    }
    return ret;
}

/* By now the block layer knows whether we are read-only. */
static void bsst_reopen_end(BDRVReopenState *state)
{
    BDRVBsstState *s = state->bs->opaque;

    s->frozen = false;
    bsst_defrag_kick(s);
}

static int GRAPH_RDLOCK bsst_inactivate(BlockDriverState *bs)
{
    return bdrv_is_read_only(bs) ? 0 : bsst_settle(bs, NULL);
}

/* The image may have been opened elsewhere meanwhile, and have changed. */
static void coroutine_fn GRAPH_RDLOCK
bsst_co_invalidate_cache(BlockDriverState *bs, Error **errp)
{
    BDRVBsstState *s = bs->opaque;
    Qcow2BsstGuard guard;

    if (!s->can_guard) {
        return;
    }
    qcow2_get_bsst_guard(bdrv_skip_filters(bs->file->bs), &guard);
    if (guard.set != s->guarded ||
        (guard.set && guard.generation != s->generation)) {
        error_setg(errp, "Image '%s' was opened with a block-swap store while "
                   "node '%s' was inactive", bs->file->bs->filename,
                   bdrv_get_node_name(bs));
    }
}

static int64_t coroutine_fn GRAPH_RDLOCK
bsst_co_getlength(BlockDriverState *bs)
{
    return bdrv_co_getlength(bs->file->bs);
}

static int coroutine_fn GRAPH_RDLOCK
bsst_co_get_info(BlockDriverState *bs, BlockDriverInfo *bdi)
{
    return bdrv_co_get_info(bs->file->bs, bdi);
}

static int GRAPH_RDLOCK bsst_probe_blocksizes(BlockDriverState *bs,
                                              BlockSizes *bsz)
{
    return bdrv_probe_blocksizes(bs->file->bs, bsz);
}

static int GRAPH_RDLOCK bsst_probe_geometry(BlockDriverState *bs,
                                            HDGeometry *geo)
{
    return bdrv_probe_geometry(bs->file->bs, geo);
}

static int GRAPH_RDLOCK bsst_has_zero_init(BlockDriverState *bs)
{
    return bdrv_has_zero_init(bs->file->bs);
}

static void coroutine_fn GRAPH_RDLOCK
bsst_co_eject(BlockDriverState *bs, bool eject_flag)
{
    bdrv_co_eject(bs->file->bs, eject_flag);
}

static void coroutine_fn GRAPH_RDLOCK
bsst_co_lock_medium(BlockDriverState *bs, bool locked)
{
    bdrv_co_lock_medium(bs->file->bs, locked);
}

static void GRAPH_RDLOCK bsst_refresh_limits(BlockDriverState *bs,
                                             Error **errp)
{
    /* The rest comes from the child; requests may be of any alignment. */
    bs->bl.has_variable_length = bs->file->bs->bl.has_variable_length;
}

/* A file name cannot say which store: leave it to json:{}. */
static void GRAPH_RDLOCK bsst_refresh_filename(BlockDriverState *bs)
{
    bs->exact_filename[0] = '\0';
}

static const char *const bsst_strong_runtime_opts[] = {
    "store",
    "store.",
    "raw-image",

    NULL
};

/* The options of a node that bsst_insert_node() makes. */
static bool bsst_insert_options(BlockDriverState *bs, QDict *options,
                                Error **errp)
{
    static const char *const known[] = {
        "node-name", "store", "aio", "raw-image", "drain-on-close", "defrag",
        "x-test-indirect", NULL
    };
    const QDictEntry *e;
    const char *store;

    for (e = qdict_first(options); e; e = qdict_next(options, e)) {
        if (!g_strv_contains(known, qdict_entry_key(e))) {
            error_setg(errp, "Invalid option 'bsst.%s'", qdict_entry_key(e));
            return false;
        }
    }
    if (!qdict_haskey(options, "store")) {
        store = bsst_default_store(errp);
        if (!store) {
            error_prepend(errp, "bsst=on: ");
            return false;
        }
        qdict_put_str(options, "store", store);
    }
    qdict_put_str(options, "driver", "bsst");
    qdict_put_str(options, "file", bdrv_get_node_name(bs));
    return true;
}

bool bsst_insert_node(BlockDriverState *bs, QDict *options, Error **errp)
{
    ERRP_GUARD();
    const int flags = BDRV_O_RDWR | BDRV_O_UNMAP | BDRV_O_ALLOW_RDWR |
                      BDRV_O_CACHE_MASK | BDRV_O_INACTIVE;
    BlockDriverState *node;

    GLOBAL_STATE_CODE();

    if (!bsst_insert_options(bs, options, errp)) {
        qobject_unref(options);
        return false;
    }
    node = bdrv_insert_node(bs, options, bs->open_flags & flags, errp);
    bdrv_unref(node);       /* the parents of @bs have theirs now */
    return node;
}

BlockDriver bdrv_bsst = {
    .format_name                = "bsst",
    .instance_size              = sizeof(BDRVBsstState),

    .bdrv_open                  = bsst_open,
    .bdrv_close                 = bsst_close,
    .bdrv_child_perm            = bsst_child_perm,
    .bdrv_reopen_prepare        = bsst_reopen_prepare,
    .bdrv_reopen_commit         = bsst_reopen_end,
    .bdrv_reopen_abort          = bsst_reopen_end,
    .bdrv_drain_begin           = bsst_drain_begin,
    .bdrv_drain_end             = bsst_drain_end,
    .bdrv_inactivate            = bsst_inactivate,
    .bdrv_co_invalidate_cache   = bsst_co_invalidate_cache,

    .bdrv_co_preadv_part        = bsst_co_preadv_part,
    .bdrv_co_pwritev_part       = bsst_co_pwritev_part,
    .bdrv_co_pwrite_zeroes      = bsst_co_pwrite_zeroes,
    .bdrv_co_pdiscard           = bsst_co_pdiscard,
    .bdrv_co_truncate           = bsst_co_truncate,
    .bdrv_co_flush              = bsst_co_flush,
    .bdrv_co_block_status       = bsst_co_block_status,

    .bdrv_co_getlength          = bsst_co_getlength,
    .bdrv_co_get_info           = bsst_co_get_info,
    .bdrv_get_specific_info     = bsst_get_specific_info,
    .bdrv_co_check              = bsst_co_check,
    .bdrv_has_zero_init         = bsst_has_zero_init,
    .bdrv_probe_blocksizes      = bsst_probe_blocksizes,
    .bdrv_probe_geometry        = bsst_probe_geometry,
    .bdrv_refresh_limits        = bsst_refresh_limits,
    .bdrv_refresh_filename      = bsst_refresh_filename,
    .bdrv_co_eject              = bsst_co_eject,
    .bdrv_co_lock_medium        = bsst_co_lock_medium,

    .no_snapshot_fallback       = true,
    .strong_runtime_opts        = bsst_strong_runtime_opts,
};

static void bdrv_bsst_init(void)
{
    bdrv_register(&bdrv_bsst);
}

block_init(bdrv_bsst_init);
