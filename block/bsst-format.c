/*
 * Block-swap store: on-disk format
 *
 * The store is a virtual disk.  Its first BSST_HEADER_BYTES are the header;
 * of these only the superblock is in use yet.  The slots follow.  All
 * integers are little-endian.
 *
 * This work is licensed under the terms of the GNU GPL, version 2 or later.
 * See the COPYING file in the top-level directory.
 */

#include "qemu/osdep.h"

#define XXH_INLINE_ALL
#include <xxhash.h>

#include "bsst/bsst-format.h"

/*
 * Feature words: a reader must refuse an image with an incompatible bit that
 * it does not know, may ignore compatible bits, and must clear autoclear bits
 * that it does not know before it writes.  None is defined yet.
 */
typedef struct QEMU_PACKED DiskSuperblock {
    uint8_t magic[8];
    uint32_t version;
    uint32_t slot_bytes;
    uint64_t incompatible;
    uint64_t compatible;
    uint64_t autoclear;
    uint8_t uuid[16];
    uint64_t generation;
    uint64_t slots_offset;
    uint64_t nslots;
    uint8_t reserved[BSST_SUPERBLOCK_BYTES - 88];
    uint64_t checksum;          /* of all bytes before it */
} DiskSuperblock;

QEMU_BUILD_BUG_ON(sizeof(DiskSuperblock) != BSST_SUPERBLOCK_BYTES);

uint64_t bsst_checksum(const void *buf, size_t n)
{
    return XXH3_64bits(buf, n);
}

static uint64_t disk_checksum(const uint8_t *buf)
{
    return bsst_checksum(buf, offsetof(DiskSuperblock, checksum));
}

void bsst_superblock_encode(const BsstSuperblock *sb, uint8_t *buf)
{
    DiskSuperblock d = {
        .version = GUINT32_TO_LE(BSST_VERSION),
        .slot_bytes = GUINT32_TO_LE(BSST_PAGE_SIZE),
        .generation = GUINT64_TO_LE(sb->generation),
        .slots_offset = GUINT64_TO_LE(sb->slots_offset),
        .nslots = GUINT64_TO_LE(sb->nslots),
    };

    memcpy(d.magic, BSST_MAGIC, sizeof(d.magic));
    memcpy(d.uuid, sb->uuid, sizeof(d.uuid));
    memcpy(buf, &d, sizeof(d));
    d.checksum = GUINT64_TO_LE(disk_checksum(buf));
    memcpy(buf, &d, sizeof(d));
}

const char *bsst_superblock_decode(BsstSuperblock *sb, const uint8_t *buf,
                                   uint64_t image_bytes)
{
    DiskSuperblock d;
    uint64_t offset, n;

    memcpy(&d, buf, sizeof(d));
    if (memcmp(d.magic, BSST_MAGIC, sizeof(d.magic))) {
        return "it is not a block-swap store";
    }
    if (GUINT64_FROM_LE(d.checksum) != disk_checksum(buf)) {
        return "its superblock is damaged";
    }
    if (GUINT32_FROM_LE(d.version) != BSST_VERSION || d.incompatible) {
        return "it was made by a newer version";
    }
    if (GUINT32_FROM_LE(d.slot_bytes) != BSST_PAGE_SIZE) {
        return "its slot size is not supported";
    }
    offset = GUINT64_FROM_LE(d.slots_offset);
    n = GUINT64_FROM_LE(d.nslots);
    if (offset < BSST_HEADER_BYTES || offset % BSST_PAGE_SIZE ||
        offset > image_bytes || n < BSST_MIN_SLOTS || n >= BSST_SLOT_NONE ||
        n > (image_bytes - offset) / BSST_PAGE_SIZE) {
        return "its superblock does not fit the image's size";
    }
    memcpy(sb->uuid, d.uuid, sizeof(sb->uuid));
    sb->generation = GUINT64_FROM_LE(d.generation);
    sb->slots_offset = offset;
    sb->nslots = n;
    return NULL;
}

const char *bsst_superblock_init(BsstSuperblock *sb, uint64_t image_bytes)
{
    uint64_t n;

    if (image_bytes < BSST_HEADER_BYTES) {
        return "it is too small";
    }
    n = (image_bytes - BSST_HEADER_BYTES) / BSST_PAGE_SIZE;
    if (n < BSST_MIN_SLOTS) {
        return "it is too small";
    }
    *sb = (BsstSuperblock) {
        .slots_offset = BSST_HEADER_BYTES,
        .nslots = MIN(n, BSST_SLOT_NONE - 1),
    };
    return NULL;
}
