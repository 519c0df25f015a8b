/*
 * bsst block driver: qemu-img check and info
 *
 * A check reads all blocks that are in the store, and checks the image below,
 * which nobody can without us while it is guarded.  What is wrong with the
 * store itself, bsst-tool tells.
 *
 * This work is licensed under the terms of the GNU GPL, version 2 or later.
 * See the COPYING file in the top-level directory.
 */

#include "qemu/osdep.h"
#include "block/block_int.h"
#include "bsst-int.h"
#include "coroutines.h"
#include "qemu/error-report.h"
#include "qemu/lockable.h"
#include "qemu/memalign.h"

static void bsst_check_failed(BlockDriverState *bs, BdrvCheckResult *result,
                              uint64_t block, BsstSlot slot, int ret)
{
    error_report("ERROR %s: offset %" PRId64 ", in slot %" PRIu32 " of the "
                 "block-swap store: %s", bs->file->bs->filename,
                 bsst_block_offset(block), slot,
                 ret == -EILSEQ ? "damaged" : strerror(-ret));
    if (ret == -EILSEQ) {
        result->corruptions++;
    } else {
        result->check_errors++;
    }
}

/* Read the @n blocks from @block on, which a tracked request covers. */
static void coroutine_fn bsst_co_check_chunk(BlockDriverState *bs,
                                             BdrvCheckResult *result,
                                             uint64_t block, unsigned n,
                                             void *buf)
{
    BDRVBsstState *s = bs->opaque;
    BsstSlot slot[BSST_CHUNK_BLOCKS];
    unsigned i, run;
    int ret;

    WITH_QEMU_LOCK_GUARD(&s->image->lock) {
        for (i = 0; i < n; i++) {
            slot[i] = indirect_map_lookup(bsst_map(s), block + i);
        }
    }
    for (i = 0; i < n; i += run) {
        for (run = 1; i + run < n && slot[i + run] == slot[i] + run; run++) {
            /* they lie one behind the other */
        }
        if (slot[i] == BSST_SLOT_NONE) {
            run = 1;            /* it has left the store meanwhile */
            continue;
        }
        if (bsst_store_co_read(s->store, slot[i], run, buf) == 0) {
            continue;
        }
        run = 1;                /* which one? */
        ret = bsst_store_co_read(s->store, slot[i], 1, buf);
        if (ret < 0) {
            bsst_check_failed(bs, result, block + i, slot[i], ret);
        }
    }
}

int coroutine_fn GRAPH_RDLOCK bsst_co_check(BlockDriverState *bs,
                                            BdrvCheckResult *result,
                                            BdrvCheckMode fix)
{
    BDRVBsstState *s = bs->opaque;
    int ret = bdrv_co_check(bs->file->bs, result, fix);
    uint64_t block = 0;
    BlockReq req;
    unsigned n;
    void *buf;

    if (ret < 0 && ret != -ENOTSUP) {
        return ret;
    }
    buf = bsst_store_buffer(s->store, BSST_CHUNK_BLOCKS * BSST_PAGE_SIZE);
    if (!buf) {
        return -ENOMEM;
    }
    while (bsst_map_next_run(s, &block, &n)) {
        bsst_track_begin(s, &req, bsst_block_offset(block),
                         (int64_t)n * BSST_PAGE_SIZE);
        bsst_co_check_chunk(bs, result, block, n, buf);
        bsst_track_end(s, &req);
        block += n;
    }
    qemu_vfree(buf);
    return 0;
}

ImageInfoSpecific *bsst_get_specific_info(BlockDriverState *bs, Error **errp)
{
    BDRVBsstState *s = bs->opaque;
    ImageInfoSpecific *info = g_new0(ImageInfoSpecific, 1);
    ImageInfoSpecificBsst *data = g_new0(ImageInfoSpecificBsst, 1);
    QemuUUID image;

    memcpy(image.data, s->image->entry.uuid, sizeof(image.data));
    data->store = qemu_uuid_unparse_strdup(bsst_store_uuid(s->store));
    data->store_filename = g_strdup(bsst_store_filename(s->store));
    data->image = qemu_uuid_unparse_strdup(&image);
    data->generation = s->image->entry.generation;
    data->guarded = qatomic_read(&s->guarded);
    data->indirections = qatomic_read(&s->map_count);

    info->type = IMAGE_INFO_SPECIFIC_KIND_BSST;
    info->u.bsst.data = data;
    return info;
}
