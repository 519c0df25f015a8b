/*
 * Durable map: an indirection map that knows what of it is on disk
 *
 * CORE: no I/O, no locks, no threads.  The caller serialises all calls;
 * lookups may run in parallel with each other only.
 *
 * Three states of one map, from new to old:
 *
 *   current     what the guest sees;
 *   prepared    what the commit in progress writes, while there is one;
 *   committed   what the journal says: what a crash would leave.
 *
 * Only the differences are kept: for each block that changed since the last
 * prepare, what it was then; for each block that the commit in progress
 * changes, what it was before.  Each of these *old* slots is referenced by the
 * map until the commit that replaces it has succeeded: a crash may bring it
 * back.  A slot that no prepare has seen was never named on disk and is given
 * back at once.
 *
 * This work is licensed under the terms of the GNU GPL, version 2 or later.
 * See the COPYING file in the top-level directory.
 */

#ifndef BSST_DURABLE_MAP_H
#define BSST_DURABLE_MAP_H

#include "bsst/indirect-map.h"
#include "bsst/record-batch.h"

typedef struct DurableMap DurableMap;

DurableMap *durable_map_new(void);
/* Free @m; slots are not touched. */
void durable_map_free(DurableMap *m);

/* The current state, for lookups.  Valid as long as @m. */
const IndirectMap *durable_map_current(const DurableMap *m);

/*
 * Let the @n blocks from @block on be held by @slot[], whose references @m
 * takes over; BSST_SLOT_NONE removes the entry.
 *
 * @old[] gets the slots that held them before, or BSST_SLOT_NONE; @drop[] those
 * of them whose references the caller has to drop now, or BSST_SLOT_NONE.  Both
 * are as long as @slot, and @drop may be @old.  Returns how many slots are in
 * @old; if none, none is in @drop.
 */
unsigned durable_map_set(DurableMap *m, uint64_t block, const BsstSlot *slot,
                         unsigned n, BsstSlot *old, BsstSlot *drop);

/* True if the current state differs from the one prepared last. */
bool durable_map_changed(const DurableMap *m);

/*
 * Current entries plus old slots that are still held: no state that may be
 * written has more entries than this.
 */
uint64_t durable_map_weight(const DurableMap *m);

/* Begin a commit of the current state.  There is none in progress. */
void durable_map_prepare(DurableMap *m);

/* True from prepare to commit or abort. */
bool durable_map_preparing(const DurableMap *m);

/*
 * What the commit in progress has to write: find the first record at or after
 * @block.  Returns false if there is none.  Later changes of the current state
 * do not matter.
 */
bool durable_map_next_prepared(const DurableMap *m, uint64_t block,
                               BsstRecord *record);

/*
 * The commit in progress is durable.  Returns the slots whose references the
 * caller has to drop now, as an array of BsstSlot.
 */
GArray *durable_map_commit(DurableMap *m);

/*
 * The commit in progress has failed, and what of it is on disk is unknown.
 * What it changed counts as changed again; all slots that may be named on disk
 * are kept until the next commit has succeeded.
 */
void durable_map_abort(DurableMap *m);

/*
 * Iterate over the committed state, or with @prepared over what it will be
 * after the commit in progress: find the first run of entries at or after
 * @block.  Returns false if there is none.
 */
bool durable_map_next_committed(const DurableMap *m, bool prepared,
                                uint64_t block, BsstRecord *record);

/*
 * Recovery: apply what records say of some blocks (word->map does not matter)
 * to the committed state.  There are no changes and no commit; references are
 * the caller's business, at the end.
 */
void durable_map_restore(DurableMap *m, const BsstRecordWord *word);

size_t durable_map_bytes(const DurableMap *m);

#endif /* BSST_DURABLE_MAP_H */
