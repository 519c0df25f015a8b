/*
 * The journal of a block-swap store: reading it all, and a new one
 *
 * Image table, newest checkpoint, journal from there on, in large pieces.
 * Records are collected, sorted by place, and applied to the maps in batches.
 * The time is linear in the size of all this, and beside the maps 64 MiB of
 * memory are needed at most.  What does not fit together is damage, and
 * refused: going back to something older would silently lose data.
 *
 * Who salvages a store (bsst_journal_co_salvage) is told of each thing that is
 * damaged, and gets what is left: the same code, which passes over what it
 * would refuse.
 *
 * Two things are no damage: blocks of an image that is not in the table (it
 * was removed), and those older than its entry (the place had another owner).
 *
 * This work is licensed under the terms of the GNU GPL, version 2 or later.
 * See the COPYING file in the top-level directory.
 */

#include "qemu/osdep.h"
#include "bsst-journal-int.h"
#include "qapi/error.h"
#include "qemu/bswap.h"
#include "qemu/cutils.h"
#include "qemu/memalign.h"

#define IO_BYTES    (BSST_JOURNAL_IO_BLOCKS * BSST_JOURNAL_BLOCK_BYTES)

/*
 * What there is in the end has a slot for each indirection.  On the way there
 * may be more: a checkpoint is not of one moment, and the journal begins before
 * it.  More than this many times the slots is damage that would eat memory.
 */
#define MAX_RESTORED    4u

/*
 * Damage: refuse the store, or tell who salvages it.  Returns true if reading
 * goes on.
 */
static bool G_GNUC_PRINTF(4, 5) damaged(BsstJournal *j, Error **errp,
                                        unsigned rule, const char *fmt, ...)
{
    g_autofree char *msg = NULL;
    va_list ap;

    va_start(ap, fmt);
    msg = g_strdup_vprintf(fmt, ap);
    va_end(ap);
    if (!j->damage) {
        error_setg(errp, "The block-swap store is damaged: %s", msg);
        return false;
    }
    j->damage(j->opaque, rule, msg);
    return true;
}

/* Read what can be read; the rest is bytes that mean nothing. */
static void coroutine_fn salvage_area(BsstJournal *j, uint64_t offset,
                                      uint8_t *buf, size_t bytes,
                                      const char *what)
{
    for (; bytes; bytes -= BSST_PAGE_SIZE) {
        int ret = j->io->co_read(j->opaque, offset, buf, BSST_PAGE_SIZE);

        if (ret < 0) {
            damaged(j, NULL, 0, "4096 bytes of its %s, at %" PRIu64 ", could "
                    "not be read: %s", what, offset, strerror(-ret));
            memset(buf, 0xff, BSST_PAGE_SIZE);
        }
        offset += BSST_PAGE_SIZE;
        buf += BSST_PAGE_SIZE;
    }
}

static bool coroutine_fn read_area(BsstJournal *j, uint64_t offset, void *buf,
                                   size_t bytes, const char *what,
                                   Error **errp)
{
    int ret = j->io->co_read(j->opaque, offset, buf, bytes);

    if (ret < 0 && j->damage) {
        salvage_area(j, offset, buf, bytes, what);
        return true;
    }
    if (ret < 0) {
        error_setg_errno(errp, -ret, "Could not read the %s of the block-swap "
                         "store", what);
    }
    return ret >= 0;
}

/* Image table */

static bool load_entry(BsstJournal *j, uint32_t index, const uint8_t *buf,
                       Error **errp)
{
    const char *reason;
    BsstImageEntry e;
    BsstImage *image;

    reason = bsst_image_entry_decode(&e, buf);
    if (reason) {
        if (!damaged(j, errp, 8, "entry %" PRIu32 " of its image table: %s",
                     index, reason)) {
            return false;
        }
        e = (BsstImageEntry) { .in_use = true };
        snprintf(e.name, sizeof(e.name), "(entry %" PRIu32 ", damaged)",
                 index);
    } else if (!e.in_use) {
        return true;
    } else if (bsst_journal_find_image(j, e.uuid) &&
               !damaged(j, errp, 9, "entry %" PRIu32 " of its image table is "
                        "there twice", index)) {
        return false;
    }
    image = bsst_image_new(j, &e);
    image->index = index;
    j->table[index] = image;
    j->recovered_images++;
    return true;
}

static bool coroutine_fn load_table(BsstJournal *j, uint8_t *buf, Error **errp)
{
    const uint32_t max = IO_BYTES / BSST_IMAGE_ENTRY_BYTES;
    uint32_t first, i, n;

    for (first = 0; first < j->sb.nimages; first += n) {
        uint64_t pos = (uint64_t)first * BSST_IMAGE_ENTRY_BYTES;

        n = MIN(max, j->sb.nimages - first);
        if (!read_area(j, j->sb.images_offset + pos, buf,
                       ROUND_UP(n * BSST_IMAGE_ENTRY_BYTES, BSST_PAGE_SIZE),
                       "image table", errp)) {
            return false;
        }
        for (i = 0; i < n; i++) {
            if (!load_entry(j, first + i, buf + i * BSST_IMAGE_ENTRY_BYTES,
                            errp)) {
                return false;
            }
        }
    }
    return true;
}

/* Blocks of records */

/* Checkpoint and journal, one after the other */
typedef struct Restore {
    BsstJournal *j;
    RecordBatch *batch;         /* records that are not applied yet */
    uint64_t added;             /* blocks that it may add to the maps */
    uint64_t entries;           /* of all maps, without these */
} Restore;

typedef struct Replay {
    BsstJournal *j;
    BsstBlockKind kind;
    const char *what;
    BsstJournalPosition pos;    /* behind what has been read */
    BsstJournalPosition end;    /* behind what has been replayed */
    uint64_t origin;            /* blocks of images that came later ... */
    uint64_t nindirections;
    Restore *restore;
    bool too_many;              /* salvage: some were left out */
    BsstRecord *records;
} Replay;

static void restore_apply(Restore *t)
{
    QEMU_UNINITIALIZED BsstRecordWord word;

    while (record_batch_next(t->batch, &word)) {
        DurableMap *m = t->j->table[word.map]->map;
        uint64_t before = indirect_map_count(durable_map_current(m));

        durable_map_restore(m, &word);
        t->entries += indirect_map_count(durable_map_current(m)) - before;
    }
    t->added = 0;
}

/* Replay one record of the image with entry @index, unless it were too many. */
static bool replay_record(Replay *r, uint32_t index, const BsstRecord *record,
                          Error **errp)
{
    uint64_t max = (uint64_t)r->j->sb.nslots * MAX_RESTORED;
    uint64_t n = record->slot == BSST_SLOT_NONE ? 0 : record->n;
    Restore *t = r->restore;

    if (t->entries + t->added + n > max) {
        restore_apply(t);       /* there may be less than it seemed */
    }
    if (n && t->entries + n > max) {
        if (!r->too_many) {
            r->too_many = true;
            return damaged(r->j, errp, 14, "it has far more indirections than "
                           "its %" PRIu32 " slots", r->j->sb.nslots);
        }
        return true;
    }
    record_batch_add(t->batch, index, record);
    t->added += n;
    if (record_batch_bytes(t->batch) >= BSST_RECORD_BATCH_BYTES) {
        restore_apply(t);
    }
    return true;
}

/*
 * Apply the records of a block that @h describes.  Returns false and sets @errp
 * if that cannot be.
 */
static bool replay_records(Replay *r, const BsstBlockHeader *h, unsigned n,
                           Error **errp)
{
    BsstJournal *j = r->j;
    BsstImage *image = j->table[h->image];
    bool checkpoint = r->kind == BSST_BLOCK_CHECKPOINT;
    uint64_t when = checkpoint ? r->origin : h->sequence;
    unsigned i;

    for (i = 0; i < n; i++) {
        r->nindirections += r->records[i].n;
    }
    if (!image || when < image->entry.first_sequence) {
        j->retired[h->image] = !image; /* J10 */
        return true;
    }
    for (i = 0; i < n; i++) {
        if (!replay_record(r, h->image, &r->records[i], errp)) {
            return false;
        }
    }
    return true;
}

/* Salvage: there is no next block, but there may be one after it. */
static bool replay_skip(Replay *r)
{
    if (!r->j->damage) {
        return false;
    }
    r->pos.block++;
    r->pos.sequence++;
    return true;
}

/*
 * Salvage: behind a gap the chain is not known.  Can @buf be the block that
 * belongs here?  In the journal only what is of the last life of a store that
 * was closed counts: anything else may be what a crash has left behind the end.
 */
static bool replay_behind_gap(Replay *r, const uint8_t *buf,
                              BsstBlockHeader *expected, Error **errp)
{
    const BsstSuperblock *sb = &r->j->sb;
    bool journal = r->kind == BSST_BLOCK_JOURNAL;
    BsstBlockHeader h;

    if (r->pos.sequence == r->end.sequence ||
        !bsst_block_peek(buf, r->kind, &h) ||
        h.sequence != expected->sequence ||
        h.generation != (journal ? sb->generation : expected->generation) ||
        (journal && !sb->clean)) {
        return false;
    }
    expected->chain = h.chain;
    return damaged(r->j, errp, 13, "%" PRIu64 " blocks of its %s are lost, "
                   "from number %" PRIu64 " on",
                   r->pos.sequence - r->end.sequence, r->what,
                   r->end.sequence);
}

/* Read one block from @buf.  Returns false at the end and after an error. */
static bool replay_block(Replay *r, const uint8_t *buf, Error **errp)
{
    BsstJournal *j = r->j;
    BsstBlockHeader expected = {
        .kind = r->kind,
        .sequence = r->pos.sequence,
        .generation = r->pos.generation,
        .chain = r->pos.chain,
    };
    BsstBlockHeader h;
    uint64_t checksum;
    unsigned n;

    if (r->pos.sequence != r->end.sequence &&
        !replay_behind_gap(r, buf, &expected, errp)) {
        return replay_skip(r);
    }
    switch (bsst_block_decode(buf, &expected, j->sb.generation, j->sb.nslots,
                              j->sb.nimages, &h, r->records, &n, &checksum)) {
    case BSST_BLOCK_END:
        return replay_skip(r);
    case BSST_BLOCK_DAMAGED:
        return damaged(j, errp, 13, "block %" PRIu64 " of its %s says what "
                       "cannot be", r->pos.sequence, r->what) &&
               replay_skip(r);
    case BSST_BLOCK_VALID:
        break;
    }
    if (!replay_records(r, &h, n, errp)) {
        return false;
    }
    r->pos.block++;
    r->pos.sequence++;
    r->pos.chain = checksum;
    r->pos.generation = h.generation;
    r->end = r->pos;
    return true;
}

/*
 * Read up to @n blocks of @area, of @area_blocks, which is circular.  Stops at
 * the first one that is not the next.  Returns false and sets @errp on error.
 */
static bool coroutine_fn replay_area(Replay *r, uint64_t area,
                                     uint64_t area_blocks, uint64_t n,
                                     uint8_t *buf, Error **errp)
{
    ERRP_GUARD();

    r->end = r->pos;
    while (n) {
        unsigned i, piece = MIN(MIN(n, BSST_JOURNAL_IO_BLOCKS),
                                area_blocks - r->pos.block);

        if (!read_area(r->j, area + r->pos.block * BSST_JOURNAL_BLOCK_BYTES,
                       buf, piece * BSST_JOURNAL_BLOCK_BYTES, r->what, errp)) {
            return false;
        }
        for (i = 0; i < piece; i++) {
            if (!replay_block(r, buf + i * BSST_JOURNAL_BLOCK_BYTES, errp)) {
                return !*errp;
            }
        }
        r->pos.block %= area_blocks;
        n -= piece;
    }
    return true;
}

/* Checkpoint */

/*
 * Read both headers and find the newer one.  A blank header is one that has
 * not been written yet, and any other that is not valid is damage: a header
 * fits into a sector, which is written whole or not at all.
 */
static bool coroutine_fn load_headers(BsstJournal *j, uint8_t *buf,
                                      BsstCheckpoint *c, unsigned *area,
                                      Error **errp)
{
    bool found = false;
    unsigned i;

    for (i = 0; i < 2; i++) {
        BsstCheckpoint this;

        if (!read_area(j, j->sb.checkpoint_offset[i], buf,
                       BSST_JOURNAL_BLOCK_BYTES, "checkpoint", errp)) {
            return false;
        }
        if (buffer_is_zero(buf, BSST_JOURNAL_BLOCK_BYTES)) {
            continue;
        }
        if (!bsst_checkpoint_decode(&this, buf, j->sb.generation,
                                    j->checkpoint_blocks, j->journal_blocks)) {
            if (!damaged(j, errp, 10, "the header of checkpoint %u is not "
                         "valid", i)) {
                return false;
            }
            continue;
        }
        if (!found || this.number > c->number) {
            *c = this;
            *area = i;
        }
        found = true;
    }
    return found || damaged(j, errp, 10, "it has no checkpoint");
}

/* J7: the body of a header that is valid is, too. */
static bool coroutine_fn load_body(BsstJournal *j, uint8_t *buf,
                                   BsstRecord *records,
                                   const BsstCheckpoint *c, unsigned area,
                                   Restore *restore, Error **errp)
{
    Replay r = {
        .j = j,
        .kind = BSST_BLOCK_CHECKPOINT,
        .what = "checkpoint",
        .pos = { .sequence = 1, .generation = c->generation },
        .origin = c->journal_sequence,
        .restore = restore,
        .records = records,
    };

    if (!replay_area(&r, j->sb.checkpoint_offset[area] +
                     BSST_JOURNAL_BLOCK_BYTES, j->checkpoint_blocks,
                     c->nblocks, buf, errp)) {
        return false;
    }
    return (r.end.sequence == c->nblocks + 1 && r.end.chain == c->chain &&
            r.nindirections == c->nindirections) ||
           damaged(j, errp, 12, "its checkpoint is not complete");
}

static bool coroutine_fn load_journal(BsstJournal *j, uint8_t *buf,
                                      BsstRecord *records,
                                      const BsstCheckpoint *c,
                                      BsstJournalPosition *tail,
                                      Restore *restore, Error **errp)
{
    Replay r = {
        .j = j,
        .kind = BSST_BLOCK_JOURNAL,
        .what = "journal",
        .pos = {
            .block = c->journal_block,
            .sequence = c->journal_sequence,
            .chain = c->journal_chain,
            .generation = c->journal_generation,
        },
        .restore = restore,
        .records = records,
    };

    if (!replay_area(&r, j->sb.journal_offset, j->journal_blocks,
                     j->journal_blocks, buf, errp)) {
        return false;
    }
    *tail = r.end;
    tail->block %= j->journal_blocks;
    j->replayed_blocks = r.end.sequence - c->journal_sequence;
    return true;
}

/* J10: an image whose records begin later would lose those to come. */
static bool check_first_sequences(BsstJournal *j,
                                  const BsstJournalPosition *tail,
                                  Error **errp)
{
    for (uint32_t i = 0; i < j->sb.nimages; i++) {
        if (j->table[i] &&
            j->table[i]->entry.first_sequence > tail->sequence &&
            !damaged(j, errp, 9, "entry %" PRIu32 " of its image table begins "
                     "behind the end of its journal", i)) {
            return false;
        }
    }
    return true;
}

static bool coroutine_fn load_all(BsstJournal *j, uint8_t *buf, Error **errp)
{
    g_autofree BsstRecord *records = g_new(BsstRecord, BSST_JOURNAL_RECORDS);
    Restore restore = { .j = j };
    BsstCheckpoint c = { .number = 0 };
    BsstJournalPosition tail;
    unsigned area = 0;
    bool ok;

    if (!load_table(j, buf, errp) ||
        !load_headers(j, buf, &c, &area, errp)) {
        return false;
    }
    if (!c.number) {
        return true;            /* salvage: these are all */
    }
    restore.batch = record_batch_new();
    ok = load_body(j, buf, records, &c, area, &restore, errp) &&
         load_journal(j, buf, records, &c, &tail, &restore, errp) &&
         check_first_sequences(j, &tail, errp);
    restore_apply(&restore);
    record_batch_free(restore.batch);
    if (!ok) {
        return false;
    }
    bsst_journal_recovered(j, &c, area, &tail);
    return j->weight <= j->sb.nslots ||
           damaged(j, errp, 14, "it has %" PRIu64 " indirections, but only %"
                   PRIu32 " slots", j->weight, j->sb.nslots);
}

/* Returns @j, or frees it. */
static BsstJournal *coroutine_fn journal_co_load(BsstJournal *j, Error **errp)
{
    uint8_t *buf = qemu_try_memalign(BSST_PAGE_SIZE, IO_BYTES);
    bool ok;

    assert(!j->sb.unfinished);
    if (buf) {
        ok = load_all(j, buf, errp);
    } else {
        error_setg(errp, "No memory to read the block-swap store");
        ok = false;
    }
    qemu_vfree(buf);
    if (!ok) {
        bsst_journal_free(j);
        return NULL;
    }
    return j;
}

BsstJournal *coroutine_fn
bsst_journal_co_open(const BsstSuperblock *sb, const BsstJournalIO *io,
                     const BsstJournalSlots *slots, void *opaque,
                     bool read_only, Error **errp)
{
    return journal_co_load(bsst_journal_new(sb, io, slots, opaque, read_only),
                           errp);
}

BsstJournal *coroutine_fn
bsst_journal_co_salvage(const BsstSuperblock *sb, const BsstJournalIO *io,
                        void *opaque, BsstDamageFunc *damage, Error **errp)
{
    BsstJournal *j = bsst_journal_new(sb, io, NULL, opaque, true);

    j->damage = damage;
    return journal_co_load(j, errp);
}

int coroutine_fn bsst_journal_co_read_checksums(BsstJournal *j, BsstSlot first,
                                                unsigned n, uint64_t *sum)
{
    size_t bytes = ROUND_UP(n * sizeof(*sum), BSST_PAGE_SIZE);
    uint8_t *buf = qemu_try_memalign(BSST_PAGE_SIZE, bytes);
    unsigned i;
    int ret;

    if (!buf) {
        return -ENOMEM;
    }
    assert(first % BSST_CHECKSUMS_PER_BLOCK == 0);
    ret = j->io->co_read(j->opaque, j->sb.checksums_offset +
                         (uint64_t)first * sizeof(*sum), buf, bytes);
    for (i = 0; i < n && ret == 0; i++) {
        sum[i] = ldq_le_p(buf + i * sizeof(*sum));
    }
    qemu_vfree(buf);
    return ret;
}

/* A new store */

static int coroutine_fn write_zeroes(BsstJournal *j, uint64_t offset,
                                     uint64_t bytes)
{
    size_t max = MIN(bytes, IO_BYTES);
    uint8_t *buf = qemu_try_memalign(BSST_PAGE_SIZE, max);
    int ret = 0;

    if (!buf) {
        return -ENOMEM;
    }
    memset(buf, 0, max);
    while (bytes && ret == 0) {
        size_t n = MIN(bytes, max);

        ret = j->io->co_write(j->opaque, offset, buf, n);
        offset += n;
        bytes -= n;
    }
    qemu_vfree(buf);
    return ret;
}

/*
 * Checksums, and all of the journal but its first block, are left as they are:
 * nothing is read that has not been written before.
 */
static int coroutine_fn format_all(BsstJournal *j)
{
    const BsstSuperblock *sb = &j->sb;
    BsstCheckpoint c = {
        .number = 1,
        .generation = sb->generation,
        .journal_sequence = 1,
        /* What an older store may have left here has another chain. */
        .journal_chain = bsst_checksum(sb->uuid, sizeof(sb->uuid)),
        .journal_generation = sb->generation,
    };
    int ret;

    ret = write_zeroes(j, sb->images_offset,
                       ROUND_UP((uint64_t)sb->nimages * BSST_IMAGE_ENTRY_BYTES,
                                BSST_PAGE_SIZE));
    if (ret == 0) {
        ret = write_zeroes(j, sb->journal_offset, BSST_JOURNAL_BLOCK_BYTES);
    }
    if (ret == 0) {
        ret = bsst_checkpoint_co_write_header(j, 1, NULL);
    }
    if (ret == 0) {
        ret = bsst_checkpoint_co_write_header(j, 0, &c);
    }
    return ret < 0 ? ret : j->io->co_flush(j->opaque);
}

int coroutine_fn bsst_journal_co_format(const BsstSuperblock *sb,
                                        const BsstJournalIO *io, void *opaque)
{
    BsstJournal *j = bsst_journal_new(sb, io, NULL, opaque, false);
    int ret = format_all(j);

    bsst_journal_free(j);
    return ret;
}
