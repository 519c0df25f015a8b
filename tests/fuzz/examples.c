/*
 * Examples of a store's metadata: those of docs/interop/bsst.rst
 *
 * A store of 64 MiB, opened for writing for the third time, with one image.
 *
 * This work is licensed under the terms of the GNU GPL, version 2 or later.
 * See the COPYING file in the top-level directory.
 */

#include "qemu/osdep.h"
#include "bsst/bsst-format.h"
#include "bsst/journal-format.h"
#include "examples.h"

#define NSLOTS      16384u
#define GENERATION  3
#define IMAGE       0

static const uint8_t store_uuid[16] = {
    0x1e, 0x3d, 0x87, 0x04, 0xcb, 0xa9, 0x49, 0x98,
    0xb1, 0xbf, 0x81, 0x4d, 0xfa, 0x1a, 0x4f, 0xdc,
};

static const uint8_t image_uuid[16] = {
    0x5a, 0x0c, 0x11, 0xe2, 0x3f, 0x74, 0x4d, 0x0b,
    0x9c, 0x27, 0x66, 0xd8, 0x80, 0x15, 0xfe, 0x43,
};

static void make_superblock(uint8_t *buf)
{
    BsstSuperblock sb;

    bsst_superblock_init(&sb, bsst_image_bytes_for(NSLOTS));
    memcpy(sb.uuid, store_uuid, sizeof(sb.uuid));
    sb.generation = GENERATION;
    bsst_superblock_encode(&sb, buf);
}

static void make_image_entry(uint8_t *buf)
{
    BsstImageEntry e = {
        .in_use = true,
        .generation = 2,
        .announced = 2,
        .first_sequence = 1,
        .bytes = 10ULL << 30,
        .name = "/srv/guest.qcow2",
    };

    memcpy(e.uuid, image_uuid, sizeof(e.uuid));
    bsst_image_entry_encode(&e, buf);
}

/* The only block of a body: blocks 1000 to 1063, 2000 and 2001 */
static uint64_t encode_body(uint8_t *buf)
{
    const BsstBlockHeader h = {
        .kind = BSST_BLOCK_CHECKPOINT,
        .image = IMAGE,
        .sequence = 1,
        .generation = GENERATION,
    };
    const BsstRecord records[] = {
        { .block = 1000, .n = 64, .slot = 256 },
        { .block = 2000, .n = 1, .slot = 77 },
        { .block = 2001, .n = 1, .slot = 4711 },
    };

    return bsst_block_encode(&h, records, ARRAY_SIZE(records), buf);
}

static void make_body(uint8_t *buf)
{
    encode_body(buf);
}

static BsstCheckpoint checkpoint(void)
{
    uint8_t body[BSST_JOURNAL_BLOCK_BYTES];

    return (BsstCheckpoint) {
        .number = 2,
        .generation = GENERATION,
        .nblocks = 1,
        .chain = encode_body(body),
        .nindirections = 66,
        .journal_block = 56,
        .journal_sequence = 57,
        .journal_chain = 0x8c5be49b66f2e5d1,
        .journal_generation = 2,
    };
}

static void make_checkpoint(uint8_t *buf)
{
    BsstCheckpoint c = checkpoint();

    bsst_checkpoint_encode(&c, buf);
}

/* The block of the journal that follows: one more, one less */
static void make_journal_block(uint8_t *buf)
{
    BsstCheckpoint c = checkpoint();
    const BsstBlockHeader h = {
        .kind = BSST_BLOCK_JOURNAL,
        .image = IMAGE,
        .sequence = c.journal_sequence,
        .generation = GENERATION,
        .chain = c.journal_chain,
    };
    const BsstRecord records[] = {
        { .block = 1000, .n = 8, .slot = BSST_SLOT_NONE },
        { .block = 0x123456, .n = 16, .slot = 1024 },
    };

    bsst_block_encode(&h, records, ARRAY_SIZE(records), buf);
}

const Example examples[] = {
    { "superblock/example", BSST_SUPERBLOCK_BYTES, make_superblock },
    { "image-entry/example", BSST_IMAGE_ENTRY_BYTES, make_image_entry },
    { "checkpoint/example", BSST_JOURNAL_BLOCK_BYTES, make_checkpoint },
    { "journal-block/example-body", BSST_JOURNAL_BLOCK_BYTES, make_body },
    { "journal-block/example", BSST_JOURNAL_BLOCK_BYTES, make_journal_block },
    { NULL }
};
