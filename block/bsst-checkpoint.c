/*
 * The journal of a block-swap store: composing and writing blocks
 *
 * What goes to disk, in which form.  When it goes there, and what has to be
 * durable before or after, is the business of bsst-journal.c: here are no
 * flushes.
 *
 * This work is licensed under the terms of the GNU GPL, version 2 or later.
 * See the COPYING file in the top-level directory.
 */

#include "qemu/osdep.h"
#include "bsst-journal-int.h"
#include "qemu/bswap.h"
#include "qemu/memalign.h"

/*
 * Blocks of the checksum table that are this close to each other are written
 * in one go, with those in between: fewer requests are worth some bytes.
 */
#define CHECKSUM_GAP_BLOCKS     8u

/*
 * Blocks of a checkpoint that are composed, and written, in one go: the main
 * loop does nothing else meanwhile.
 */
#define BODY_IO_BLOCKS          64u

static void *try_alloc_blocks(uint64_t n)
{
    return qemu_try_memalign(BSST_PAGE_SIZE, n * BSST_JOURNAL_BLOCK_BYTES);
}

static int coroutine_fn write_blocks(BsstJournal *j, uint64_t area,
                                     uint64_t block, const void *buf,
                                     unsigned n)
{
    return j->io->co_write(j->opaque, area + block * BSST_JOURNAL_BLOCK_BYTES,
                           buf, (size_t)n * BSST_JOURNAL_BLOCK_BYTES);
}

/* Blocks of records */

int bsst_block_writer_init(BsstBlockWriter *w, BsstJournal *j,
                           BsstBlockKind kind, uint64_t area,
                           uint64_t area_blocks,
                           const BsstJournalPosition *pos, uint64_t nblocks)
{
    *w = (BsstBlockWriter) {
        .j = j,
        .kind = kind,
        .area = area,
        .area_blocks = area_blocks,
        .pos = *pos,
        .buf_blocks = MIN(nblocks, BSST_JOURNAL_IO_BLOCKS),
    };
    w->buf = try_alloc_blocks(w->buf_blocks);
    return w->buf ? 0 : -ENOMEM;
}

/* @end is where the buffered blocks end: pos, or the area's end. */
static int coroutine_fn block_writer_co_write(BsstBlockWriter *w, uint64_t end)
{
    unsigned n = w->buffered;

    w->buffered = 0;
    return n ? write_blocks(w->j, w->area, end - n, w->buf, n) : 0;
}

int coroutine_fn bsst_block_writer_co_add(BsstBlockWriter *w, uint32_t image,
                                          const BsstRecord *records,
                                          unsigned n)
{
    BsstBlockHeader h = {
        .kind = w->kind,
        .image = image,
        .sequence = w->pos.sequence,
        .generation = w->j->sb.generation,
        .chain = w->pos.chain,
    };
    uint64_t end = w->pos.block + 1;
    int ret = 0;

    w->pos.chain = bsst_block_encode(&h, records, n, w->buf + w->buffered *
                                     BSST_JOURNAL_BLOCK_BYTES);
    w->pos.generation = h.generation;
    w->pos.sequence++;
    w->pos.block = end % w->area_blocks;
    w->buffered++;
    if (w->buffered == w->buf_blocks || end == w->area_blocks) {
        ret = block_writer_co_write(w, end);
    }
    return ret;
}

int coroutine_fn bsst_block_writer_co_end(BsstBlockWriter *w, int ret)
{
    if (ret == 0) {
        ret = block_writer_co_write(w, w->pos.block);
    }
    qemu_vfree(w->buf);
    return ret;
}

/* Journal */

int coroutine_fn bsst_journal_co_write_scrub(BsstJournal *j,
                                             const BsstJournalPosition *pos,
                                             uint64_t n)
{
    unsigned max = MIN(n, BSST_JOURNAL_IO_BLOCKS);
    uint64_t block = pos->block;
    uint8_t *buf = try_alloc_blocks(max);
    int ret = 0;

    if (!buf) {
        return -ENOMEM;
    }
    /*
     * No sector of a block looks like this: neither its head, nor records
     * (such a block number is too large), nor what is left.  So a torn scrub
     * cannot complete a block that was torn, too.
     */
    memset(buf, 0xff, max * BSST_JOURNAL_BLOCK_BYTES);
    while (n && ret == 0) {
        unsigned piece = MIN(MIN(n, max), j->journal_blocks - block);

        ret = write_blocks(j, j->sb.journal_offset, block, buf, piece);
        block = (block + piece) % j->journal_blocks;
        n -= piece;
    }
    qemu_vfree(buf);
    return ret;
}

/* Checkpoints */

/* Fetch up to a block's worth of records at or after *@block. */
static unsigned coroutine_fn next_committed(BsstImage *image, bool prepared,
                                            uint64_t *block,
                                            BsstRecord *records)
{
    unsigned n = 0;

    QEMU_LOCK_GUARD(&image->lock);
    while (n < BSST_JOURNAL_RECORDS &&
           durable_map_next_committed(image->map, prepared, *block,
                                      &records[n])) {
        *block = records[n].block + records[n].n;
        n++;
    }
    return n;
}

static int coroutine_fn write_image(BsstBlockWriter *w, BsstImage *image,
                                    bool prepared, BsstCheckpoint *cp,
                                    bool *overflow)
{
    g_autofree BsstRecord *records = g_new(BsstRecord, BSST_JOURNAL_RECORDS);
    uint64_t block = 0;
    unsigned i, n;
    int ret = 0;

    do {
        n = next_committed(image, prepared, &block, records);
        if (n && cp->nblocks == w->area_blocks) {
            *overflow = true;
            return -ENOSPC;
        }
        if (n) {
            ret = bsst_block_writer_co_add(w, image->index, records, n);
            cp->nblocks++;
        }
        for (i = 0; i < n; i++) {
            cp->nindirections += records[i].n;
        }
    } while (n == BSST_JOURNAL_RECORDS && ret == 0);
    return ret;
}

/* Images are taken from the list under checkpoint_lock only. */
static BsstImage *next_image(BsstJournal *j, BsstImage *image)
{
    QEMU_LOCK_GUARD(&j->lock);
    return image ? QLIST_NEXT(image, next) : QLIST_FIRST(&j->images);
}

int coroutine_fn bsst_checkpoint_co_write_body(BsstJournal *j, unsigned area,
                                               BsstImage *prepared,
                                               BsstCheckpoint *cp,
                                               bool *overflow)
{
    BsstJournalPosition pos = { .sequence = 1 };
    BsstImage *image = NULL;
    BsstBlockWriter w;
    int ret;

    *overflow = false;
    cp->nblocks = 0;
    cp->nindirections = 0;
    ret = bsst_block_writer_init(&w, j, BSST_BLOCK_CHECKPOINT,
                                 j->sb.checkpoint_offset[area] +
                                 BSST_JOURNAL_BLOCK_BYTES,
                                 j->checkpoint_blocks, &pos, BODY_IO_BLOCKS);
    while (ret == 0 && (image = next_image(j, image))) {
        ret = write_image(&w, image, image == prepared, cp, overflow);
    }
    ret = bsst_block_writer_co_end(&w, ret);
    cp->chain = w.pos.chain;
    return ret;
}

int coroutine_fn bsst_checkpoint_co_write_header(BsstJournal *j, unsigned area,
                                                 const BsstCheckpoint *cp)
{
    uint8_t *buf = try_alloc_blocks(1);
    int ret;

    if (!buf) {
        return -ENOMEM;
    }
    if (cp) {
        bsst_checkpoint_encode(cp, buf);
    } else {
        memset(buf, 0, BSST_JOURNAL_BLOCK_BYTES);
    }
    ret = write_blocks(j, j->sb.checkpoint_offset[area], 0, buf, 1);
    qemu_vfree(buf);
    return ret;
}

/* Checksums of slots */

static void compose_checksums(BsstJournal *j, uint32_t block, uint8_t *buf)
{
    BsstSlot first = block * BSST_CHECKSUMS_PER_BLOCK;
    unsigned i, n = MIN(BSST_CHECKSUMS_PER_BLOCK, j->sb.nslots - first);
    uint64_t sum[BSST_CHECKSUMS_PER_BLOCK] = { 0 };

    j->slots->get_checksums(j->opaque, first, n, sum);
    for (i = 0; i < BSST_CHECKSUMS_PER_BLOCK; i++) {
        stq_le_p(buf + i * sizeof(sum[0]), sum[i]);
    }
}

/* How many of the @n blocks @block[] to write in one go; up to *@last. */
static unsigned checksum_run(const uint32_t *block, unsigned n, uint32_t *last)
{
    unsigned i = 0;

    do {
        *last = block[i++];
    } while (i < n && block[i] - *last <= CHECKSUM_GAP_BLOCKS &&
             block[i] - block[0] < BSST_JOURNAL_IO_BLOCKS);
    return i;
}

int coroutine_fn bsst_journal_co_write_checksums(BsstJournal *j,
                                                 const uint32_t *block,
                                                 unsigned n)
{
    uint64_t span = (uint64_t)block[n - 1] - block[0] + 1;
    uint8_t *buf = try_alloc_blocks(MIN(span, BSST_JOURNAL_IO_BLOCKS));
    uint32_t b, last;
    unsigned done;
    int ret = 0;

    if (!buf) {
        return -ENOMEM;
    }
    qemu_co_mutex_lock(&j->checksum_lock); /* J9 */
    for (; n && ret == 0; block += done, n -= done) {
        done = checksum_run(block, n, &last);
        for (b = block[0]; b <= last; b++) {
            compose_checksums(j, b, buf + (b - block[0]) *
                              BSST_JOURNAL_BLOCK_BYTES);
        }
        ret = write_blocks(j, j->sb.checksums_offset, block[0], buf,
                           last - block[0] + 1);
        stat64_add(&j->checksum_bytes, (last - block[0] + 1) *
                                       BSST_JOURNAL_BLOCK_BYTES);
    }
    qemu_co_mutex_unlock(&j->checksum_lock);
    qemu_vfree(buf);
    return ret;
}

/* Image table */

int coroutine_fn bsst_journal_co_write_entry(BsstJournal *j, uint32_t index,
                                             const BsstImageEntry *e)
{
    const unsigned per_block = BSST_JOURNAL_BLOCK_BYTES /
                               BSST_IMAGE_ENTRY_BYTES;
    static const BsstImageEntry unused;
    uint32_t first = index - index % per_block;
    uint8_t *buf = try_alloc_blocks(1);
    uint32_t i;
    int ret;

    if (!buf) {
        return -ENOMEM;
    }
    memset(buf, 0, BSST_JOURNAL_BLOCK_BYTES);
    for (i = first; i < MIN(first + per_block, j->sb.nimages); i++) {
        const BsstImageEntry *other = j->table[i] ? &j->table[i]->entry
                                                  : &unused;

        bsst_image_entry_encode(i == index ? e : other,
                                buf + (i - first) * BSST_IMAGE_ENTRY_BYTES);
    }
    ret = write_blocks(j, j->sb.images_offset, index / per_block, buf, 1);
    qemu_vfree(buf);
    return ret;
}
