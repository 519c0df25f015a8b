/*
 * Fuzz targets: what a store's metadata may look like
 *
 * This work is licensed under the terms of the GNU GPL, version 2 or later.
 * See the COPYING file in the top-level directory.
 */

#include "qemu/osdep.h"
#include "bsst/bsst-format.h"
#include "bsst/journal-format.h"
#include "targets.h"

#define SECTOR_BYTES    512

#define NSLOTS          100000u
#define NIMAGES         16u
#define JOURNAL_BLOCKS  256u
#define BODY_BLOCKS     400u

/* A copy of exactly @bytes, so that ASan sees what is read behind them */
static uint8_t *copy_input(const uint8_t *data, size_t size, size_t bytes)
{
    uint8_t *buf = g_malloc0(bytes);

    memcpy(buf, data, MIN(size, bytes));
    return buf;
}

/* Put the checksum of the first @n bytes behind them. */
static void put_checksum(uint8_t *buf, size_t n)
{
    uint64_t sum = GUINT64_TO_LE(bsst_checksum(buf, n));

    memcpy(buf + n, &sum, sizeof(sum));
}

static uint64_t get64(const uint8_t *buf)
{
    uint64_t v;

    memcpy(&v, buf, sizeof(v));
    return GUINT64_FROM_LE(v);
}

/* Superblock */

static void try_superblock(const uint8_t *buf, uint64_t image_bytes)
{
    uint8_t first[BSST_SUPERBLOCK_BYTES], second[BSST_SUPERBLOCK_BYTES];
    BsstSuperblock sb;

    if (bsst_superblock_decode(&sb, buf, image_bytes)) {
        return;
    }
    g_assert(sb.nslots >= BSST_MIN_SLOTS && sb.nslots < BSST_SLOT_NONE);
    g_assert(sb.nimages >= 1 && sb.nimages <= BSST_MAX_IMAGES);
    g_assert(sb.slots_offset < image_bytes);
    g_assert((uint64_t)sb.nslots * BSST_PAGE_SIZE <=
             image_bytes - sb.slots_offset);
    g_assert(sb.journal_offset < image_bytes);
    g_assert(sb.journal_bytes <= image_bytes - sb.journal_offset);
    g_assert(sb.journal_bytes >=
             BSST_MIN_JOURNAL_BLOCKS * BSST_JOURNAL_BLOCK_BYTES);
    for (unsigned i = 0; i < 2; i++) {
        g_assert(sb.checkpoint_offset[i] < image_bytes);
        g_assert(sb.checkpoint_bytes <= image_bytes - sb.checkpoint_offset[i]);
    }

    bsst_superblock_encode(&sb, first);
    g_assert_null(bsst_superblock_decode(&sb, first, image_bytes));
    bsst_superblock_encode(&sb, second);
    g_assert(!memcmp(first, second, sizeof(first)));
}

void fuzz_superblock(const uint8_t *data, size_t size)
{
    const uint64_t image_bytes[] = { 0, 1 << 21, 1 << 27, 1ULL << 40,
                                     UINT64_MAX };
    g_autofree uint8_t *buf = copy_input(data, size, BSST_SUPERBLOCK_BYTES);
    unsigned i;

    for (i = 0; i < ARRAY_SIZE(image_bytes); i++) {
        try_superblock(buf, image_bytes[i]);
    }
    put_checksum(buf, SECTOR_BYTES - 8);
    for (i = 0; i < ARRAY_SIZE(image_bytes); i++) {
        try_superblock(buf, image_bytes[i]);
    }
}

/* Image table */

static void try_image_entry(const uint8_t *buf)
{
    uint8_t first[BSST_IMAGE_ENTRY_BYTES], second[BSST_IMAGE_ENTRY_BYTES];
    BsstImageEntry e;

    if (bsst_image_entry_decode(&e, buf)) {
        return;
    }
    g_assert(e.announced == e.generation || e.announced == e.generation + 1);
    g_assert(memchr(e.name, 0, sizeof(e.name)));

    bsst_image_entry_encode(&e, first);
    g_assert_null(bsst_image_entry_decode(&e, first));
    bsst_image_entry_encode(&e, second);
    g_assert(!memcmp(first, second, sizeof(first)));
}

void fuzz_image_entry(const uint8_t *data, size_t size)
{
    g_autofree uint8_t *buf = copy_input(data, size, BSST_IMAGE_ENTRY_BYTES);

    try_image_entry(buf);
    put_checksum(buf, BSST_IMAGE_ENTRY_BYTES - 8);
    try_image_entry(buf);
}

/* Blocks of journal and checkpoints */

static void try_block(const uint8_t *buf, BsstBlockKind kind)
{
    /* Let it be the next block, as far as that is up to us */
    const BsstBlockHeader expected = {
        .kind = kind,
        .sequence = get64(buf + 16),
        .chain = get64(buf + 32),
        .generation = 3,
    };
    g_autofree BsstRecord *records = g_new(BsstRecord, BSST_JOURNAL_RECORDS);
    uint8_t again[BSST_JOURNAL_BLOCK_BYTES];
    uint64_t checksum;
    BsstBlockHeader h;
    unsigned i, n;

    if (bsst_block_decode(buf, &expected, 100, NSLOTS, NIMAGES, &h, records,
                          &n, &checksum) != BSST_BLOCK_VALID) {
        return;
    }
    g_assert(n >= 1 && n <= BSST_JOURNAL_RECORDS);
    g_assert(h.kind == kind && h.image < NIMAGES);
    g_assert(h.generation >= 3 && h.generation <= 100);
    for (i = 0; i < n; i++) {
        const BsstRecord *r = &records[i];

        g_assert(r->n >= 1 && r->n <= BSST_RECORD_MAX_BLOCKS);
        g_assert(r->block + r->n <= BSST_MAX_BLOCK);
        g_assert(r->slot == BSST_SLOT_NONE
                 ? kind == BSST_BLOCK_JOURNAL
                 : (uint64_t)r->slot + r->n <= NSLOTS);
    }
    bsst_block_encode(&h, records, n, again);
    g_assert(!memcmp(buf, again, 64 - 24));
    g_assert(!memcmp(buf + 64, again + 64, n * 12));
}

void fuzz_journal_block(const uint8_t *data, size_t size)
{
    g_autofree uint8_t *buf = copy_input(data, size, BSST_JOURNAL_BLOCK_BYTES);

    try_block(buf, BSST_BLOCK_JOURNAL);
    try_block(buf, BSST_BLOCK_CHECKPOINT);
    put_checksum(buf, BSST_JOURNAL_BLOCK_BYTES - 8);
    try_block(buf, BSST_BLOCK_JOURNAL);
    try_block(buf, BSST_BLOCK_CHECKPOINT);
}

static void try_checkpoint(const uint8_t *buf)
{
    uint8_t again[BSST_JOURNAL_BLOCK_BYTES];
    BsstCheckpoint c;

    if (!bsst_checkpoint_decode(&c, buf, 100, BODY_BLOCKS, JOURNAL_BLOCKS)) {
        return;
    }
    g_assert(c.number && c.generation <= 100);
    g_assert(c.nblocks <= BODY_BLOCKS && c.journal_block < JOURNAL_BLOCKS);
    bsst_checkpoint_encode(&c, again);
    g_assert(!memcmp(buf, again, sizeof(again)));
}

void fuzz_checkpoint(const uint8_t *data, size_t size)
{
    g_autofree uint8_t *buf = copy_input(data, size, BSST_JOURNAL_BLOCK_BYTES);

    try_checkpoint(buf);
    put_checksum(buf, 80);
    try_checkpoint(buf);
}
