/*
 * Block-swap store: on-disk format
 *
 * CORE: encodes, decodes and validates bytes; does no I/O.
 *
 * This work is licensed under the terms of the GNU GPL, version 2 or later.
 * See the COPYING file in the top-level directory.
 */

#ifndef BSST_FORMAT_H
#define BSST_FORMAT_H

#include "bsst/types.h"

#define BSST_MAGIC              "BSSTSTOR"
#define BSST_VERSION            1
#define BSST_SUPERBLOCK_BYTES   4096

/* Before the slots: superblock, and room for image table and journal. */
#define BSST_HEADER_BYTES       (1u << 20)

/* Fewer slots than this (1 MiB) make no store. */
#define BSST_MIN_SLOTS          256u

typedef struct BsstSuperblock {
    uint8_t uuid[16];
    uint64_t generation;        /* grows by one at each writable open */
    uint64_t slots_offset;      /* bytes, a multiple of BSST_PAGE_SIZE */
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
 * Fill in @sb for a new store on an image of @image_bytes (all but the UUID).
 * Returns NULL, or the reason why it cannot be one.
 */
const char *bsst_superblock_init(BsstSuperblock *sb, uint64_t image_bytes);

/* Checksum of @n bytes: XXH3, 64 bits. */
uint64_t bsst_checksum(const void *buf, size_t n);

#endif /* BSST_FORMAT_H */
