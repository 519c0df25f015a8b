/*
 * Indirection map: the leaves of its tree
 *
 * A leaf says which slots hold the blocks of one word, BSST_WORD_BLOCKS of
 * them.  A block is called by its *part*, its place in the word.  The leaf of a
 * word without entries does not exist: it is NULL.
 *
 * @heap is the caller's count of the bytes that leaves occupy, and is kept up to
 * date.  A @mask of parts has bit 0 for part 0.
 *
 * This work is licensed under the terms of the GNU GPL, version 2 or later.
 * See the COPYING file in the top-level directory.
 */

#ifndef BSST_INDIRECT_LEAF_H
#define BSST_INDIRECT_LEAF_H

#include "bsst/types.h"

typedef enum LeafKind {
    LEAF_CONSECUTIVE,           /* part i is held by slot @base + i, mod 2^32 */
    LEAF_SAME,                  /* all are held by @base */
    LEAF_LIST,                  /* by slot[], in order, without gaps */
} LeafKind;

typedef struct Leaf {
    uint64_t bitmap;            /* of the parts that have a slot; not 0 */
    LeafKind kind;
    BsstSlot base;
    BsstSlot slot[];
} Leaf;

/*
 * The compiler's own popcount is a function with a table where the target need
 * not have the instruction.  This touches no memory.
 */
static inline unsigned count_ones(uint64_t bits)
{
    const uint64_t pairs = 0x3333333333333333ULL;

    bits -= (bits >> 1) & 0x5555555555555555ULL;
    bits = (bits & pairs) + ((bits >> 2) & pairs);
    bits = (bits + (bits >> 4)) & 0x0f0f0f0f0f0f0f0fULL;
    return (bits * 0x0101010101010101ULL) >> 56;
}

/* The slot of @part, or BSST_SLOT_NONE.  @leaf may be NULL. */
static inline BsstSlot leaf_get(const Leaf *leaf, unsigned part)
{
    if (!leaf || !((leaf->bitmap >> part) & 1)) {
        return BSST_SLOT_NONE;
    }
    switch (leaf->kind) {
    case LEAF_CONSECUTIVE:
        return leaf->base + part;
    case LEAF_SAME:
        return leaf->base;
    default:
        return leaf->slot[count_ones(leaf->bitmap & ((1ULL << part) - 1))];
    }
}

/*
 * The slots of the parts from @part on, in order, without gaps.  Returns how
 * many there are.
 */
unsigned leaf_list(const Leaf *leaf, unsigned part, BsstSlot *slot);

/* The parts whose slot is not @except.  @leaf may be NULL. */
uint64_t leaf_except(const Leaf *leaf, BsstSlot except);

/*
 * Let the parts in @mask, which is not 0, be held by @slot[]: part i by
 * slot[i - @first].
 */
void leaf_put(Leaf **link, size_t *heap, uint64_t mask, const BsstSlot *slot,
              unsigned first);

/* Forget the parts in @mask, some of which it has. */
void leaf_drop(Leaf **link, size_t *heap, uint64_t mask);

#endif /* BSST_INDIRECT_LEAF_H */
