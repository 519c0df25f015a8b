/*
 * bsst-tool: check, and its --repair
 *
 * The metadata are read with the driver's own code, which tells what is wrong
 * with them.  What is added here: the container's mapping (rule 7), the content
 * of slots (rule 15), and whether images and their entries belong together.
 *
 * What is repaired loses nothing:
 *
 *   leaks   entries of images that need no store: those without indirections
 *           whose image has no guard
 *   all     also entries that are damaged, if there are no indirections of
 *           them and nothing else is wrong with the metadata
 *
 * Anything more would be a guess about what the guest's data are.
 *
 * This work is licensed under the terms of the GNU GPL, version 2 or later.
 * See the COPYING file in the top-level directory.
 */

#include "qemu/osdep.h"
#include "block/block_int.h"
#include "bsst-tool.h"
#include "qapi/error.h"
#include "qapi/qobject-output-visitor.h"
#include "qemu/bitmap.h"
#include "qemu/error-report.h"
#include "qemu/memalign.h"
#include "qemu/qemu-progress.h"
#include "qemu/units.h"
#include "qobject/qdict.h"

typedef struct Check {
    const ToolOptions *o;
    ToolStore *s;
    BsstToolCheck *result;
    BsstToolProblemList **tail;
    bool metadata_damaged;
    GArray *leaks;              /* of QemuUUID: entries to be freed */
    GArray *damaged;            /* of uint32_t: entries to be blanked */
} Check;

/* Takes over @message. */
static void add_problem(Check *c, unsigned rule, bool leak,
                        const BsstImage *image, uint64_t start,
                        uint64_t length, char *message)
{
    BsstToolProblem *p = tool_problem_new(rule, leak, image, start, length,
                                          message);

    QAPI_LIST_APPEND(c->tail, p);
    c->result->corruptions += !leak;
    c->result->leaks += leak;
}

/* Rule 7: the container */

static bool GRAPH_RDLOCK good_protocol(BlockDriverState *file)
{
    return !strcmp(file->drv->format_name, "file") ||
           !strcmp(file->drv->format_name, "host_device");
}

/* Returns where the mapping is not as it must be, or -1. */
static int64_t GRAPH_RDLOCK find_bad_mapping(BlockDriverState *bs,
                                             int64_t bytes)
{
    BlockDriverState *protocol = NULL, *file;
    int64_t offset, n, map;

    for (offset = 0; offset < bytes; offset += n) {
        int ret = bdrv_block_status(bs, offset, MIN(bytes - offset, GiB), &n,
                                    &map, &file);

        if (ret < 0 || !n || !(ret & BDRV_BLOCK_OFFSET_VALID) ||
            (protocol && file != protocol) || !good_protocol(file) ||
            n % BSST_PAGE_SIZE || map % BSST_PAGE_SIZE) {
            return offset;
        }
        protocol = file;
    }
    return -1;
}

static void check_mapping(Check *c)
{
    const BsstSuperblock *sb = &c->s->sb;
    BlockDriverState *bs = blk_bs(c->s->blk);
    int64_t bytes = sb->slots_offset + (uint64_t)sb->nslots * BSST_PAGE_SIZE;
    int64_t bad;

    bdrv_graph_rdlock_main_loop();
    bad = find_bad_mapping(bs, bytes);
    bdrv_graph_rdunlock_main_loop();
    if (bad >= 0) {
        add_problem(c, 7, false, NULL, 0, 0,
                    g_strdup_printf("its mapping to one host file is not "
                                    "complete, or not in blocks of 4096 bytes, "
                                    "at offset %" PRId64, bad));
    }
}

/* Rule 15: slots */

/* Report the blocks of @image that are in slots of @bad. */
static void report_slots(Check *c, const BsstImage *image,
                         const unsigned long *bad, ToolSlotState state)
{
    BsstRecord r = { 0 };

    while (tool_next_run(image, &r)) {
        unsigned long end = (unsigned long)r.slot + r.n;
        unsigned long i = find_next_bit(bad, end, r.slot);

        while (i < end) {
            unsigned long next = find_next_zero_bit(bad, end, i);
            uint64_t start = (r.block + (i - r.slot)) * BSST_PAGE_SIZE;
            uint64_t length = (uint64_t)(next - i) * BSST_PAGE_SIZE;

            add_problem(c, 15, false, image, start, length,
                        g_strdup_printf("%s: %" PRIu64 " bytes at %" PRIu64
                                        ": the content of the store from slot "
                                        "%lu on %s", image->entry.name, length,
                                        start, i, tool_slot_reason(state)));
            i = find_next_bit(bad, end, next);
        }
    }
}

static void check_slots(Check *c)
{
    ToolStore *s = c->s;
    uint64_t nslots = s->sb.nslots, used_n, done = 0;
    g_autofree unsigned long *used = tool_used_slots(s, &used_n);
    g_autofree unsigned long *mismatch = bitmap_new(nslots);
    g_autofree unsigned long *unreadable = bitmap_new(nslots);
    uint8_t *buf = qemu_memalign(BSST_PAGE_SIZE, TOOL_SLOTS * BSST_PAGE_SIZE);
    ToolSlotState state[TOOL_SLOTS];
    BsstImage *image = NULL;
    unsigned long first, i;
    unsigned n;

    for (first = find_first_bit(used, nslots); first < nslots;
         first = find_next_bit(used, nslots, first + n)) {
        n = MIN(find_next_zero_bit(used, nslots, first) - first, TOOL_SLOTS);
        tool_read_slots(s, first, n, buf, state);
        for (i = 0; i < n; i++) {
            if (state[i] == TOOL_SLOT_MISMATCH) {
                set_bit(first + i, mismatch);
            } else if (state[i] == TOOL_SLOT_UNREADABLE) {
                set_bit(first + i, unreadable);
            }
        }
        done += n;
        qemu_progress_print(100.f * done / used_n, 0);
    }
    qemu_vfree(buf);
    c->result->slots_checked = done;
    while ((image = bsst_journal_next_image(s->journal, image))) {
        report_slots(c, image, mismatch, TOOL_SLOT_MISMATCH);
        report_slots(c, image, unreadable, TOOL_SLOT_UNREADABLE);
    }
}

/* Images */

/* What is in the store of an image whose header has no guard. */
static void check_unguarded(Check *c, const char *name,
                            const BsstImage *image)
{
    uint64_t n = durable_map_weight(image->map);
    QemuUUID uuid;

    if (n) {
        add_problem(c, 0, false, image, 0, 0,
                    g_strdup_printf("image '%s' has no guard, but %" PRIu64
                                    " blocks of it are in the store", name,
                                    n));
        return;
    }
    memcpy(uuid.data, image->entry.uuid, sizeof(uuid.data));
    g_array_append_val(c->leaks, uuid);
    add_problem(c, 0, true, image, 0, 0,
                g_strdup_printf("image '%s' is complete, but the store has an "
                                "entry for it still", name));
}

static void check_guarded(Check *c, const char *name,
                          const Qcow2BsstGuard *guard, const BsstImage *image)
{
    const char *older;

    if (!image) {
        add_problem(c, 0, false, NULL, 0, 0,
                    g_strdup_printf("image '%s' is guarded, but the store does "
                                    "not know it: one of the two is an old "
                                    "copy, or the image was removed from the "
                                    "store", name));
        return;
    }
    if (guard->generation == image->entry.generation ||
        guard->generation == image->entry.announced) {
        return;
    }
    older = guard->generation < image->entry.generation ? "image" : "store";
    add_problem(c, 0, false, image, 0, 0,
                g_strdup_printf("image '%s' is of generation %" PRIu64 ", but "
                                "the store knows it as of %" PRIu64 ": the "
                                "%s is an old copy", name, guard->generation,
                                image->entry.generation, older));
}

/* An image without a header that could have a guard: the store knows more. */
static void check_raw(Check *c, const char *name, Error *err)
{
    BsstImage *image = tool_find_image(c->s, name, NULL);

    if (access(name, R_OK) < 0) {
        c->result->check_errors++;
        error_reportf_err(err, "Could not check '%s': ", name);
        return;
    }
    error_free(err);
    if (image && image->entry.raw && !durable_map_weight(image->map)) {
        check_unguarded(c, name, image);
    }
}

static void check_image(Check *c, const char *name)
{
    Qcow2BsstGuard guard;
    BsstImage *image;
    Error *err = NULL;

    if (!tool_read_guard(name, &guard, NULL, &err)) {
        check_raw(c, name, err);
        return;
    }
    if (!qemu_uuid_is_equal(&guard.store, &c->s->uuid)) {
        if (guard.set) {
            g_autofree char *other = qemu_uuid_unparse_strdup(&guard.store);

            add_problem(c, 0, false, NULL, 0, 0,
                        g_strdup_printf("image '%s' is guarded by another "
                                        "store, %s", name, other));
        }
        return;
    }
    image = bsst_journal_find_image(c->s->journal, guard.image.data);
    if (guard.set) {
        check_guarded(c, name, &guard, image);
    } else if (image && guard.generation == image->entry.generation) {
        check_unguarded(c, name, image);
    }
}

/* Entries without anything in them, that a repair may free. */
static void find_damaged_entries(Check *c)
{
    static const uint8_t none[16];
    BsstImage *image = NULL;

    while ((image = bsst_journal_next_image(c->s->journal, image))) {
        if (!memcmp(image->entry.uuid, none, sizeof(none)) &&
            !durable_map_weight(image->map)) {
            g_array_append_val(c->damaged, image->index);
        }
    }
    if (c->damaged->len != c->s->nproblems) {
        g_array_set_size(c->damaged, 0); /* something else is wrong, too */
    }
}

static void count_images(Check *c)
{
    BsstImage *image = NULL;

    while ((image = bsst_journal_next_image(c->s->journal, image))) {
        c->result->images++;
        c->result->indirections += durable_map_weight(image->map);
    }
}

static void check_free(Check *c)
{
    qapi_free_BsstToolCheck(c->result);
    g_array_unref(c->leaks);
    g_array_unref(c->damaged);
}

/* Returns false if the store could not be opened. */
static bool check_run(Check *c, const ToolOptions *o, Error **errp)
{
    ToolStore *s;

    *c = (Check) {
        .o = o,
        .result = g_new0(BsstToolCheck, 1),
        .leaks = g_array_new(false, false, sizeof(QemuUUID)),
        .damaged = g_array_new(false, false, sizeof(uint32_t)),
    };
    c->result->filename = g_strdup(o->store);
    s = tool_store_open(o, errp);
    if (!s) {
        return false;
    }
    c->s = s;
    c->result->problems = g_steal_pointer(&s->problems);
    c->tail = s->problems_tail != &s->problems ? s->problems_tail
                                               : &c->result->problems;
    c->result->corruptions = s->nproblems;
    c->metadata_damaged = s->nproblems;
    if (s->journal) {
        qemu_progress_init(o->progress, 1.f);
        check_mapping(c);
        count_images(c);
        check_slots(c);
        for (int i = 0; i < o->nargs; i++) {
            check_image(c, o->arg[i]);
        }
        find_damaged_entries(c);
        qemu_progress_end();
    }
    tool_store_close(s);
    c->s = NULL;
    return true;
}

/* Repair */

/* Blank entries of the image table.  The store is open for nobody else. */
static bool blank_entries(BlockBackend *blk, const BsstSuperblock *sb,
                          const GArray *damaged, Error **errp)
{
    static const uint8_t blank[BSST_IMAGE_ENTRY_BYTES];

    for (unsigned i = 0; i < damaged->len; i++) {
        uint32_t index = g_array_index(damaged, uint32_t, i);
        int ret = blk_pwrite(blk, sb->images_offset + (uint64_t)index *
                             sizeof(blank), sizeof(blank), blank, 0);

        if (ret == 0) {
            ret = blk_flush(blk);
        }
        if (ret < 0) {
            error_setg_errno(errp, -ret, "Could not write entry %" PRIu32
                             " of the image table", index);
            return false;
        }
    }
    return true;
}

static bool repair_damaged(Check *c, Error **errp)
{
    g_autofree uint8_t *buf = g_malloc(BSST_SUPERBLOCK_BYTES);
    QDict *options = tool_store_options(c->o, c->o->format, errp);
    BlockBackend *blk;
    BsstSuperblock sb;
    bool ok = false;

    if (!options) {
        return false;
    }
    blk = blk_new_open(c->o->image_opts ? NULL : c->o->store, NULL, options,
                       BDRV_O_RDWR | BDRV_O_NO_SHARE, errp);
    if (!blk) {
        return false;
    }
    if (blk_pread(blk, 0, BSST_SUPERBLOCK_BYTES, buf, 0) < 0 ||
        bsst_superblock_decode(&sb, buf, blk_getlength(blk))) {
        error_setg(errp, "Could not read the superblock again");
    } else {
        ok = blank_entries(blk, &sb, c->damaged, errp);
    }
    blk_unref(blk);
    return ok;
}

typedef struct FreeEntries {
    BsstStore *store;
    const GArray *uuids;
    uint64_t freed;
    int ret;
    bool done;
} FreeEntries;

static void coroutine_fn co_free_entries(void *opaque)
{
    FreeEntries *f = opaque;
    BsstJournal *j = bsst_store_journal(f->store);

    for (unsigned i = 0; i < f->uuids->len && f->ret == 0; i++) {
        const QemuUUID *uuid = &g_array_index(f->uuids, QemuUUID, i);
        BsstImage *image = bsst_journal_find_image(j, uuid->data);

        if (image) {
            f->ret = bsst_journal_co_remove_image(image, false);
            f->freed += f->ret == 0;
        }
    }
    f->done = true;
}

static bool repair_leaks(Check *c, uint64_t *freed, Error **errp)
{
    FreeEntries f = { .uuids = c->leaks };
    int ret;

    f.store = tool_open_driver(c->o, &ret, errp);
    if (!f.store) {
        return false;
    }
    tool_run(co_free_entries, &f, &f.done);
    tool_close_driver(f.store);
    *freed = f.freed;
    if (f.ret < 0) {
        error_setg_errno(errp, -f.ret, "Could not free an entry");
    }
    return f.ret == 0;
}

/* Returns false and sets @errp if what was to be repaired could not be. */
static bool repair(Check *c, BsstToolCheck *fixed, Error **errp)
{
    bool all = c->o->repair == TOOL_REPAIR_ALL;

    if (all && c->damaged->len) {
        if (!repair_damaged(c, errp)) {
            return false;
        }
        fixed->corruptions_fixed = c->damaged->len;
    }
    /* The driver opens no store whose metadata are damaged. */
    if (c->leaks->len && (!c->metadata_damaged || fixed->corruptions_fixed)) {
        return repair_leaks(c, &fixed->leaks_fixed, errp);
    }
    return true;
}

static void print_check(const BsstToolCheck *r)
{
    if (r->corruptions_fixed || r->leaks_fixed) {
        printf("Repaired: %" PRIu64 " errors, %" PRIu64 " leaks.\n",
               r->corruptions_fixed, r->leaks_fixed);
    }
    printf("%" PRIu64 " images, %" PRIu64 " blocks of them in %" PRIu64
           " slots, which were read.\n", r->images, r->indirections,
           r->slots_checked);
    if (r->corruptions) {
        printf("%" PRIu64 " errors were found: guest data may be lost.  "
               "Change nothing; 'bsst-tool export'\nsaves what can be "
               "read.\n", r->corruptions);
    }
    if (r->leaks) {
        printf("%" PRIu64 " leaks were found, which do no harm; "
               "--repair removes them.\n", r->leaks);
    }
    if (!r->corruptions && !r->leaks) {
        printf("No errors were found.\n");
    }
}

static int check_report(Check *c)
{
    const BsstToolCheck *r = c->result;

    if (c->o->json) {
        TOOL_PRINT_JSON(BsstToolCheck, c->result);
    } else {
        tool_report_problems(r->problems);
        if (!c->o->quiet) {
            print_check(r);
        }
    }
    if (r->check_errors) {
        return TOOL_FAILED;
    }
    return r->corruptions ? TOOL_DAMAGED : r->leaks ? TOOL_LEAKS : TOOL_OK;
}

int tool_check(const ToolOptions *o)
{
    BsstToolCheck fixed = { 0 };
    Error *err = NULL;
    Check c;
    int ret;

    if (check_run(&c, o, &err) && o->repair != TOOL_REPAIR_NONE &&
        (c.leaks->len || c.damaged->len)) {
        if (repair(&c, &fixed, &err)) {
            check_free(&c);
            check_run(&c, o, &err);
        }
    }
    if (err) {
        error_report_err(err);
        check_free(&c);
        return TOOL_FAILED;
    }
    c.result->corruptions_fixed = fixed.corruptions_fixed;
    c.result->leaks_fixed = fixed.leaks_fixed;
    ret = check_report(&c);
    check_free(&c);
    return ret;
}
