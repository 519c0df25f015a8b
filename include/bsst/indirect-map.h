/*
 * Indirection map: which blocks of one guest disk live in the store
 *
 * CORE: no I/O, no locks, no threads.  The caller serialises all calls on one
 * map; lookups may run in parallel with each other only.
 *
 * This work is licensed under the terms of the GNU GPL, version 2 or later.
 * See the COPYING file in the top-level directory.
 */

#ifndef BSST_INDIRECT_MAP_H
#define BSST_INDIRECT_MAP_H

#include "bsst/types.h"

typedef struct IndirectMap IndirectMap;

/* Create an empty map.  Never fails. */
IndirectMap *indirect_map_new(void);

/* Free @map; the slots that it names are not touched.  NULL is allowed. */
void indirect_map_free(IndirectMap *map);

/* Return the slot that holds @block, or BSST_SLOT_NONE. */
BsstSlot indirect_map_lookup(const IndirectMap *map, uint64_t block);

/*
 * Let @block be held by @slot (not BSST_SLOT_NONE).
 *
 * Returns the slot that held it before, or BSST_SLOT_NONE.
 */
BsstSlot indirect_map_insert(IndirectMap *map, uint64_t block, BsstSlot slot);

/*
 * Let the @n blocks from @block on be held by @slot[].  Much faster than one
 * by one.
 *
 * @old[] gets the slots that held them before, or BSST_SLOT_NONE.  Returns how
 * many had been in the map.
 */
unsigned indirect_map_insert_run(IndirectMap *map, uint64_t block,
                                 const BsstSlot *slot, unsigned n,
                                 BsstSlot *old);

/* The same with one slot for all of them, and none of them in the map. */
void indirect_map_fill(IndirectMap *map, uint64_t block, unsigned n,
                       BsstSlot slot);

/* Forget @block.  Returns the slot that held it, or BSST_SLOT_NONE. */
BsstSlot indirect_map_remove(IndirectMap *map, uint64_t block);

/*
 * Forget the @n blocks from @block on.  Much faster than one by one.
 *
 * @old[] gets the slots that held them, or BSST_SLOT_NONE.  Returns how many
 * had been in the map.
 */
unsigned indirect_map_remove_run(IndirectMap *map, uint64_t block, unsigned n,
                                 BsstSlot *old);

/*
 * Change those of the BSST_WORD_BLOCKS blocks from @block on, a multiple of it,
 * that are in @mask (bit 0 is @block): let them be held by their element of
 * @slot[], or forget them where that is BSST_SLOT_NONE.
 */
void indirect_map_set_word(IndirectMap *map, uint64_t block, uint64_t mask,
                           const BsstSlot *slot);

/*
 * Find the first entry whose block is at least @block.
 *
 * Returns true and fills in @found and @slot (each may be NULL), or false if
 * there is none.
 */
bool indirect_map_next(const IndirectMap *map, uint64_t block,
                       uint64_t *found, BsstSlot *slot);

/*
 * Return how many blocks from @block on, at most @max (at least 1), are alike:
 * all in the map (then *@mapped is true) or none of them.
 */
uint64_t indirect_map_extent(const IndirectMap *map, uint64_t block,
                             uint64_t max, bool *mapped);

/*
 * Which of the 64 blocks around @block, from a multiple of 64 on, are in the
 * map, as a bitmap.  Entries whose slot is @except are left out
 * (BSST_SLOT_NONE: none is).
 */
uint64_t indirect_map_word(const IndirectMap *map, uint64_t block,
                           BsstSlot except);

/*
 * All slots, a few at a time: let @slot[] (room for BSST_WORD_BLOCKS) be those
 * of the first entries at or after *@block, and move *@block behind them.
 * Returns how many, at most BSST_WORD_BLOCKS; 0 at the end.
 */
unsigned indirect_map_next_slots(const IndirectMap *map, uint64_t *block,
                                 BsstSlot *slot);

/* Number of entries. */
uint64_t indirect_map_count(const IndirectMap *map);

/* Bytes of memory that @map occupies, itself included. */
size_t indirect_map_bytes(const IndirectMap *map);

#endif /* BSST_INDIRECT_MAP_H */
