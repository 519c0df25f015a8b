/*
 * Slot table: which slots of the store are in use, by how many, and the
 * checksum of each
 *
 * CORE: no I/O, no locks, no threads.  The caller serialises all calls.
 *
 * A slot is, at any time, exactly one of
 *   free       no reference, may be allocated;
 *   in use     one reference or more;
 *   punching   no reference, its space is being given back to the file system
 *              and must not be allocated meanwhile.
 * Beside that each slot is *backed* (it may occupy space in the store's file)
 * or not.  Allocation makes a slot backed, punching ends it.
 *
 * This work is licensed under the terms of the GNU GPL, version 2 or later.
 * See the COPYING file in the top-level directory.
 */

#ifndef BSST_SLOT_TABLE_H
#define BSST_SLOT_TABLE_H

#include "bsst/types.h"

typedef struct SlotTable SlotTable;

/* Create a table of @nslots (at least 1) free slots, none of them backed. */
SlotTable *slot_table_new(uint32_t nslots);
void slot_table_free(SlotTable *t);

/*
 * Allocate up to @want (at least 1) slots that lie one behind the other; each
 * gets one reference.
 *
 * Allocation goes forward through the store (next fit), so that slots which
 * are allocated one after the other lie close together.  A run of @want is
 * preferred to a nearer but shorter one; the longest run is taken when there
 * is none of @want.
 *
 * Returns the length of the run, at @first; 0 if no slot is free.
 */
uint32_t slot_table_alloc(SlotTable *t, uint32_t want, BsstSlot *first);

/*
 * Allocate @want slots in a row as low in the store as possible; or, if there
 * is no such run below @limit, from the lowest run of at least @min (1 to
 * @want).  All lie below @limit.  The place where slot_table_alloc() goes on
 * does not change.
 *
 * Returns the length of the run, at @first; 0 if there is none.
 */
uint32_t slot_table_alloc_low(SlotTable *t, uint32_t want, uint32_t min,
                              BsstSlot limit, BsstSlot *first);

/* Take one more reference on @slot, which is in use. */
void slot_table_ref(SlotTable *t, BsstSlot slot);
/* The same for each of @n slots, among which may be one several times. */
void slot_table_ref_list(SlotTable *t, const BsstSlot *slot, uint32_t n);

/* Drop a reference of @slot.  Returns true if it was the last: free now. */
bool slot_table_unref(SlotTable *t, BsstSlot slot);

/*
 * Recovery, before anything else is done with a new table: count one more
 * reference for each of the @n slots in @slot[].  The caller has seen to it
 * that there are less than 2^32 in all.
 */
void slot_table_restore_refs(SlotTable *t, const BsstSlot *slot, uint32_t n);

/*
 * End recovery: slots with references are in use.  With @backed the free ones
 * may have space, too, so that it is given back at some time.
 */
void slot_table_restore_done(SlotTable *t, bool backed);

/*
 * At the end of recovery: the checksums of the @n slots from @first on.  Those
 * of free slots are passed over.
 */
void slot_table_restore_checksums(SlotTable *t, BsstSlot first, uint32_t n,
                                  const uint64_t *checksum);

/* Number of references of @slot, 0 if it is free. */
uint32_t slot_table_refs(const SlotTable *t, BsstSlot slot);

/* The checksum that was set for @slot, which is in use. */
void slot_table_set_checksum(SlotTable *t, BsstSlot slot, uint64_t checksum);
uint64_t slot_table_checksum(const SlotTable *t, BsstSlot slot);

/*
 * Find the next run of at least @min free slots at or after *@pos whose first
 * and last are backed, at most @max of it, and make it punching.  (To punch
 * again what is not backed costs less than a second run.)  *@pos moves behind
 * the run, to the table's end when there is none.
 *
 * Returns its length, at @first, or 0.
 */
uint32_t slot_table_punch_begin(SlotTable *t, BsstSlot *pos, uint32_t min,
                                uint32_t max, BsstSlot *first);

/*
 * End the punching of @n slots from @first on: they are free; not backed any
 * more if @punched, as before if not (the file system refused).
 */
void slot_table_punch_end(SlotTable *t, BsstSlot first, uint32_t n,
                          bool punched);

uint32_t slot_table_size(const SlotTable *t);
/* Free slots; those being punched are not counted. */
uint32_t slot_table_nfree(const SlotTable *t);
uint32_t slot_table_nbacked(const SlotTable *t);

/* Bytes of memory that @t occupies: at most 16 a slot. */
size_t slot_table_bytes(const SlotTable *t);

#endif /* BSST_SLOT_TABLE_H */
