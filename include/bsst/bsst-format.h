/*
 * Block-swap store: on-disk format of superblock and image table
 *
 * CORE: encodes, decodes and validates bytes; does no I/O.  The journal is in
 * bsst/journal-format.h; the whole is described in docs/interop/bsst.rst.
 *
 * This work is licensed under the terms of the GNU GPL, version 2 or later.
 * See the COPYING file in the top-level directory.
 */

#ifndef BSST_FORMAT_H
#define BSST_FORMAT_H

#include "bsst/types.h"

#define BSST_MAGIC              "BSSTSTOR"
#define BSST_VERSION            2
#define BSST_SUPERBLOCK_BYTES   4096

/* Fewer slots than this (1 MiB) make no store. */
#define BSST_MIN_SLOTS          256u

/* Entries of the image table of a new store (small ones have less), of any */
#define BSST_NIMAGES            256u
#define BSST_MAX_IMAGES         65536u
#define BSST_IMAGE_ENTRY_BYTES  512u
#define BSST_IMAGE_NAME_BYTES   256u

/* Generations and sequence numbers begin at 1, and are less than this. */
#define BSST_MAX_NUMBER         (1ULL << 63)

/* Fewer journal blocks than this make no store. */
#define BSST_MIN_JOURNAL_BLOCKS 8u

/*
 * All offsets and sizes are bytes of the virtual disk, multiples of
 * BSST_PAGE_SIZE; the areas do not overlap.
 */
typedef struct BsstSuperblock {
    uint8_t uuid[16];
    uint64_t generation;        /* grows by one at each writable open */
    uint64_t compatible;        /* features to keep, known to us or not */
    bool clean;                 /* closed properly; says nothing else */
    bool unfinished;            /* new, and nothing else of it counts yet */
    uint64_t images_offset;
    uint32_t nimages;           /* entries of the image table */
    uint64_t checksums_offset;  /* of nslots 64-bit words */
    uint64_t checkpoint_offset[2];
    uint64_t checkpoint_bytes;  /* of each of the two */
    uint64_t journal_offset;
    uint64_t journal_bytes;
    uint64_t slots_offset;
    uint32_t nslots;
} BsstSuperblock;

/* Encode @sb into @buf of BSST_SUPERBLOCK_BYTES. */
void bsst_superblock_encode(const BsstSuperblock *sb, uint8_t *buf);

/*
 * Decode and validate @buf of BSST_SUPERBLOCK_BYTES, of an image of
 * @image_bytes.
 *
 * Returns NULL and fills in @sb on success, else the reason in words.
 */
const char *bsst_superblock_decode(BsstSuperblock *sb, const uint8_t *buf,
                                   uint64_t image_bytes);

/*
 * Lay out a new store with as many slots as fit on an image of @image_bytes:
 * fill in @sb, all but the UUID.  Returns NULL, or the reason why it cannot
 * be one.
 */
const char *bsst_superblock_init(BsstSuperblock *sb, uint64_t image_bytes);

/* Bytes of an image on which a new store has @nslots slots. */
uint64_t bsst_image_bytes_for(uint32_t nslots);

/* Bytes that a checkpoint of @n indirections of @nimages images needs. */
uint64_t bsst_checkpoint_bytes_for(uint32_t n, uint32_t nimages);

/* One entry of the image table */
typedef struct BsstImageEntry {
    bool in_use;
    bool raw;                   /* the image's own header names no store */
    uint8_t uuid[16];
    uint64_t generation;        /* what the image's header says, too */
    uint64_t announced;         /* ... or is about to say */
    uint64_t first_sequence;    /* journal blocks before it are another's */
    uint64_t bytes;             /* of the virtual disk, when last seen */
    char name[BSST_IMAGE_NAME_BYTES]; /* of the file, for people only */
} BsstImageEntry;

/* Encode @e into @buf of BSST_IMAGE_ENTRY_BYTES; zeroes if not in use. */
void bsst_image_entry_encode(const BsstImageEntry *e, uint8_t *buf);
/* Returns NULL and fills in @e, else the reason in words. */
const char *bsst_image_entry_decode(BsstImageEntry *e, const uint8_t *buf);

/* Checksum of @n bytes: XXH3, 64 bits. */
uint64_t bsst_checksum(const void *buf, size_t n);

#endif /* BSST_FORMAT_H */
