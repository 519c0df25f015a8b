/*
 * bsst-tool: info and map
 *
 * This work is licensed under the terms of the GNU GPL, version 2 or later.
 * See the COPYING file in the top-level directory.
 */

#include "qemu/osdep.h"
#include "block/block_int.h"
#include "bsst-tool.h"
#include "qapi/error.h"
#include "qapi/qobject-output-visitor.h"
#include "qemu/cutils.h"
#include "qemu/error-report.h"

/* info */

static BsstToolImage *image_info(const BsstImage *image)
{
    BsstToolImage *info = g_new0(BsstToolImage, 1);
    BsstRecord r = { 0 };

    info->index = image->index;
    info->uuid = tool_image_uuid(image);
    info->filename = g_strdup(image->entry.name);
    info->raw = image->entry.raw;
    info->generation = image->entry.generation;
    info->announced_generation = image->entry.announced;
    info->virtual_size = image->entry.bytes;
    while (tool_next_run(image, &r)) {
        info->runs++;
        info->indirections += r.n;
    }
    return info;
}

static int compare_images(const void *a, const void *b)
{
    const BsstImage *x = *(BsstImage **)a, *y = *(BsstImage **)b;

    return (x->index > y->index) - (x->index < y->index);
}

static BsstToolImageList *images_info(ToolStore *s)
{
    g_autoptr(GPtrArray) images = g_ptr_array_new();
    BsstToolImageList *list = NULL, **tail = &list;
    BsstImage *image = NULL;

    while ((image = bsst_journal_next_image(s->journal, image))) {
        g_ptr_array_add(images, image);
    }
    g_ptr_array_sort(images, compare_images);
    for (unsigned i = 0; i < images->len; i++) {
        QAPI_LIST_APPEND(tail, image_info(images->pdata[i]));
    }
    return list;
}

static BsstToolCheckpoint *checkpoint_info(ToolStore *s)
{
    unsigned area;
    const BsstCheckpoint *c = bsst_journal_checkpoint(s->journal, &area);
    BsstToolCheckpoint *info;

    if (!c) {
        return NULL;
    }
    info = g_new0(BsstToolCheckpoint, 1);
    info->number = c->number;
    info->area = area;
    info->generation = c->generation;
    info->blocks = c->nblocks;
    info->indirections = c->nindirections;
    return info;
}

static void add_area(BsstToolAreaList ***tail, const char *name,
                     uint64_t offset, uint64_t length)
{
    BsstToolArea *a = g_new0(BsstToolArea, 1);

    a->name = g_strdup(name);
    a->offset = offset;
    a->length = length;
    QAPI_LIST_APPEND(*tail, a);
}

static BsstToolAreaList *areas_info(const BsstSuperblock *sb)
{
    BsstToolAreaList *list = NULL, **tail = &list;

    add_area(&tail, "superblock", 0, BSST_SUPERBLOCK_BYTES);
    add_area(&tail, "image table", sb->images_offset,
             (uint64_t)sb->nimages * BSST_IMAGE_ENTRY_BYTES);
    add_area(&tail, "checksums", sb->checksums_offset,
             ROUND_UP((uint64_t)sb->nslots * sizeof(uint64_t),
                      BSST_PAGE_SIZE));
    add_area(&tail, "checkpoint 0", sb->checkpoint_offset[0],
             sb->checkpoint_bytes);
    add_area(&tail, "checkpoint 1", sb->checkpoint_offset[1],
             sb->checkpoint_bytes);
    add_area(&tail, "journal", sb->journal_offset, sb->journal_bytes);
    add_area(&tail, "slots", sb->slots_offset,
             (uint64_t)sb->nslots * BSST_PAGE_SIZE);
    return list;
}

static BsstToolInfo *store_info(ToolStore *s)
{
    BsstToolInfo *info = g_new0(BsstToolInfo, 1);
    g_autofree unsigned long *used = tool_used_slots(s, &info->slots_used);
    BsstJournalStats st;

    bsst_journal_get_stats(s->journal, &st);
    info->filename = g_strdup(s->name);
    info->format = g_strdup(tool_store_format(s));
    info->uuid = qemu_uuid_unparse_strdup(&s->uuid);
    info->generation = s->sb.generation;
    info->clean = s->sb.clean;
    info->slots = s->sb.nslots;
    info->slots_free = info->slots - info->slots_used;
    info->image_entries = s->sb.nimages;
    info->images = images_info(s);
    info->checkpoint = checkpoint_info(s);
    info->journal_length = s->sb.journal_bytes;
    info->journal_used = st.used_bytes;
    info->areas = areas_info(&s->sb);
    info->problems = s->problems;
    return info;
}

static void print_image(const BsstToolImage *image)
{
    g_autofree char *size = size_to_str(image->virtual_size);
    g_autofree char *stored = size_to_str(image->indirections *
                                          BSST_PAGE_SIZE);

    printf("    #%" PRIu32 " %s\n", image->index, image->filename);
    printf("        uuid: %s%s\n", image->uuid,
           image->raw ? " (raw: no guard)" : "");
    printf("        generation: %" PRIu64 "%s\n", image->generation,
           image->announced_generation != image->generation
           ? " (the next one was announced)" : "");
    printf("        virtual size: %s (%" PRIu64 " bytes)\n", size,
           image->virtual_size);
    printf("        in the store: %s (%" PRIu64 " blocks in %" PRIu64
           " runs)\n", stored, image->indirections, image->runs);
}

static void print_info(const BsstToolInfo *info)
{
    g_autofree char *size = size_to_str(info->slots * BSST_PAGE_SIZE);
    g_autofree char *journal = size_to_str(info->journal_length);
    const BsstToolImageList *l;

    printf("block-swap store: %s\n", info->filename);
    printf("file format: %s\n", info->format);
    printf("uuid: %s\n", info->uuid);
    printf("generation: %" PRIu64 "\n", info->generation);
    printf("closed properly: %s\n", info->clean ? "yes" : "no (in use when "
           "QEMU or the host died; it is recovered when it is opened)");
    printf("slots: %" PRIu64 " (%s), used by images: %" PRIu64 ", free: %"
           PRIu64 "\n", info->slots, size, info->slots_used,
           info->slots_free);
    if (info->checkpoint) {
        const BsstToolCheckpoint *c = info->checkpoint;

        printf("last checkpoint: number %" PRIu64 " in area %" PRIu32 ", of "
               "generation %" PRIu64 ", %" PRIu64 " indirections\n",
               c->number, c->area, c->generation, c->indirections);
    }
    printf("journal: %s, of which %" PRIu64 " KiB are in use\n", journal,
           info->journal_used / 1024);
    printf("images:%s\n", info->images ? "" : " none");
    for (l = info->images; l; l = l->next) {
        print_image(l->value);
    }
}

int tool_info(const ToolOptions *o)
{
    Error *err = NULL;
    ToolStore *s = tool_store_open(o, &err);
    BsstToolInfo *info;
    int ret;

    if (!s) {
        error_report_err(err);
        return TOOL_FAILED;
    }
    if (!s->journal) {
        error_report("The block-swap store '%s' is damaged: %s", o->store,
                     tool_store_damage(s));
        tool_store_close(s);
        return TOOL_DAMAGED;
    }

    info = store_info(s);
    if (o->json) {
        TOOL_PRINT_JSON(BsstToolInfo, info);
    } else {
        print_info(info);
    }
    info->problems = NULL;      /* they belong to @s */
    qapi_free_BsstToolInfo(info);
    ret = s->problems ? TOOL_DAMAGED : TOOL_OK;
    if (ret == TOOL_DAMAGED) {
        error_report("The block-swap store is damaged: %s",
                     tool_store_damage(s));
        error_printf("'bsst-tool check' tells more.\n");
    }
    tool_store_close(s);
    return ret;
}

/* map */

typedef struct MapPrinter {
    const ToolOptions *o;
    ToolStore *s;
    uint64_t nruns;
} MapPrinter;

/* The offset of @slot in the store's file, or -1; for *@n slots at most. */
static int64_t slot_host_offset(ToolStore *s, BsstSlot slot, uint32_t *n)
{
    int64_t offset = s->sb.slots_offset + (uint64_t)slot * BSST_PAGE_SIZE;
    int64_t pnum = 0, map = 0;
    BlockDriverState *file;
    int ret;

    bdrv_graph_rdlock_main_loop();
    ret = bdrv_block_status(blk_bs(s->blk), offset,
                            (int64_t)*n * BSST_PAGE_SIZE, &pnum, &map, &file);
    bdrv_graph_rdunlock_main_loop();
    if (ret < 0 || pnum < BSST_PAGE_SIZE || !(ret & BDRV_BLOCK_OFFSET_VALID)) {
        *n = 1;
        return -1;
    }
    *n = MIN(*n, pnum / BSST_PAGE_SIZE);
    return map;
}

static void print_run(MapPrinter *p, const BsstRecord *r, int64_t host)
{
    uint64_t start = r->block * BSST_PAGE_SIZE;
    uint64_t length = (uint64_t)r->n * BSST_PAGE_SIZE;

    if (p->o->json) {
        printf("%s{ \"start\": %" PRIu64 ", \"length\": %" PRIu64
               ", \"slot\": %" PRIu32, p->nruns ? ",\n" : "", start, length,
               r->slot);
        if (host >= 0) {
            printf(", \"offset\": %" PRId64, host);
        }
        printf(" }");
    } else {
        if (!p->nruns) {
            printf("%-16s%-16s%-12s%s\n", "Offset", "Length", "Slot",
                   "Mapped to");
        }
        printf("0x%-14" PRIx64 "0x%-14" PRIx64 "%-12" PRIu32, start, length,
               r->slot);
        if (host >= 0) {
            printf("0x%" PRIx64, (uint64_t)host);
        }
        printf("\n");
    }
    p->nruns++;
}

/* Print the run @r, in as many parts as it has in the store's file. */
static void map_run(MapPrinter *p, BsstRecord r)
{
    while (r.n) {
        BsstRecord part = r;
        int64_t host = slot_host_offset(p->s, part.slot, &part.n);

        print_run(p, &part, host);
        r.block += part.n;
        r.slot += part.n;
        r.n -= part.n;
    }
}

int tool_map(const ToolOptions *o)
{
    Error *err = NULL;
    ToolStore *s = tool_store_open(o, &err);
    MapPrinter p = { .o = o, .s = s };
    BsstImage *image = s ? tool_find_image(s, o->arg[0], &err) : NULL;
    BsstRecord r = { 0 };
    int ret;

    if (!image) {
        ret = s && !s->journal ? TOOL_DAMAGED : TOOL_FAILED;
        error_report_err(err);
        tool_store_close(s);
        return ret;
    }
    if (o->json) {
        printf("[");
    }
    while (tool_next_run(image, &r)) {
        map_run(&p, r);
    }
    if (o->json) {
        printf("]\n");
    }
    ret = s->problems ? TOOL_DAMAGED : TOOL_OK;
    if (ret == TOOL_DAMAGED) {
        error_report("The block-swap store is damaged, this may not be all: "
                     "%s", tool_store_damage(s));
    }
    tool_store_close(s);
    return ret;
}
