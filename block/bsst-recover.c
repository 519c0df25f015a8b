/*
 * The journal of a block-swap store: reading it all, and a new one
 *
 * Image table, newest checkpoint, journal from there on, in large pieces.  The
 * time is linear in their size, and beside the maps a few MiB of memory are
 * needed.  What does not fit together is damage, and refused: going back to
 * something older would silently lose data.
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

static bool coroutine_fn read_area(BsstJournal *j, uint64_t offset, void *buf,
                                   size_t bytes, const char *what,
                                   Error **errp)
{
    int ret = j->io->co_read(j->opaque, offset, buf, bytes);

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
        error_setg(errp, "The block-swap store is damaged: entry %" PRIu32
                   " of its image table: %s", index, reason);
        return false;
    }
    if (!e.in_use) {
        return true;
    }
    if (bsst_journal_find_image(j, e.uuid)) {
        error_setg(errp, "The block-swap store is damaged: entry %" PRIu32
                   " of its image table is there twice", index);
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

typedef struct Replay {
    BsstJournal *j;
    BsstBlockKind kind;
    const char *what;
    BsstJournalPosition pos;    /* behind what has been read */
    uint64_t origin;            /* blocks of images that came later ... */
    uint64_t nindirections;
    BsstRecord *records;
} Replay;

/* Apply the records of a block that @h describes. */
static bool replay_records(Replay *r, const BsstBlockHeader *h, unsigned n,
                           Error **errp)
{
    BsstJournal *j = r->j;
    BsstImage *image = j->table[h->image];
    bool checkpoint = r->kind == BSST_BLOCK_CHECKPOINT;
    uint64_t when = checkpoint ? r->origin : h->sequence;
    unsigned i;

    for (i = 0; i < n; i++) {
        if (checkpoint && r->records[i].slot == BSST_SLOT_NONE) {
            error_setg(errp, "The block-swap store is damaged: its checkpoint "
                       "has a removal");
            return false;
        }
        r->nindirections += r->records[i].n;
    }
    if (!image || when < image->entry.first_sequence) {
        j->retired[h->image] = !image; /* J10 */
        return true;
    }
    for (i = 0; i < n; i++) {
        durable_map_restore(image->map, &r->records[i]);
    }
    return true;
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

    switch (bsst_block_decode(buf, &expected, j->sb.generation, j->sb.nslots,
                              j->sb.nimages, &h, r->records, &n, &checksum)) {
    case BSST_BLOCK_END:
        return false;
    case BSST_BLOCK_DAMAGED:
        error_setg(errp, "The block-swap store is damaged: block %" PRIu64
                   " of its %s says what cannot be", r->pos.sequence, r->what);
        return false;
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
            error_setg(errp, "The block-swap store is damaged: the header of "
                       "checkpoint %u is not valid", i);
            return false;
        }
        if (!found || this.number > c->number) {
            *c = this;
            *area = i;
        }
        found = true;
    }
    if (!found) {
        error_setg(errp, "The block-swap store is damaged: it has no "
                   "checkpoint");
    }
    return found;
}

/* J7: the body of a header that is valid is, too. */
static bool coroutine_fn load_body(BsstJournal *j, uint8_t *buf,
                                   BsstRecord *records,
                                   const BsstCheckpoint *c, unsigned area,
                                   Error **errp)
{
    Replay r = {
        .j = j,
        .kind = BSST_BLOCK_CHECKPOINT,
        .what = "checkpoint",
        .pos = { .sequence = 1, .generation = c->generation },
        .origin = c->journal_sequence,
        .records = records,
    };

    if (!replay_area(&r, j->sb.checkpoint_offset[area] +
                     BSST_JOURNAL_BLOCK_BYTES, j->checkpoint_blocks,
                     c->nblocks, buf, errp)) {
        return false;
    }
    if (r.pos.sequence != c->nblocks + 1 || r.pos.chain != c->chain ||
        r.nindirections != c->nindirections) {
        error_setg(errp, "The block-swap store is damaged: its checkpoint is "
                   "not complete");
        return false;
    }
    return true;
}

static bool coroutine_fn load_journal(BsstJournal *j, uint8_t *buf,
                                      BsstRecord *records,
                                      const BsstCheckpoint *c,
                                      BsstJournalPosition *tail, Error **errp)
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
        .records = records,
    };

    if (!replay_area(&r, j->sb.journal_offset, j->journal_blocks,
                     j->journal_blocks, buf, errp)) {
        return false;
    }
    *tail = r.pos;
    tail->block %= j->journal_blocks;
    j->replayed_blocks = r.pos.sequence - c->journal_sequence;
    return true;
}

static bool coroutine_fn load_all(BsstJournal *j, uint8_t *buf, Error **errp)
{
    g_autofree BsstRecord *records = g_new(BsstRecord, BSST_JOURNAL_RECORDS);
    BsstJournalPosition tail;
    BsstCheckpoint c;
    unsigned area = 0;

    if (!load_table(j, buf, errp) ||
        !load_headers(j, buf, &c, &area, errp) ||
        !load_body(j, buf, records, &c, area, errp) ||
        !load_journal(j, buf, records, &c, &tail, errp)) {
        return false;
    }
    bsst_journal_recovered(j, &c, area, &tail);
    return true;
}

BsstJournal *coroutine_fn
bsst_journal_co_open(const BsstSuperblock *sb, const BsstJournalIO *io,
                     const BsstJournalSlots *slots, void *opaque,
                     bool read_only, Error **errp)
{
    BsstJournal *j = bsst_journal_new(sb, io, slots, opaque, read_only);
    uint8_t *buf = qemu_try_memalign(BSST_PAGE_SIZE, IO_BYTES);
    bool ok;

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
