/*
 * The bsst block driver: what others may call
 *
 * This work is licensed under the terms of the GNU GPL, version 2 or later.
 * See the COPYING file in the top-level directory.
 */

#ifndef BSST_BSST_H
#define BSST_BSST_H

#include "block/block-common.h"
#include "qobject/qdict.h"

/*
 * Put a bsst node between @bs and its parents, with @options (whose reference
 * is taken over) and, unless they say otherwise, the swapper's store.
 *
 * Returns false and sets @errp on failure; nothing has changed then.
 */
bool bsst_insert_node(BlockDriverState *bs, QDict *options, Error **errp);

/*
 * Copy up to @blocks blocks of the bsst node @bs that are in the store into the
 * image, durably.  *@left tells how many are left; when there are none the
 * image's guard has been taken away.
 *
 * Returns 0 or -errno.  Main thread, not in a coroutine.
 */
int bsst_drain(BlockDriverState *bs, uint64_t blocks, uint64_t *left);

#endif /* BSST_BSST_H */
