/*
 * bsst-tool: export
 *
 * Copies the blocks of one image that are in a store into a new image, from a
 * store that the driver would refuse, too.  With the image itself as the base
 * the result is the whole disk, but for what is damaged.  That reads as zeroes:
 * old content in its place could not be told from what it should be.
 *
 * This work is licensed under the terms of the GNU GPL, version 2 or later.
 * See the COPYING file in the top-level directory.
 */

#include "qemu/osdep.h"
#include "block/block_int.h"
#include "bsst-tool.h"
#include "qapi/error.h"
#include "qapi/qobject-output-visitor.h"
#include "qemu/error-report.h"
#include "qemu/memalign.h"
#include "qemu/qemu-progress.h"
#include "qemu/units.h"
#include "qobject/qdict.h"

#define CHUNK_BYTES     (TOOL_SLOTS * BSST_PAGE_SIZE)

typedef struct Export {
    const ToolOptions *o;
    ToolStore *s;
    BsstImage *image;
    BlockBackend *base;         /* NULL: zeroes */
    BlockBackend *out;
    int64_t bytes;              /* of the disk */
    uint8_t *buf;
    BsstToolExport *result;
    BsstToolProblemList **tail;
} Export;

/* Base and output */

/* Share nothing, as a bsst node does, so that the guard is not in the way. */
static BlockBackend *open_base(const ToolOptions *o, Error **errp)
{
    QDict *options = qdict_new();
    BlockDriverState *bs;
    BlockBackend *blk;

    qdict_put_str(options, "driver", o->image_format ?: "qcow2");
    bs = bdrv_open(o->base, NULL, options, 0, errp);
    if (!bs) {
        return NULL;
    }
    blk = blk_new(qemu_get_aio_context(), BLK_PERM_CONSISTENT_READ, 0);
    if (blk_insert_bs(blk, bs, errp) < 0) {
        blk_unref(blk);
        blk = NULL;
    }
    bdrv_unref(bs);
    return blk;
}

/* Is the base the image?  An old copy of it is better than nothing. */
static bool check_base(Export *e, Error **errp)
{
    static const uint8_t none[16];
    const BsstImageEntry *entry = &e->image->entry;
    Qcow2BsstGuard guard;

    if (entry->raw || !memcmp(entry->uuid, none, sizeof(none)) ||
        !tool_read_guard(e->o->base, &guard, NULL, NULL)) {
        return true;            /* nobody knows */
    }
    if (memcmp(guard.image.data, entry->uuid, sizeof(entry->uuid))) {
        error_setg(errp, "'%s' is not the image '%s'", e->o->base,
                   e->o->arg[0]);
        return false;
    }
    if (guard.generation != entry->generation &&
        guard.generation != entry->announced) {
        char *msg = g_strdup_printf("'%s' is of generation %" PRIu64 ", but "
                                    "the store knows it as of %" PRIu64
                                    ": one of the two is an old copy",
                                    e->o->base, guard.generation,
                                    entry->generation);

        QAPI_LIST_APPEND(e->tail, tool_problem_new(0, false, e->image, 0, 0,
                                                   msg));
        e->result->uncertain = true;
    }
    return true;
}

/* Behind the last block that is in the store */
static int64_t stored_end(const BsstImage *image)
{
    BsstRecord r = { 0 };
    int64_t end = 0;

    while (tool_next_run(image, &r)) {
        end = MAX(end, (int64_t)((r.block + r.n) * BSST_PAGE_SIZE));
    }
    return end;
}

/* The size that the disk has, as far as anybody knows. */
static int64_t disk_bytes(const Export *e)
{
    if (e->base) {
        return blk_getlength(e->base);
    }
    return MAX((int64_t)e->image->entry.bytes, stored_end(e->image));
}

static BlockBackend *open_output(const Export *e, Error **errp)
{
    ERRP_GUARD();
    const char *name = e->o->arg[1];
    const char *format = e->o->output_format ?: "raw";
    QDict *options = qdict_new();
    BlockBackend *blk = NULL;

    if (!e->o->no_create) {
        if (access(name, F_OK) == 0) {
            error_setg(errp, "'%s' exists", name);
            error_append_hint(errp, "--no-create writes into it.\n");
        } else {
            bdrv_img_create(name, format, NULL, NULL, NULL, e->bytes, 0, true,
                            errp);
        }
    }
    qdict_put_str(options, "driver", format);
    if (*errp) {
        qobject_unref(options);
        return NULL;
    }
    blk = blk_new_open(name, NULL, options, BDRV_O_RDWR, errp);
    if (blk && blk_getlength(blk) < e->bytes) {
        error_setg(errp, "'%s' is smaller than the disk, which has %" PRId64
                   " bytes", name, e->bytes);
        blk_unref(blk);
        blk = NULL;
    }
    return blk;
}

/* Copy */

/* All that is not zero of the base.  Returns 0 or -errno. */
static int copy_base(Export *e)
{
    int64_t offset, n;

    for (offset = 0; offset < e->bytes; offset += n) {
        int ret;

        n = MIN(e->bytes - offset, CHUNK_BYTES);
        bdrv_graph_rdlock_main_loop();
        ret = bdrv_block_status_above(blk_bs(e->base), NULL, offset, n, &n,
                                      NULL, NULL);
        bdrv_graph_rdunlock_main_loop();
        if (ret >= 0 && (ret & BDRV_BLOCK_ZERO) && !e->o->no_create) {
            continue;
        }
        if (ret >= 0) {
            ret = blk_pread(e->base, offset, n, e->buf, 0);
        }
        if (ret >= 0) {
            ret = blk_pwrite(e->out, offset, n, e->buf, 0);
        }
        if (ret < 0) {
            return ret;
        }
        qemu_progress_print(50.f * offset / e->bytes, 0);
    }
    return 0;
}

static void report_lost(Export *e, uint64_t start, uint64_t length,
                        ToolSlotState state)
{
    char *msg = g_strdup_printf("%" PRIu64 " bytes at %" PRIu64 ": the "
                                "content of the store %s", length, start,
                                tool_slot_reason(state));

    QAPI_LIST_APPEND(e->tail, tool_problem_new(15, false, e->image, start,
                                               length, msg));
    e->result->lost += length;
}

/* @length bytes of the disk at @start, which are in @buf, all of one @state */
static int copy_part(Export *e, uint64_t start, uint64_t length,
                     const uint8_t *buf, ToolSlotState state)
{
    bool use = state == TOOL_SLOT_GOOD ||
               (state == TOOL_SLOT_MISMATCH && e->o->keep_damaged);

    if (state != TOOL_SLOT_GOOD) {
        report_lost(e, start, length, state);
    } else {
        e->result->copied += length;
    }
    return use ? blk_pwrite(e->out, start, length, buf, 0)
               : blk_pwrite_zeroes(e->out, start, length, 0);
}

/* The @n slots from @slot on are the disk's content at @start. */
static int copy_slots(Export *e, uint64_t start, BsstSlot slot, unsigned n)
{
    ToolSlotState state[TOOL_SLOTS];
    unsigned i, next;
    int ret = 0;

    tool_read_slots(e->s, slot, n, e->buf, state);
    for (i = 0; i < n && ret >= 0; i = next) {
        uint64_t offset = start + (uint64_t)i * BSST_PAGE_SIZE;
        uint64_t length;

        if (offset >= e->bytes) {
            break;              /* the image has shrunk */
        }
        for (next = i + 1; next < n && state[next] == state[i]; next++) {
            /* the same */
        }
        length = MIN((uint64_t)(next - i) * BSST_PAGE_SIZE,
                     e->bytes - offset);
        ret = copy_part(e, offset, length,
                        e->buf + (size_t)i * BSST_PAGE_SIZE, state[i]);
    }
    return MIN(ret, 0);
}

static int copy_stored(Export *e)
{
    uint64_t all = durable_map_weight(e->image->map), done = 0;
    float begin = e->base ? 50.f : 0.f;
    BsstRecord r = { 0 };
    int ret = 0;

    while (ret == 0 && tool_next_run(e->image, &r)) {
        for (unsigned i = 0; i < r.n && ret == 0; i += TOOL_SLOTS) {
            ret = copy_slots(e, (r.block + i) * BSST_PAGE_SIZE, r.slot + i,
                             MIN(r.n - i, TOOL_SLOTS));
        }
        done += r.n;
        qemu_progress_print(begin + (100.f - begin) * done / all, 0);
    }
    return ret;
}

static bool export_copy(Export *e, Error **errp)
{
    int ret = e->base ? copy_base(e) : 0;

    if (ret == 0) {
        ret = copy_stored(e);
    }
    if (ret == 0) {
        ret = blk_flush(e->out);
    }
    if (ret < 0) {
        error_setg_errno(errp, -ret, "Could not write '%s'", e->o->arg[1]);
    }
    return ret == 0;
}

/* Begin and end */

static bool export_open(Export *e, Error **errp)
{
    const ToolOptions *o = e->o;

    e->s = tool_store_open(o, errp);
    e->image = e->s ? tool_find_image(e->s, o->arg[0], errp) : NULL;
    if (!e->image) {
        return false;
    }
    e->result->uncertain = e->s->nproblems;
    if (e->s->problems) {
        e->result->problems = g_steal_pointer(&e->s->problems);
        e->tail = e->s->problems_tail;
    }
    if (o->base) {
        e->base = check_base(e, errp) ? open_base(o, errp) : NULL;
        if (!e->base) {
            return false;
        }
    }
    e->bytes = disk_bytes(e);
    if (e->bytes < 0) {
        error_setg_errno(errp, -e->bytes, "Could not get the size of '%s'",
                         o->base);
        return false;
    }
    e->out = open_output(e, errp);
    return e->out;
}

static void export_close(Export *e)
{
    blk_unref(e->out);
    blk_unref(e->base);
    tool_store_close(e->s);
    qemu_vfree(e->buf);
    qapi_free_BsstToolExport(e->result);
}

static void export_report(Export *e)
{
    BsstToolExport *r = e->result;

    if (e->o->json) {
        TOOL_PRINT_JSON(BsstToolExport, r);
        return;
    }
    tool_report_problems(r->problems);
    tool_print(e->o, "%s: %" PRIu64 " bytes were copied from the store, %"
               PRIu64 " bytes are lost\n", r->filename, r->copied, r->lost);
    if (r->uncertain) {
        error_printf("Because of the errors above blocks may be missing, or "
                     "have old content.\n");
    }
}

int tool_export(const ToolOptions *o)
{
    Export e = { .o = o };
    Error *err = NULL;
    int ret = TOOL_FAILED;

    e.buf = qemu_memalign(BSST_PAGE_SIZE, CHUNK_BYTES);
    e.result = g_new0(BsstToolExport, 1);
    e.tail = &e.result->problems;
    if (export_open(&e, &err)) {
        e.result->filename = g_strdup(o->arg[1]);
        e.result->image = tool_image_uuid(e.image);
        e.result->virtual_size = e.bytes;
        qemu_progress_init(o->progress, 1.f);
        if (export_copy(&e, &err)) {
            export_report(&e);
            ret = e.result->problems ? TOOL_DAMAGED : TOOL_OK;
        }
        qemu_progress_end();
    } else if (e.s && !e.s->journal) {
        ret = TOOL_DAMAGED;
    }
    if (err) {
        error_report_err(err);
    }
    export_close(&e);
    return ret;
}
