/*
 * The block-swap store: superblock, recovery and clean end
 *
 * References by images come back when the store is opened: the journal knows
 * them, and the table of checksums has what the slots must contain.
 *
 * This work is licensed under the terms of the GNU GPL, version 2 or later.
 * See the COPYING file in the top-level directory.
 */

#include "qemu/osdep.h"
#include "block/aio-wait.h"
#include "bsst-store-int.h"
#include "qapi/error.h"
#include "qemu/error-report.h"
#include "qemu/memalign.h"
#include "qemu/units.h"
#include "trace.h"

/* A journal that is longer than this is worth a checkpoint at the end. */
#define LONG_JOURNAL_BYTES  (256 * KiB)

/* Checksums are read in pieces of this many bytes. */
#define CHECKSUMS_BYTES     (1 * MiB)

static int coroutine_fn store_co_write_superblock(BsstStore *s)
{
    uint8_t *buf = bsst_store_buffer(s, BSST_SUPERBLOCK_BYTES);
    int ret = -ENOMEM;

    if (buf) {
        bsst_superblock_encode(&s->sb, buf);
        ret = bsst_store_co_meta_write(s, 0, buf, BSST_SUPERBLOCK_BYTES);
    }
    if (ret == 0) {
        ret = bsst_store_co_flush(s);
    }
    qemu_vfree(buf);
    return ret;
}

/*
 * Take the references that the images' maps own: there are no changes yet.  Any
 * other slot may have space in the file, unless the store is @blank.
 */
static void store_restore_references(BsstStore *s, bool blank)
{
    BsstImage *image = NULL;

    while ((image = bsst_journal_next_image(s->journal, image))) {
        const IndirectMap *map = durable_map_current(image->map);
        BsstSlot slot[BSST_WORD_BLOCKS];
        uint64_t block = 0;
        unsigned n;

        while ((n = indirect_map_next_slots(map, &block, slot))) {
            slot_table_restore_refs(s->slots, slot, n);
        }
    }
    slot_table_restore_done(s->slots, !blank);
}

/* Load the checksums of the slots in use. */
static int coroutine_fn store_co_load_checksums(BsstStore *s)
{
    const uint32_t per_piece = CHECKSUMS_BYTES / sizeof(uint64_t);
    uint32_t nslots = s->sb.nslots;
    uint64_t *buf = bsst_store_buffer(s, CHECKSUMS_BYTES);
    int ret = buf ? 0 : -ENOMEM;

    for (uint64_t first = 0; ret == 0 && first < nslots; first += per_piece) {
        uint32_t n = MIN(nslots - first, per_piece);
        uint32_t i = 0;

        while (i < n && !slot_table_refs(s->slots, first + i)) {
            i++;
        }
        if (i == n) {
            continue;
        }
        ret = bsst_store_co_meta_read(s, s->sb.checksums_offset + first * 8,
                                      buf, ROUND_UP(n * 8, BSST_PAGE_SIZE));
        for (i = 0; ret == 0 && i < n; i++) {
            le64_to_cpus(&buf[i]);
        }
        if (ret == 0) {
            slot_table_restore_checksums(s->slots, first, n, buf);
        }
    }
    qemu_vfree(buf);
    return ret;
}

static void store_report_recovery(BsstStore *s, bool clean)
{
    BsstJournalStats st;

    bsst_journal_get_stats(s->journal, &st);
    trace_bsst_store_recovered(s->node_name, st.recovered_images,
                               st.recovered_indirections, st.replayed_blocks);
    if (!clean && st.recovered_indirections) {
        info_report("block-swap store '%s' was not closed: recovered %" PRIu64
                    " KiB of %" PRIu64 " disks", s->filename,
                    st.recovered_indirections * (BSST_PAGE_SIZE / KiB),
                    st.recovered_images);
    }
}

typedef struct StoreTask {
    BsstStore *s;
    bool blank;
    Error **errp;
    int ret;
} StoreTask;

/*
 * Make a new store.  Its superblock says so, durably, before anything else is
 * written: what a crash leaves is blank still, or known to be ours, and made
 * anew.  It becomes a store when its superblock is written again.
 */
static int coroutine_fn store_co_format(BsstStore *s)
{
    int ret;

    s->sb.unfinished = true;
    ret = store_co_write_superblock(s);
    if (ret == 0) {
        ret = bsst_journal_co_format(&s->sb, &s->journal_io, s);
    }
    s->sb.unfinished = false;
    return ret;
}

/* Nothing is written to a store that exists before all of it was read. */
static int coroutine_fn store_co_start(BsstStore *s, bool blank, Error **errp)
{
    bool clean = blank || s->sb.clean;
    int ret = 0;

    s->journal_io = (BsstJournalIO) {
        .co_read = bsst_store_co_meta_read,
        .co_write = bsst_store_co_meta_write,
        .co_flush = bsst_store_co_flush,
        /* The page cache forgets what it could not write. */
        .flush_errors_are_final = !s->direct,
    };
    if (!s->read_only) {
        s->sb.generation++;
        s->sb.clean = false;
    }
    if (blank) {
        ret = store_co_format(s);
        if (ret < 0) {
            error_setg_errno(errp, -ret, "Could not format the block-swap "
                             "store '%s'", s->node_name);
            return ret;
        }
    }
    s->slots = slot_table_new(s->sb.nslots);
    s->journal = bsst_journal_co_open(&s->sb, &s->journal_io,
                                      &bsst_store_journal_slots, s,
                                      s->read_only, errp);
    if (!s->journal) {
        return -EINVAL;
    }
    store_restore_references(s, blank);
    ret = store_co_load_checksums(s);
    if (ret < 0) {
        error_setg_errno(errp, -ret, "Could not read the checksums of the "
                         "block-swap store '%s'", s->node_name);
        return ret;
    }
    store_report_recovery(s, clean);
    if (!s->read_only) {
        ret = store_co_write_superblock(s);
    }
    if (ret < 0) {
        error_setg_errno(errp, -ret, "Could not write the superblock of the "
                         "block-swap store '%s'", s->node_name);
    }
    return ret;
}

static void coroutine_fn store_co_start_entry(void *opaque)
{
    StoreTask *t = opaque;

    t->ret = store_co_start(t->s, t->blank, t->errp);
    aio_wait_kick();
}

bool bsst_store_start(BsstStore *s, bool blank, Error **errp)
{
    StoreTask t = { .s = s, .blank = blank, .errp = errp, .ret = -EINPROGRESS };

    qemu_coroutine_enter(qemu_coroutine_create(store_co_start_entry, &t));
    AIO_WAIT_WHILE_UNLOCKED(NULL, t.ret == -EINPROGRESS);
    if (t.ret == 0 && !s->read_only && !blank) {
        bsst_store_punch_later(s);
    }
    return t.ret == 0;
}

/*
 * The end of a store that is in order.  What is written here only saves time
 * at the next start.
 */
static void coroutine_fn store_co_stop_entry(void *opaque)
{
    StoreTask *t = opaque;
    BsstStore *s = t->s;
    BsstJournalStats st;
    int ret = 0;

    bsst_journal_get_stats(s->journal, &st);
    if (st.used_bytes >= LONG_JOURNAL_BYTES) {
        ret = bsst_journal_co_checkpoint(s->journal);
    }
    if (ret == 0) {
        s->sb.clean = true;
        ret = store_co_write_superblock(s);
    }
    t->ret = ret;
    aio_wait_kick();
}

void bsst_store_stop(BsstStore *s)
{
    StoreTask t = { .s = s, .ret = -EINPROGRESS };

    qemu_coroutine_enter(qemu_coroutine_create(store_co_stop_entry, &t));
    AIO_WAIT_WHILE_UNLOCKED(NULL, t.ret == -EINPROGRESS);
    if (t.ret < 0) {
        warn_report("block-swap store '%s' could not be closed properly: %s; "
                    "it recovers when it is opened again", s->filename,
                    strerror(-t.ret));
    }
}
