/*
 * Record batch: records that wait to be applied, sorted by where they apply
 *
 * A journal names blocks in any order, and a map that is changed in such an
 * order makes the processor wait for memory at each step.  A batch takes the
 * records of several maps in the order of the journal and gives them back word
 * by word: for 64 neighbouring blocks at a time, what they are in the end.
 *
 * CORE: no I/O, no locks, no threads.
 *
 * This work is licensed under the terms of the GNU GPL, version 2 or later.
 * See the COPYING file in the top-level directory.
 */

#ifndef BSST_RECORD_BATCH_H
#define BSST_RECORD_BATCH_H

#include "bsst/journal-format.h"

/* Maps are numbered from 0 to less than this. */
#define BSST_RECORD_BATCH_MAPS  65536u

/*
 * A batch of so many bytes is worth applying: with more, words have more of
 * their records together, but leave the processor's caches.
 */
#define BSST_RECORD_BATCH_BYTES (32u * 1024 * 1024)

typedef struct RecordBatch RecordBatch;

/* What the records of a batch say of the 64 blocks from @block on */
typedef struct BsstRecordWord {
    uint32_t map;
    uint64_t block;             /* a multiple of BSST_WORD_BLOCKS */
    uint64_t mask;              /* blocks that they name, the first in bit 0 */
    BsstSlot slot[BSST_WORD_BLOCKS]; /* of these; BSST_SLOT_NONE: removed */
} BsstRecordWord;

RecordBatch *record_batch_new(void);
/* NULL is allowed. */
void record_batch_free(RecordBatch *b);

/* Add @record of @map; it wins over those that were added before it. */
void record_batch_add(RecordBatch *b, uint32_t map, const BsstRecord *record);

/* Bytes of memory that the records take, and as many again to sort them. */
size_t record_batch_bytes(const RecordBatch *b);

/*
 * Take the next word out of @b: by map, then by block, each once.  Returns
 * false and leaves @b empty if there is none.  Nothing is added before that.
 */
bool record_batch_next(RecordBatch *b, BsstRecordWord *word);

#endif /* BSST_RECORD_BATCH_H */
