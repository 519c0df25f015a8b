/*
 * The block-swap store
 *
 * Owns the slots: allocation, references, checksums, and the I/O on them; and
 * the superblock.  The journal (bsst-journal.c) is opened and closed by it, and
 * does its I/O through it.  bsst-store-int.h says what is in which file; here
 * are the stores that are open, and who uses them.
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
#include "bsst-store-int.h"
#include "qapi/error.h"
#include "qapi/qapi-visit-block-core.h"
#include "qapi/util.h"
#include "trace.h"

/* All open stores.  Under the BQL. */
static QLIST_HEAD(, BsstStore) all_stores = QLIST_HEAD_INITIALIZER(all_stores);

/* Node names given by bsst_default_store_add().  Under the BQL. */
static GList *default_stores;

/* Open */

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

static BsstStore *store_new(BlockDriverState *bs, BlockdevAioOptions aio,
                            Error **errp)
{
    BsstStore *s = g_new0(BsstStore, 1);
    uint64_t perm = BLK_PERM_CONSISTENT_READ;
    bool blank;

    s->refcnt = 1;
    s->node_name = g_strdup(bdrv_get_node_name(bs));
    s->aio = aio;
    s->fd = -1;
    s->read_only = bdrv_is_read_only(bs);
    s->extents = g_array_new(false, false, sizeof(StoreExtent));
    s->punch_timer = aio_timer_new(qemu_get_aio_context(),
                                   QEMU_CLOCK_REALTIME, SCALE_MS,
                                   bsst_store_punch_timer, s);
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
    if (!aio_available(aio, errp) ||
        !bsst_store_examine(s, bs, &blank, errp) ||
        !bsst_store_start(s, blank, errp)) {
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
        bsst_store_forget_free_slots(s);
        bsst_store_stop(s);
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
