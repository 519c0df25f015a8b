/*
 * Block-swap store: on-disk format of superblock and image table
 *
 * The document comes first: docs/interop/bsst.rst.  All integers are
 * little-endian; structs are packed, so that they may lie anywhere.
 *
 * This work is licensed under the terms of the GNU GPL, version 2 or later.
 * See the COPYING file in the top-level directory.
 */

#include "qemu/osdep.h"

#define XXH_INLINE_ALL
#include <xxhash.h>

#include "bsst/bsst-format.h"
#include "bsst/journal-format.h"

#define IMAGE_MAGIC         "BSSTIMGE"
#define MAGIC_BYTES         8
#define SECTOR_BYTES        512

/* Entries of the image table in one unit of I/O */
#define ENTRIES_PER_PAGE    (BSST_PAGE_SIZE / BSST_IMAGE_ENTRY_BYTES)

/* Sizes of a new store's journal, bytes in all and a slot */
#define JOURNAL_SMALL_BYTES (1ull << 20)
#define JOURNAL_MAX_BYTES   (64ull << 20)
#define JOURNAL_SLOT_BYTES  4u
/* ... below JOURNAL_SMALL_BYTES */
#define JOURNAL_SLOT_BYTES_SMALL    64u

/* The least entries of a new store's image table, and slots for each */
#define MIN_NIMAGES         16u
#define SLOTS_PER_IMAGE     64u

#define STATE_OPEN          0u
#define STATE_CLEAN         1u
#define STATE_UNFINISHED    2u

/*
 * All that matters lies in one sector, which a crash leaves old or new: the
 * superblock of a store that holds data is never torn.
 *
 * Feature words: a reader must refuse an image with an incompatible bit that
 * it does not know, may ignore compatible bits, and must clear autoclear bits
 * that it does not know before it writes.  None is defined yet.
 */
typedef struct QEMU_PACKED DiskSuperblock {
    uint8_t magic[MAGIC_BYTES];
    uint32_t version;
    uint32_t slot_bytes;
    uint64_t incompatible;
    uint64_t compatible;
    uint64_t autoclear;
    uint8_t uuid[16];
    uint64_t generation;
    uint32_t state;
    uint32_t nimages;
    uint64_t images_offset;
    uint64_t checksums_offset;
    uint64_t checkpoint_offset[2];
    uint64_t checkpoint_bytes;
    uint64_t journal_offset;
    uint64_t journal_bytes;
    uint64_t slots_offset;
    uint64_t nslots;
    uint8_t reserved[SECTOR_BYTES - 152];
    uint64_t checksum;          /* of all bytes before it */
    uint8_t zero[BSST_SUPERBLOCK_BYTES - SECTOR_BYTES];
} DiskSuperblock;

QEMU_BUILD_BUG_ON(sizeof(DiskSuperblock) != BSST_SUPERBLOCK_BYTES);
QEMU_BUILD_BUG_ON(offsetof(DiskSuperblock, zero) != SECTOR_BYTES);

#define IMAGE_IN_USE        1u
#define IMAGE_FLAG_RAW      1u

typedef struct QEMU_PACKED DiskImageEntry {
    uint8_t magic[MAGIC_BYTES];
    uint32_t state;
    uint32_t flags;
    uint8_t uuid[16];
    uint64_t generation;
    uint64_t announced;
    uint64_t first_sequence;
    uint64_t bytes;
    uint8_t reserved[184];
    char name[BSST_IMAGE_NAME_BYTES];
    uint64_t checksum;          /* of all bytes before it */
} DiskImageEntry;

QEMU_BUILD_BUG_ON(sizeof(DiskImageEntry) != BSST_IMAGE_ENTRY_BYTES);

uint64_t bsst_checksum(const void *buf, size_t n)
{
    return XXH3_64bits(buf, n);
}

static bool all_zero(const uint8_t *buf, size_t n)
{
    return buf[0] == 0 && !memcmp(buf, buf + 1, n - 1);
}

/* Superblock */

void bsst_superblock_encode(const BsstSuperblock *sb, uint8_t *buf)
{
    DiskSuperblock *d = (DiskSuperblock *)buf;

    memset(d, 0, sizeof(*d));
    memcpy(d->magic, BSST_MAGIC, MAGIC_BYTES);
    d->version = GUINT32_TO_LE(BSST_VERSION);
    d->slot_bytes = GUINT32_TO_LE(BSST_PAGE_SIZE);
    d->compatible = GUINT64_TO_LE(sb->compatible);
    memcpy(d->uuid, sb->uuid, sizeof(d->uuid));
    d->generation = GUINT64_TO_LE(sb->generation);
    d->state = GUINT32_TO_LE(sb->unfinished ? STATE_UNFINISHED :
                             sb->clean ? STATE_CLEAN : STATE_OPEN);
    d->nimages = GUINT32_TO_LE(sb->nimages);
    d->images_offset = GUINT64_TO_LE(sb->images_offset);
    d->checksums_offset = GUINT64_TO_LE(sb->checksums_offset);
    d->checkpoint_offset[0] = GUINT64_TO_LE(sb->checkpoint_offset[0]);
    d->checkpoint_offset[1] = GUINT64_TO_LE(sb->checkpoint_offset[1]);
    d->checkpoint_bytes = GUINT64_TO_LE(sb->checkpoint_bytes);
    d->journal_offset = GUINT64_TO_LE(sb->journal_offset);
    d->journal_bytes = GUINT64_TO_LE(sb->journal_bytes);
    d->slots_offset = GUINT64_TO_LE(sb->slots_offset);
    d->nslots = GUINT64_TO_LE(sb->nslots);
    d->checksum = GUINT64_TO_LE(bsst_checksum(d, offsetof(DiskSuperblock,
                                                          checksum)));
}

static uint64_t checksums_bytes(uint32_t nslots)
{
    return ROUND_UP((uint64_t)nslots * sizeof(uint64_t), BSST_PAGE_SIZE);
}

uint64_t bsst_checkpoint_bytes_for(uint32_t n, uint32_t nimages)
{
    /* Each image may leave its last block partly filled */
    uint64_t nblocks = 1 + (uint64_t)n / BSST_JOURNAL_RECORDS + nimages;

    return nblocks * BSST_JOURNAL_BLOCK_BYTES;
}

typedef struct Area {
    uint64_t offset;
    uint64_t bytes;
} Area;

static bool areas_overlap(const Area *a, const Area *b)
{
    return a->offset < b->offset + b->bytes && b->offset < a->offset + a->bytes;
}

/* Do the areas lie where they may on an image of @image_bytes? */
static bool areas_valid(const BsstSuperblock *sb, uint64_t image_bytes)
{
    const Area area[] = {
        { 0, BSST_SUPERBLOCK_BYTES },
        { sb->images_offset, (uint64_t)sb->nimages * BSST_IMAGE_ENTRY_BYTES },
        { sb->checksums_offset, checksums_bytes(sb->nslots) },
        { sb->checkpoint_offset[0], sb->checkpoint_bytes },
        { sb->checkpoint_offset[1], sb->checkpoint_bytes },
        { sb->journal_offset, sb->journal_bytes },
        { sb->slots_offset, (uint64_t)sb->nslots * BSST_PAGE_SIZE },
    };
    unsigned i, k;

    for (i = 0; i < ARRAY_SIZE(area); i++) {
        if (area[i].offset % BSST_PAGE_SIZE || area[i].bytes % BSST_PAGE_SIZE ||
            area[i].offset > image_bytes ||
            area[i].bytes > image_bytes - area[i].offset) {
            return false;
        }
        for (k = 0; k < i; k++) {
            if (areas_overlap(&area[i], &area[k])) {
                return false;
            }
        }
    }
    return true;
}

/* The numbers of the superblock, which are right in themselves */
static const char *superblock_numbers(BsstSuperblock *sb,
                                      const DiskSuperblock *d,
                                      uint64_t image_bytes)
{
    uint64_t nslots = GUINT64_FROM_LE(d->nslots);
    uint32_t nimages = GUINT32_FROM_LE(d->nimages);
    uint32_t state = GUINT32_FROM_LE(d->state);

    if (nslots < BSST_MIN_SLOTS || nslots >= BSST_SLOT_NONE ||
        nimages < 1 || nimages > BSST_MAX_IMAGES || state > STATE_UNFINISHED ||
        GUINT64_FROM_LE(d->generation) >= BSST_MAX_NUMBER) {
        return "its superblock makes no sense";
    }
    *sb = (BsstSuperblock) {
        .generation = GUINT64_FROM_LE(d->generation),
        .compatible = GUINT64_FROM_LE(d->compatible),
        .clean = state == STATE_CLEAN,
        .unfinished = state == STATE_UNFINISHED,
        .images_offset = GUINT64_FROM_LE(d->images_offset),
        .nimages = nimages,
        .checksums_offset = GUINT64_FROM_LE(d->checksums_offset),
        .checkpoint_offset = {
            GUINT64_FROM_LE(d->checkpoint_offset[0]),
            GUINT64_FROM_LE(d->checkpoint_offset[1]),
        },
        .checkpoint_bytes = GUINT64_FROM_LE(d->checkpoint_bytes),
        .journal_offset = GUINT64_FROM_LE(d->journal_offset),
        .journal_bytes = GUINT64_FROM_LE(d->journal_bytes),
        .slots_offset = GUINT64_FROM_LE(d->slots_offset),
        .nslots = nslots,
    };
    memcpy(sb->uuid, d->uuid, sizeof(sb->uuid));
    if (!areas_valid(sb, image_bytes)) {
        return "its superblock does not fit the image's size";
    }
    if (sb->journal_bytes / BSST_JOURNAL_BLOCK_BYTES <
        BSST_MIN_JOURNAL_BLOCKS ||
        sb->checkpoint_bytes < bsst_checkpoint_bytes_for(nslots, nimages)) {
        return "its superblock makes no sense";
    }
    return NULL;
}

const char *bsst_superblock_decode(BsstSuperblock *sb, const uint8_t *buf,
                                   uint64_t image_bytes)
{
    const DiskSuperblock *d = (const DiskSuperblock *)buf;
    uint32_t version = GUINT32_FROM_LE(d->version);

    if (memcmp(d->magic, BSST_MAGIC, MAGIC_BYTES)) {
        return "it is not a block-swap store";
    }
    if (version == 1) {
        return "it was made by a pre-release";
    }
    if (GUINT64_FROM_LE(d->checksum) !=
        bsst_checksum(d, offsetof(DiskSuperblock, checksum)) ||
        !all_zero(d->zero, sizeof(d->zero))) {
        return "its superblock is damaged";
    }
    if (version != BSST_VERSION || d->incompatible) {
        return "it was made by a newer version";
    }
    if (GUINT32_FROM_LE(d->slot_bytes) != BSST_PAGE_SIZE) {
        return "its slot size is not supported";
    }
    return superblock_numbers(sb, d, image_bytes);
}

/* Layout of a new store.  All sizes grow with the number of slots. */

static uint32_t new_nimages(uint32_t nslots)
{
    uint32_t n = MIN(nslots / SLOTS_PER_IMAGE, BSST_NIMAGES);

    return ROUND_UP(MAX(n, MIN_NIMAGES), ENTRIES_PER_PAGE);
}

static uint64_t new_journal_bytes(uint32_t nslots)
{
    uint64_t small = MIN((uint64_t)nslots * JOURNAL_SLOT_BYTES_SMALL,
                         JOURNAL_SMALL_BYTES);
    uint64_t bytes = MIN((uint64_t)nslots * JOURNAL_SLOT_BYTES,
                         JOURNAL_MAX_BYTES);

    bytes = MAX(MAX(bytes, small),
                BSST_MIN_JOURNAL_BLOCKS * BSST_JOURNAL_BLOCK_BYTES);
    return ROUND_UP(bytes, BSST_JOURNAL_BLOCK_BYTES);
}

/* Fill in @sb for @nslots slots.  Returns the bytes of the image. */
static uint64_t new_layout(BsstSuperblock *sb, uint32_t nslots)
{
    uint64_t offset = BSST_SUPERBLOCK_BYTES;
    unsigned i;

    *sb = (BsstSuperblock) {
        .nslots = nslots,
        .nimages = new_nimages(nslots),
        .journal_bytes = new_journal_bytes(nslots),
    };
    sb->images_offset = offset;
    offset += (uint64_t)sb->nimages * BSST_IMAGE_ENTRY_BYTES;
    sb->checksums_offset = offset;
    offset += checksums_bytes(nslots);
    sb->checkpoint_bytes = bsst_checkpoint_bytes_for(nslots, sb->nimages);
    for (i = 0; i < ARRAY_SIZE(sb->checkpoint_offset); i++) {
        sb->checkpoint_offset[i] = offset;
        offset += sb->checkpoint_bytes;
    }
    sb->journal_offset = offset;
    offset += sb->journal_bytes;
    sb->slots_offset = offset;
    return offset + (uint64_t)nslots * BSST_PAGE_SIZE;
}

uint64_t bsst_image_bytes_for(uint32_t nslots)
{
    BsstSuperblock sb;

    return new_layout(&sb, nslots);
}

const char *bsst_superblock_init(BsstSuperblock *sb, uint64_t image_bytes)
{
    uint32_t lo = BSST_MIN_SLOTS, hi = BSST_SLOT_NONE - 1, mid;

    if (bsst_image_bytes_for(lo) > image_bytes) {
        return "it is too small";
    }
    while (lo < hi) {
        mid = hi - (hi - lo) / 2;
        if (bsst_image_bytes_for(mid) <= image_bytes) {
            lo = mid;
        } else {
            hi = mid - 1;
        }
    }
    new_layout(sb, lo);
    return NULL;
}

/* Image table */

void bsst_image_entry_encode(const BsstImageEntry *e, uint8_t *buf)
{
    DiskImageEntry *d = (DiskImageEntry *)buf;

    memset(d, 0, sizeof(*d));
    if (!e->in_use) {
        return;
    }
    memcpy(d->magic, IMAGE_MAGIC, MAGIC_BYTES);
    d->state = GUINT32_TO_LE(IMAGE_IN_USE);
    d->flags = GUINT32_TO_LE(e->raw ? IMAGE_FLAG_RAW : 0);
    memcpy(d->uuid, e->uuid, sizeof(d->uuid));
    d->generation = GUINT64_TO_LE(e->generation);
    d->announced = GUINT64_TO_LE(e->announced);
    d->first_sequence = GUINT64_TO_LE(e->first_sequence);
    d->bytes = GUINT64_TO_LE(e->bytes);
    g_strlcpy(d->name, e->name, sizeof(d->name));
    d->checksum = GUINT64_TO_LE(bsst_checksum(d, offsetof(DiskImageEntry,
                                                          checksum)));
}

const char *bsst_image_entry_decode(BsstImageEntry *e, const uint8_t *buf)
{
    const DiskImageEntry *d = (const DiskImageEntry *)buf;
    uint32_t flags = GUINT32_FROM_LE(d->flags);

    if (all_zero(buf, BSST_IMAGE_ENTRY_BYTES)) {
        *e = (BsstImageEntry) { .in_use = false };
        return NULL;
    }
    if (memcmp(d->magic, IMAGE_MAGIC, MAGIC_BYTES) ||
        GUINT64_FROM_LE(d->checksum) !=
        bsst_checksum(d, offsetof(DiskImageEntry, checksum))) {
        return "an entry of its image table is damaged";
    }
    *e = (BsstImageEntry) {
        .in_use = true,
        .raw = flags & IMAGE_FLAG_RAW,
        .generation = GUINT64_FROM_LE(d->generation),
        .announced = GUINT64_FROM_LE(d->announced),
        .first_sequence = GUINT64_FROM_LE(d->first_sequence),
        .bytes = GUINT64_FROM_LE(d->bytes),
    };
    memcpy(e->uuid, d->uuid, sizeof(e->uuid));
    memcpy(e->name, d->name, sizeof(e->name));
    if (GUINT32_FROM_LE(d->state) != IMAGE_IN_USE ||
        (flags & ~IMAGE_FLAG_RAW) || all_zero(e->uuid, sizeof(e->uuid)) ||
        e->announced - e->generation > 1 || e->generation >= BSST_MAX_NUMBER ||
        e->name[BSST_IMAGE_NAME_BYTES - 1]) {
        return "an entry of its image table makes no sense";
    }
    return NULL;
}
