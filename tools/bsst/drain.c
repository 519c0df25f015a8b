/*
 * bsst-tool: drain and forget
 *
 * What changes a store goes through the driver: it recovers the store, keeps
 * the order of writes, and locks others out.
 *
 * A drain goes on in steps.  What a step has copied is durable, in image and
 * journal, when the next one begins; so a drain that was killed goes on from
 * there.
 *
 * This work is licensed under the terms of the GNU GPL, version 2 or later.
 * See the COPYING file in the top-level directory.
 */

#include "qemu/osdep.h"
#include "block/block_int.h"
#include "bsst/bsst.h"
#include "bsst-tool.h"
#include "qapi/error.h"
#include "qapi/qobject-output-visitor.h"
#include "qemu/cutils.h"
#include "qemu/error-report.h"
#include "qemu/qemu-progress.h"
#include "qobject/qdict.h"

#define STORE_NODE      "bsst-store"
#define IMAGE_NODE      "bsst-image"

/* Blocks that one step of a drain copies: 16 MiB. */
#define STEP_BLOCKS     4096u

/* The driver's store */

/* Open it to read it, unless it is damaged: then *@ret is TOOL_DAMAGED. */
static ToolStore *open_intact(const ToolOptions *o, int *ret, Error **errp)
{
    ToolStore *s = tool_store_open(o, errp);

    *ret = TOOL_FAILED;
    if (s && s->problems) {
        *ret = TOOL_DAMAGED;
        error_setg(errp, "The block-swap store '%s' is damaged: %s", o->store,
                   tool_store_damage(s));
        error_append_hint(errp, "'bsst-tool check' tells more; 'bsst-tool "
                          "export' saves what can be read.\n");
        tool_store_close(s);
        s = NULL;
    }
    return s;
}

/* Its format: what the reader has found to be a store */
static char *find_format(const ToolOptions *o, int *ret, Error **errp)
{
    ToolStore *s = open_intact(o, ret, errp);
    char *format = s ? g_strdup(tool_store_format(s)) : NULL;

    tool_store_close(s);
    return format;
}

BsstStore *tool_open_driver(const ToolOptions *o, int *ret, Error **errp)
{
    g_autofree char *format = find_format(o, ret, errp);
    QDict *options = format ? tool_store_options(o, format, errp) : NULL;
    BlockDriverState *node;
    BsstStore *store;

    if (!options) {
        return NULL;
    }
    qdict_put_str(options, "node-name", STORE_NODE);
    node = bdrv_open(o->image_opts ? NULL : o->store, NULL, options,
                     BDRV_O_RDWR, errp);
    if (!node) {
        return NULL;
    }
    store = bsst_store_open(STORE_NODE, BLOCKDEV_AIO_OPTIONS_THREADS, errp);
    bdrv_unref(node);
    return store;
}

void tool_close_driver(BsstStore *store)
{
    bsst_store_unref(store);
}

/* drain */

/* What the store knows of the image @name.  NULL: nothing */
static BsstImage *find_in_driver(BsstStore *store, const char *name)
{
    BsstJournal *j = bsst_store_journal(store);
    g_autofree char *path = realpath(name, NULL);
    BsstImage *image = NULL;
    Qcow2BsstGuard guard;

    /* First what is raw: a guest may have written anything to its disk. */
    while ((image = bsst_journal_next_image(j, image))) {
        if (image->entry.raw && path && !strcmp(image->entry.name, path)) {
            return image;
        }
    }
    if (tool_read_guard(name, &guard, NULL, NULL) &&
        qemu_uuid_is_equal(&guard.store, bsst_store_uuid(store))) {
        return bsst_journal_find_image(j, guard.image.data);
    }
    return NULL;
}

/* Open @name as a node, and a bsst node on it. */
static BlockBackend *open_image(const ToolOptions *o, const char *name,
                                bool raw, Error **errp)
{
    const char *format = o->image_format ?: raw ? "raw" : "qcow2";
    QDict *options = qdict_new();
    BlockDriverState *image;
    BlockBackend *blk;

    qdict_put_str(options, "driver", format);
    qdict_put_str(options, "node-name", IMAGE_NODE);
    image = bdrv_open(name, NULL, options, BDRV_O_RDWR | BDRV_O_BSST, errp);
    if (!image) {
        return NULL;
    }
    options = qdict_new();
    qdict_put_str(options, "driver", "bsst");
    qdict_put_str(options, "file", IMAGE_NODE);
    qdict_put_str(options, "store", STORE_NODE);
    qdict_put_str(options, "drain-on-close", "off");
    if (raw) {
        qdict_put_str(options, "raw-image", "allow");
    }
    blk = blk_new_open(NULL, NULL, options, BDRV_O_RDWR, errp);
    bdrv_unref(image);
    return blk;
}

/* Copy step by step.  Returns 0 or -errno. */
static int drain_node(BlockDriverState *bs, uint64_t all, uint64_t *copied)
{
    uint64_t left = all;
    int ret;

    do {
        ret = bsst_drain(bs, STEP_BLOCKS, &left);
        *copied = (all - left) * BSST_PAGE_SIZE;
        qemu_progress_print(all ? 100.f * (all - left) / all : 100.f, 0);
    } while (ret == 0 && left);
    return ret;
}

static bool nothing_to_drain(const char *name, const BsstImage *image,
                             Error **errp)
{
    Qcow2BsstGuard guard;

    if ((image && image->entry.raw) ||
        !tool_read_guard(name, &guard, NULL, NULL) || guard.set) {
        return false;
    }
    if (image && durable_map_weight(image->map)) {
        error_setg(errp, "Image '%s' has no guard, but the store has blocks "
                   "of it: it was changed without its store", name);
        return false;
    }
    return !image;              /* else the driver removes its entry */
}

/* Returns the exit code. */
static int drain_image(const ToolOptions *o, BsstStore *store,
                       const char *name, BsstToolDrained *d, Error **errp)
{
    ERRP_GUARD();
    BsstImage *image = find_in_driver(store, name);
    uint64_t all = image ? durable_map_weight(image->map) : 0;
    BlockBackend *blk;
    int ret;

    d->complete = nothing_to_drain(name, image, errp);
    if (d->complete || *errp) {
        return *errp ? TOOL_DAMAGED : TOOL_OK;
    }
    blk = open_image(o, name, image && image->entry.raw, errp);
    if (!blk) {
        return TOOL_FAILED;
    }
    ret = drain_node(blk_bs(blk), all, &d->copied);
    blk_unref(blk);
    if (ret < 0) {
        error_setg_errno(errp, -ret, "Could not copy all blocks of '%s'",
                         name);
        error_append_hint(errp, "It needs its store still.  'bsst-tool check' "
                          "tells which blocks are damaged; 'bsst-tool export' "
                          "saves the others.\n");
        return ret == -EILSEQ || ret == -EIO ? TOOL_DAMAGED : TOOL_FAILED;
    }
    d->complete = true;
    return TOOL_OK;
}

/* The names that the store knows. */
static GPtrArray *all_names(BsstStore *store)
{
    BsstJournal *j = bsst_store_journal(store);
    GPtrArray *names = g_ptr_array_new_with_free_func(g_free);
    BsstImage *image = NULL;

    while ((image = bsst_journal_next_image(j, image))) {
        g_ptr_array_add(names, g_strdup(image->entry.name));
    }
    return names;
}

static int drain_list(const ToolOptions *o, BsstStore *store,
                      const GPtrArray *names, BsstToolDrainedList **tail)
{
    int worst = TOOL_OK;

    for (unsigned i = 0; i < names->len; i++) {
        BsstToolDrained *d = g_new0(BsstToolDrained, 1);
        Error *err = NULL;
        int ret;

        d->filename = g_strdup(names->pdata[i]);
        qemu_progress_init(o->progress, 1.f);
        ret = drain_image(o, store, d->filename, d, &err);
        qemu_progress_end();
        tool_print(o, "%s: %s, %" PRIu64 " bytes were copied\n", d->filename,
                   d->complete ? "complete" : "not complete", d->copied);
        if (err) {
            d->error = g_strdup(error_get_pretty(err));
            error_report_err(err);
        }
        worst = MAX(worst, ret);
        QAPI_LIST_APPEND(tail, d);
    }
    return worst;
}

int tool_drain(const ToolOptions *o)
{
    g_autoptr(GPtrArray) names = NULL;
    BsstToolDrain *result;
    BsstStore *store;
    Error *err = NULL;
    int ret;

    if (o->all == (o->nargs > 0)) {
        error_report("Expecting either images, or --all");
        return TOOL_FAILED;
    }
    store = tool_open_driver(o, &ret, &err);
    if (!store) {
        error_report_err(err);
        return ret;
    }
    if (o->all) {
        names = all_names(store);
    } else {
        names = g_ptr_array_new();
        for (int i = 0; i < o->nargs; i++) {
            g_ptr_array_add(names, o->arg[i]);
        }
    }
    result = g_new0(BsstToolDrain, 1);
    ret = drain_list(o, store, names, &result->images);
    tool_close_driver(store);
    if (o->json) {
        TOOL_PRINT_JSON(BsstToolDrain, result);
    }
    qapi_free_BsstToolDrain(result);
    return ret;
}

/* forget: an entry */

static void print_forgotten(const ToolOptions *o, BsstToolForgotten *f)
{
    if (o->json) {
        TOOL_PRINT_JSON(BsstToolForgotten, f);
        return;
    }
    printf("image: %s\nuuid: %s\ngeneration: %" PRIu64 "\nstore: %s\n",
           f->filename, f->image, f->generation, f->store);
    if (f->has_lost) {
        printf("The store does not know it any more; %" PRIu64 " bytes are "
               "lost.\n", f->lost);
    } else {
        printf("It has no guard any more.  Its blocks that were in that store "
               "have old content now;\nhow many they were only the store "
               "knows.\n");
    }
}

static BsstToolForgotten *forgotten_new(const QemuUUID *store, char *image,
                                        const char *name, uint64_t generation)
{
    BsstToolForgotten *f = g_new0(BsstToolForgotten, 1);

    f->store = qemu_uuid_unparse_strdup(store);
    f->image = image;
    f->filename = g_strdup(name);
    f->generation = generation;
    return f;
}

/* Nothing is lost; or that is what the user wants. */
static int may_forget(const ToolOptions *o, const ToolStore *s,
                      const BsstImage *image)
{
    uint64_t lost = durable_map_weight(image->map) * BSST_PAGE_SIZE;
    Qcow2BsstGuard guard;

    if (o->lose_data) {
        return TOOL_OK;
    }
    if (lost) {
        error_report("%" PRIu64 " bytes of '%s' are in the store and would be "
                     "lost", lost, image->entry.name);
        error_printf("'bsst-tool drain' copies them into the image; "
                     "--lose-data removes them.\n");
        return TOOL_DAMAGED;
    }
    if (tool_read_guard(o->arg[0], &guard, NULL, NULL) && guard.set &&
        qemu_uuid_is_equal(&guard.store, &s->uuid)) {
        error_report("Image '%s' is guarded by this store", o->arg[0]);
        error_printf("'bsst-tool drain' removes the guard.\n");
        return TOOL_DAMAGED;
    }
    return TOOL_OK;
}

/* Returns NULL and sets *@ret if the image must not be, or is not there. */
static BsstToolForgotten *find_forgotten(const ToolOptions *o, QemuUUID *uuid,
                                         int *ret)
{
    Error *err = NULL;
    ToolStore *s = open_intact(o, ret, &err);
    BsstImage *image = s ? tool_find_image(s, o->arg[0], &err) : NULL;
    BsstToolForgotten *f = NULL;

    if (!image) {
        error_report_err(err);
    } else {
        *ret = may_forget(o, s, image);
    }
    if (*ret == TOOL_OK) {
        memcpy(uuid->data, image->entry.uuid, sizeof(uuid->data));
        f = forgotten_new(&s->uuid, tool_image_uuid(image), image->entry.name,
                          image->entry.generation);
        f->has_lost = true;
        f->lost = durable_map_weight(image->map) * BSST_PAGE_SIZE;
    }
    tool_store_close(s);
    return f;
}

typedef struct Forget {
    BsstStore *store;
    QemuUUID uuid;
    int ret;
    bool done;
} Forget;

static void coroutine_fn co_forget(void *opaque)
{
    Forget *f = opaque;
    BsstImage *image = bsst_journal_find_image(bsst_store_journal(f->store),
                                               f->uuid.data);

    f->ret = image ? bsst_journal_co_remove_image(image, true) : -ENOENT;
    f->done = true;
}

static int forget_entry(const ToolOptions *o)
{
    Forget f = { 0 };
    BsstToolForgotten *result;
    Error *err = NULL;
    int ret;

    result = find_forgotten(o, &f.uuid, &ret);
    if (!result) {
        return ret;
    }
    f.store = tool_open_driver(o, &ret, &err);
    if (f.store) {
        ret = TOOL_OK;
        tool_run(co_forget, &f, &f.done);
        tool_close_driver(f.store);
        if (f.ret < 0) {
            ret = TOOL_FAILED;
            error_setg_errno(&err, -f.ret, "Could not remove '%s'",
                             o->arg[0]);
        }
    }
    if (err) {
        error_report_err(err);
    } else {
        print_forgotten(o, result);
    }
    qapi_free_BsstToolForgotten(result);
    return ret;
}

/* forget: a guard */

typedef struct Unguard {
    BlockBackend *blk;
    int ret;
    bool done;
} Unguard;

static void coroutine_fn co_unguard(void *opaque)
{
    const Qcow2BsstGuard none = { .set = false };
    Unguard *u = opaque;

    bdrv_graph_co_rdlock();
    u->ret = qcow2_co_set_bsst_guard(blk_bs(u->blk), &none);
    bdrv_graph_co_rdunlock();
    u->done = true;
}

/* As a bsst node does, share nothing: else the guard itself is in the way. */
static bool remove_guard(const char *name, Error **errp)
{
    QDict *options = qdict_new();
    Unguard u = { 0 };
    BlockDriverState *bs;

    qdict_put_str(options, "driver", "qcow2");
    bs = bdrv_open(name, NULL, options, BDRV_O_RDWR | BDRV_O_NO_BACKING, errp);
    if (!bs) {
        return false;
    }
    u.blk = blk_new(qemu_get_aio_context(), BLK_PERM_WRITE, 0);
    if (blk_insert_bs(u.blk, bs, errp) == 0) {
        tool_run(co_unguard, &u, &u.done);
        if (u.ret < 0) {
            error_setg_errno(errp, -u.ret, "Could not write the header of "
                             "'%s'", name);
        }
    } else {
        u.ret = -EPERM;
    }
    blk_unref(u.blk);
    bdrv_unref(bs);
    return u.ret == 0;
}

static int forget_guard(const ToolOptions *o)
{
    Qcow2BsstGuard guard;
    BsstToolForgotten *f;
    Error *err = NULL;
    int ret = TOOL_OK;

    if (!tool_read_guard(o->image, &guard, NULL, &err)) {
        error_reportf_err(err, "Could not read '%s': ", o->image);
        return TOOL_FAILED;
    }
    if (!guard.set) {
        error_report("Image '%s' has no guard", o->image);
        return TOOL_FAILED;
    }
    f = forgotten_new(&guard.store, qemu_uuid_unparse_strdup(&guard.image),
                      o->image, guard.generation);
    if (!o->lose_data) {
        error_report("Some blocks of '%s' may be in the block-swap store %s, "
                     "and would be lost", o->image, f->store);
        error_printf("'bsst-tool drain' with that store saves them.  If it is "
                     "gone: --lose-data\n");
        ret = TOOL_DAMAGED;
    } else if (!remove_guard(o->image, &err)) {
        error_report_err(err);
        ret = TOOL_FAILED;
    } else {
        print_forgotten(o, f);
    }
    qapi_free_BsstToolForgotten(f);
    return ret;
}

int tool_forget(const ToolOptions *o)
{
    if (o->image && !o->store) {
        return forget_guard(o);
    }
    if (!o->image && o->store && o->nargs == 1) {
        return forget_entry(o);
    }
    error_report("Expecting either a store and an image, or --image");
    return TOOL_FAILED;
}
