/*
 * query-bsst: counters of all block-swap stores and bsst nodes
 *
 * This work is licensed under the terms of the GNU GPL, version 2 or later.
 * See the COPYING file in the top-level directory.
 */

#include "qemu/osdep.h"
#include "block/block_int.h"
#include "bsst-int.h"
#include "qapi/error.h"
#include "qapi/qapi-commands-bsst.h"
#include "qapi/util.h"

static BsstNodeStats *GRAPH_RDLOCK bsst_node_stats(BlockDriverState *bs)
{
    BDRVBsstState *s = bs->opaque;
    BsstNodeStats *st = g_new0(BsstNodeStats, 1);
    QemuUUID uuid;

    st->node_name = g_strdup(bdrv_get_node_name(bs));
    st->file = g_strdup(bdrv_get_node_name(bs->file->bs));
    st->store = g_strdup(bsst_store_node_name(s->store));
    memcpy(uuid.data, s->image->entry.uuid, sizeof(uuid.data));
    st->image = qemu_uuid_unparse_strdup(&uuid);
    st->drain_on_close = s->drain_on_close;
    st->guarded = qatomic_read(&s->guarded);
    st->indirections = qatomic_read(&s->map_count);
    st->held_slots = qatomic_read(&s->map_held);
    st->map_bytes = qatomic_read(&s->map_bytes);
    st->made = stat64_get(&s->made);
    st->removed_overwrite = stat64_get(&s->removed[BSST_REMOVE_OVERWRITE]);
    st->removed_discard = stat64_get(&s->removed[BSST_REMOVE_DISCARD]);
    st->removed_truncate = stat64_get(&s->removed[BSST_REMOVE_TRUNCATE]);
    st->removed_drain = stat64_get(&s->removed[BSST_REMOVE_DRAIN]) +
                        stat64_get(&s->removed[BSST_REMOVE_COPY_UP]);
    st->intercepting = !qatomic_read(&s->draining) && !qatomic_read(&s->held);
    st->defrag = bsst_defrag_query(bs);
    st->copy_ups = stat64_get(&s->copy_ups);
    st->double_paged_pages = stat64_get(&s->double_paged_pages);
    st->avoided_bytes = stat64_get(&s->avoided_bytes);
    st->moved_bytes = stat64_get(&s->moved_bytes);
    st->buffered_pages = stat64_get(&s->buffered_pages);
    st->zero_pages = stat64_get(&s->zero_pages);
    st->loaded_pages = stat64_get(&s->loaded_pages);
    st->installed_pages = stat64_get(&s->installed_pages);
    st->split_reads = stat64_get(&s->split_reads);
    st->store_reads = stat64_get(&s->store_reads);
    st->drains = stat64_get(&s->drains);
    st->drain_errors = stat64_get(&s->drain_errors);
    st->write_prepare = bsst_latency_info(&s->write_prepare);
    st->write_completion = bsst_latency_info(&s->write_completion);
    st->read_prepare = bsst_latency_info(&s->read_prepare);
    st->read_completion = bsst_latency_info(&s->read_completion);
    return st;
}

BsstInfo *qmp_query_bsst(Error **errp)
{
    BsstInfo *info = g_new0(BsstInfo, 1);
    BsstStoreStatsList **stores = &info->stores;
    BsstNodeStatsList **nodes = &info->nodes;
    BsstStore *store = NULL;
    BlockDriverState *bs = NULL;

    GRAPH_RDLOCK_GUARD_MAINLOOP();

    while ((store = bsst_store_next(store))) {
        QAPI_LIST_APPEND(stores, bsst_store_query(store));
    }
    while ((bs = bdrv_next_node(bs))) {
        if (bs->drv == &bdrv_bsst) {
            QAPI_LIST_APPEND(nodes, bsst_node_stats(bs));
        }
    }
    return info;
}
