/*
 * The block-swap store: statistics
 *
 * This work is licensed under the terms of the GNU GPL, version 2 or later.
 * See the COPYING file in the top-level directory.
 */

#include "qemu/osdep.h"
#include "block/aio-wait.h"
#include "bsst-store-int.h"

static BsstJournalInfo *store_query_journal(BsstStore *s)
{
    BsstJournalInfo *info = g_new0(BsstJournalInfo, 1);
    BsstJournalStats st;

    bsst_journal_get_stats(s->journal, &st);
    info->recovered_indirections = st.recovered_indirections;
    info->recovered_images = st.recovered_images;
    info->replayed_blocks = st.replayed_blocks;
    info->commits = st.commits;
    info->records = st.records;
    info->recorded_blocks = st.recorded_blocks;
    info->journal_bytes = st.journal_bytes;
    info->checksum_bytes = st.checksum_bytes;
    info->checkpoints = st.checkpoints;
    info->checkpoint_bytes = st.checkpoint_bytes;
    info->flushes = st.flushes;
    info->errors = st.errors;
    info->used_bytes = st.used_bytes;
    return info;
}

typedef struct StoreQueryImages {
    BsstStore *s;
    BsstImageInfoList *list;
    bool done;
} StoreQueryImages;

/* The images' locks are taken by coroutines only. */
static void coroutine_fn store_co_query_images(void *opaque)
{
    StoreQueryImages *q = opaque;
    BsstImageInfoList **tail = &q->list;
    BsstImage *image = NULL;

    while ((image = bsst_journal_next_image(q->s->journal, image))) {
        BsstImageInfo *info = g_new0(BsstImageInfo, 1);
        QemuUUID uuid;

        memcpy(uuid.data, image->entry.uuid, sizeof(uuid.data));
        info->uuid = qemu_uuid_unparse_strdup(&uuid);
        info->filename = g_strdup(image->entry.name);
        info->generation = image->entry.generation;
        info->attached = image->attached;
        info->raw = image->entry.raw;
        WITH_QEMU_LOCK_GUARD(&image->lock) {
            const IndirectMap *map = durable_map_current(image->map);

            info->indirections = indirect_map_count(map);
            info->held_slots = durable_map_weight(image->map) -
                               info->indirections;
            info->pending = durable_map_changed(image->map) ||
                            durable_map_preparing(image->map);
        }
        QAPI_LIST_APPEND(tail, info);
    }
    q->done = true;
    aio_wait_kick();
}

static BsstImageInfoList *store_query_images(BsstStore *s)
{
    StoreQueryImages q = { .s = s };

    GLOBAL_STATE_CODE();
    qemu_coroutine_enter(qemu_coroutine_create(store_co_query_images, &q));
    AIO_WAIT_WHILE_UNLOCKED(NULL, !q.done);
    return q.list;
}

BsstStoreStats *bsst_store_query(BsstStore *s)
{
    BsstStoreStats *st = g_new0(BsstStoreStats, 1);

    st->node_name = g_strdup(s->node_name);
    st->uuid = qemu_uuid_unparse_strdup(&s->uuid);
    st->aio = s->aio;
    WITH_QEMU_LOCK_GUARD(&s->lock) {
        st->slots = slot_table_size(s->slots);
        st->slots_free = slot_table_nfree(s->slots);
        st->slots_backed = slot_table_nbacked(s->slots);
        st->metadata_bytes = slot_table_bytes(s->slots);
        st->full = s->full;
    }
    st->reads = stat64_get(&s->reads);
    st->read_bytes = stat64_get(&s->read_bytes);
    st->writes = stat64_get(&s->writes);
    st->write_bytes = stat64_get(&s->write_bytes);
    st->punched_bytes = stat64_get(&s->punched_bytes);
    st->checksum_errors = stat64_get(&s->checksum_errors);
    st->io_errors = stat64_get(&s->io_errors);
    st->generation = s->sb.generation;
    st->journal = store_query_journal(s);
    st->images = store_query_images(s);
    return st;
}
