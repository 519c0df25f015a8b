/*
 * Block-swap store: on-disk format of journal and checkpoints
 *
 * The document comes first: docs/interop/bsst.rst.  All integers are
 * little-endian; structs are packed, so that they may lie anywhere.
 *
 * This work is licensed under the terms of the GNU GPL, version 2 or later.
 * See the COPYING file in the top-level directory.
 */

#include "qemu/osdep.h"
#include "bsst/bsst-format.h"
#include "bsst/journal-format.h"

#define MAGIC_BYTES         8
#define JOURNAL_MAGIC       "BSSTJRNL"
#define BODY_MAGIC          "BSSTBODY"
#define CHECKPOINT_MAGIC    "BSSTCKPT"

#define RECORD_BLOCK_BITS   48

typedef struct QEMU_PACKED DiskRecord {
    uint64_t block_count;       /* block in the low 48 bits, then count */
    uint32_t slot;
} DiskRecord;

typedef struct QEMU_PACKED DiskBlock {
    uint8_t magic[MAGIC_BYTES];
    uint32_t nrecords;
    uint32_t image;
    uint64_t sequence;
    uint64_t generation;
    uint64_t chain;
    uint8_t reserved[24];
    DiskRecord record[BSST_JOURNAL_RECORDS];
    uint8_t reserved2[4];
    uint64_t checksum;          /* of all bytes before it */
} DiskBlock;

QEMU_BUILD_BUG_ON(sizeof(DiskRecord) != 12);
QEMU_BUILD_BUG_ON(offsetof(DiskBlock, record) != 64);
QEMU_BUILD_BUG_ON(sizeof(DiskBlock) != BSST_JOURNAL_BLOCK_BYTES);
QEMU_BUILD_BUG_ON(BSST_RECORD_MAX_BLOCKS >> (64 - RECORD_BLOCK_BITS));
QEMU_BUILD_BUG_ON(BSST_MAX_BLOCK != 1ULL << RECORD_BLOCK_BITS);

/*
 * All that matters lies in one sector, which a crash leaves old or new: a
 * header that is not valid is no torn one but damage.
 */
typedef struct QEMU_PACKED DiskCheckpoint {
    uint8_t magic[MAGIC_BYTES];
    uint64_t number;
    uint64_t generation;
    uint64_t nblocks;
    uint64_t chain;
    uint64_t nindirections;
    uint64_t journal_block;
    uint64_t journal_sequence;
    uint64_t journal_chain;
    uint64_t journal_generation;
    uint64_t checksum;          /* of all bytes before it */
    uint8_t reserved[BSST_JOURNAL_BLOCK_BYTES - 88]; /* zeroes */
} DiskCheckpoint;

QEMU_BUILD_BUG_ON(sizeof(DiskCheckpoint) != BSST_JOURNAL_BLOCK_BYTES);
QEMU_BUILD_BUG_ON(offsetof(DiskCheckpoint, reserved) > 512);

static uint64_t disk_checksum(const void *buf)
{
    return bsst_checksum(buf, offsetof(DiskBlock, checksum));
}

static uint64_t checkpoint_checksum(const void *buf)
{
    return bsst_checksum(buf, offsetof(DiskCheckpoint, checksum));
}

static bool all_zero(const uint8_t *buf, size_t n)
{
    return buf[0] == 0 && !memcmp(buf, buf + 1, n - 1);
}

static const char *kind_magic(BsstBlockKind kind)
{
    return kind == BSST_BLOCK_JOURNAL ? JOURNAL_MAGIC : BODY_MAGIC;
}

/* Can @r be a record of a block of @kind? */
static bool record_valid(const BsstRecord *r, BsstBlockKind kind,
                         uint32_t nslots)
{
    if (r->n < 1 || r->n > BSST_RECORD_MAX_BLOCKS ||
        r->block > BSST_MAX_BLOCK - r->n) {
        return false;
    }
    if (r->slot == BSST_SLOT_NONE) {
        return kind == BSST_BLOCK_JOURNAL;
    }
    return r->slot < nslots && r->n <= nslots - r->slot;
}

uint64_t bsst_block_encode(const BsstBlockHeader *h, const BsstRecord *records,
                           unsigned n, uint8_t *buf)
{
    DiskBlock *d = (DiskBlock *)buf;
    uint64_t checksum;

    assert(n >= 1 && n <= BSST_JOURNAL_RECORDS);
    memset(d, 0, sizeof(*d));
    memcpy(d->magic, kind_magic(h->kind), MAGIC_BYTES);
    d->nrecords = GUINT32_TO_LE(n);
    d->image = GUINT32_TO_LE(h->image);
    d->sequence = GUINT64_TO_LE(h->sequence);
    d->generation = GUINT64_TO_LE(h->generation);
    d->chain = GUINT64_TO_LE(h->chain);
    for (unsigned i = 0; i < n; i++) {
        const BsstRecord *r = &records[i];

        assert(record_valid(r, h->kind, BSST_SLOT_NONE - 1));
        d->record[i].block_count =
            GUINT64_TO_LE(r->block | (uint64_t)r->n << RECORD_BLOCK_BITS);
        d->record[i].slot = GUINT32_TO_LE(r->slot);
    }
    checksum = disk_checksum(buf);
    d->checksum = GUINT64_TO_LE(checksum);
    return checksum;
}

static BsstRecord record_decode(const DiskRecord *d)
{
    uint64_t block_count = GUINT64_FROM_LE(d->block_count);

    return (BsstRecord) {
        .block = block_count % BSST_MAX_BLOCK,
        .n = block_count >> RECORD_BLOCK_BITS,
        .slot = GUINT32_FROM_LE(d->slot),
    };
}

BsstBlockState bsst_block_decode(const uint8_t *buf,
                                 const BsstBlockHeader *expected,
                                 uint64_t max_generation, uint32_t nslots,
                                 uint32_t nimages, BsstBlockHeader *h,
                                 BsstRecord *records, unsigned *n,
                                 uint64_t *checksum)
{
    const DiskBlock *d = (const DiskBlock *)buf;
    uint32_t nrecords = GUINT32_FROM_LE(d->nrecords);

    if (memcmp(d->magic, kind_magic(expected->kind), MAGIC_BYTES) ||
        GUINT64_FROM_LE(d->sequence) != expected->sequence ||
        GUINT64_FROM_LE(d->chain) != expected->chain ||
        GUINT64_FROM_LE(d->checksum) != disk_checksum(buf)) {
        return BSST_BLOCK_END;
    }
    *h = (BsstBlockHeader) {
        .kind = expected->kind,
        .image = GUINT32_FROM_LE(d->image),
        .sequence = expected->sequence,
        .generation = GUINT64_FROM_LE(d->generation),
        .chain = expected->chain,
    };
    if (h->generation < expected->generation ||
        h->generation > max_generation || h->image >= nimages ||
        nrecords < 1 || nrecords > BSST_JOURNAL_RECORDS) {
        return BSST_BLOCK_DAMAGED;
    }
    for (unsigned i = 0; i < nrecords; i++) {
        records[i] = record_decode(&d->record[i]);
        if (!record_valid(&records[i], h->kind, nslots)) {
            return BSST_BLOCK_DAMAGED;
        }
    }
    *n = nrecords;
    *checksum = GUINT64_FROM_LE(d->checksum);
    return BSST_BLOCK_VALID;
}

bool bsst_block_peek(const uint8_t *buf, BsstBlockKind kind,
                     BsstBlockHeader *h)
{
    const DiskBlock *d = (const DiskBlock *)buf;

    if (memcmp(d->magic, kind_magic(kind), MAGIC_BYTES) ||
        GUINT64_FROM_LE(d->checksum) != disk_checksum(buf)) {
        return false;
    }
    *h = (BsstBlockHeader) {
        .kind = kind,
        .image = GUINT32_FROM_LE(d->image),
        .sequence = GUINT64_FROM_LE(d->sequence),
        .generation = GUINT64_FROM_LE(d->generation),
        .chain = GUINT64_FROM_LE(d->chain),
    };
    return true;
}

void bsst_checkpoint_encode(const BsstCheckpoint *c, uint8_t *buf)
{
    DiskCheckpoint *d = (DiskCheckpoint *)buf;

    memset(d, 0, sizeof(*d));
    memcpy(d->magic, CHECKPOINT_MAGIC, MAGIC_BYTES);
    d->number = GUINT64_TO_LE(c->number);
    d->generation = GUINT64_TO_LE(c->generation);
    d->nblocks = GUINT64_TO_LE(c->nblocks);
    d->chain = GUINT64_TO_LE(c->chain);
    d->nindirections = GUINT64_TO_LE(c->nindirections);
    d->journal_block = GUINT64_TO_LE(c->journal_block);
    d->journal_sequence = GUINT64_TO_LE(c->journal_sequence);
    d->journal_chain = GUINT64_TO_LE(c->journal_chain);
    d->journal_generation = GUINT64_TO_LE(c->journal_generation);
    d->checksum = GUINT64_TO_LE(checkpoint_checksum(buf));
}

static bool checkpoint_valid(const BsstCheckpoint *c, uint64_t max_generation,
                             uint64_t max_blocks, uint64_t journal_blocks)
{
    if (c->number < 1 || c->number >= BSST_MAX_NUMBER ||
        c->generation > max_generation ||
        c->journal_generation > c->generation ||
        c->journal_block >= journal_blocks || c->journal_sequence < 1 ||
        c->journal_sequence >= BSST_MAX_NUMBER) {
        return false;
    }
    if (!c->nblocks) {
        return !c->chain && !c->nindirections;
    }
    /* Each block of the body has a record at least, and 335 at most */
    return c->nblocks <= max_blocks && c->nindirections >= c->nblocks &&
           c->nindirections / ((uint64_t)BSST_JOURNAL_RECORDS *
                               BSST_RECORD_MAX_BLOCKS) <= c->nblocks;
}

bool bsst_checkpoint_decode(BsstCheckpoint *c, const uint8_t *buf,
                            uint64_t max_generation, uint64_t max_blocks,
                            uint64_t journal_blocks)
{
    const DiskCheckpoint *d = (const DiskCheckpoint *)buf;

    if (memcmp(d->magic, CHECKPOINT_MAGIC, MAGIC_BYTES) ||
        GUINT64_FROM_LE(d->checksum) != checkpoint_checksum(buf) ||
        !all_zero(d->reserved, sizeof(d->reserved))) {
        return false;
    }
    *c = (BsstCheckpoint) {
        .number = GUINT64_FROM_LE(d->number),
        .generation = GUINT64_FROM_LE(d->generation),
        .nblocks = GUINT64_FROM_LE(d->nblocks),
        .chain = GUINT64_FROM_LE(d->chain),
        .nindirections = GUINT64_FROM_LE(d->nindirections),
        .journal_block = GUINT64_FROM_LE(d->journal_block),
        .journal_sequence = GUINT64_FROM_LE(d->journal_sequence),
        .journal_chain = GUINT64_FROM_LE(d->journal_chain),
        .journal_generation = GUINT64_FROM_LE(d->journal_generation),
    };
    return checkpoint_valid(c, max_generation, max_blocks, journal_blocks);
}
