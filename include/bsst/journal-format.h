/*
 * Block-swap store: on-disk format of journal and checkpoints
 *
 * CORE: encodes, decodes and validates bytes; does no I/O.
 *
 * Journal and checkpoints are made of the same *blocks* of
 * BSST_JOURNAL_BLOCK_BYTES, each complete in itself: a header, records of one
 * image, a checksum.  A record says where a run of blocks of that image is
 * from now on; the last record for a block wins, so records may be replayed
 * any number of times.  See docs/interop/bsst.rst.
 *
 * This work is licensed under the terms of the GNU GPL, version 2 or later.
 * See the COPYING file in the top-level directory.
 */

#ifndef BSST_JOURNAL_FORMAT_H
#define BSST_JOURNAL_FORMAT_H

#include "bsst/types.h"

#define BSST_JOURNAL_BLOCK_BYTES    4096u
/* Records that fit into one block */
#define BSST_JOURNAL_RECORDS        335u
/* Blocks of a guest disk that one record covers at most */
#define BSST_RECORD_MAX_BLOCKS      65535u
/* Block numbers of a guest disk are below this: 2^60 bytes. */
#define BSST_MAX_BLOCK              (1ULL << 48)

/*
 * The @n blocks from @block on are held by the slots from @slot on, or, if
 * @slot is BSST_SLOT_NONE, by the image itself.
 */
typedef struct BsstRecord {
    uint64_t block;
    uint32_t n;                 /* 1 to BSST_RECORD_MAX_BLOCKS */
    BsstSlot slot;
} BsstRecord;

typedef enum BsstBlockKind {
    BSST_BLOCK_JOURNAL,
    BSST_BLOCK_CHECKPOINT,      /* the body of a checkpoint */
} BsstBlockKind;

typedef struct BsstBlockHeader {
    BsstBlockKind kind;
    uint32_t image;             /* index in the image table */
    uint64_t sequence;          /* grows by one from block to block */
    uint64_t generation;        /* of the store when the block was written */
    uint64_t chain;             /* checksum of the block before this one */
} BsstBlockHeader;

/* How a block of a journal reads */
typedef enum BsstBlockState {
    BSST_BLOCK_VALID,
    BSST_BLOCK_END,             /* not the next block: here the journal ends */
    BSST_BLOCK_DAMAGED,         /* the next block, but what it says cannot be */
} BsstBlockState;

/*
 * Encode @n records (1 to BSST_JOURNAL_RECORDS) of @h->image into @buf of
 * BSST_JOURNAL_BLOCK_BYTES.  The body of a checkpoint has no removals.
 * Returns the block's checksum, which is the next block's chain.
 */
uint64_t bsst_block_encode(const BsstBlockHeader *h, const BsstRecord *records,
                           unsigned n, uint8_t *buf);

/*
 * Decode @buf, where the block @expected is expected.  It is the next block if
 * checksum, kind, sequence and chain are right.  Then its generation must be
 * from @expected->generation (that of the block before) to @max_generation,
 * and @nslots and @nimages bound its records; else it is damaged.
 *
 * Safe for any content of @buf.  Fills in @h, @records of BSST_JOURNAL_RECORDS,
 * *@n and *@checksum if the result is BSST_BLOCK_VALID.
 */
BsstBlockState bsst_block_decode(const uint8_t *buf,
                                 const BsstBlockHeader *expected,
                                 uint64_t max_generation, uint32_t nslots,
                                 uint32_t nimages, BsstBlockHeader *h,
                                 BsstRecord *records, unsigned *n,
                                 uint64_t *checksum);

/*
 * Read the header of a block of @kind that is right in itself, by magic and
 * checksum, whatever came before it.  For those who look into a damaged store.
 * Returns false if it is none.  Safe for any content of @buf.
 */
bool bsst_block_peek(const uint8_t *buf, BsstBlockKind kind,
                     BsstBlockHeader *h);

/* A checkpoint's header: the first block of its area, written last. */
typedef struct BsstCheckpoint {
    uint64_t number;            /* grows by one; the newest wins */
    uint64_t generation;
    uint64_t nblocks;           /* of the body, which follows */
    uint64_t chain;             /* checksum of the body's last block, or 0 */
    uint64_t nindirections;
    /* Where replay of the journal starts: */
    uint64_t journal_block;     /* index of a block in the journal area */
    uint64_t journal_sequence;  /* what that block must have */
    uint64_t journal_chain;
    uint64_t journal_generation; /* of the block before that one */
} BsstCheckpoint;

/* Encode @c into @buf of BSST_JOURNAL_BLOCK_BYTES. */
void bsst_checkpoint_encode(const BsstCheckpoint *c, uint8_t *buf);

/*
 * Decode @buf.  @max_blocks and @journal_blocks are the sizes of a checkpoint's
 * body and of the journal at most.  Returns false if it is no checkpoint.
 * Safe for any content of @buf.
 */
bool bsst_checkpoint_decode(BsstCheckpoint *c, const uint8_t *buf,
                            uint64_t max_generation, uint64_t max_blocks,
                            uint64_t journal_blocks);

#endif /* BSST_JOURNAL_FORMAT_H */
