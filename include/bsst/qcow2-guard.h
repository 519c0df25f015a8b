/*
 * The guard of a qcow2 image whose blocks may be in a block-swap store
 *
 * An incompatible feature bit and a header extension that names the store.
 * While an image carries them nobody can use its data but a bsst node: others
 * would take stale content for the image's.  What tells the two apart is that
 * a bsst node shares no consistent read (see qcow2_bsst_check_perm).
 *
 * This work is licensed under the terms of the GNU GPL, version 2 or later.
 * See the COPYING file in the top-level directory.
 */

#ifndef BSST_QCOW2_GUARD_H
#define BSST_QCOW2_GUARD_H

#include "block/block-common.h"
#include "block/graph-lock.h"
#include "qemu/uuid.h"

/* True if @bs is an image that can carry a guard; @errp tells why not. */
bool GRAPH_RDLOCK qcow2_can_bsst_guard(BlockDriverState *bs, Error **errp);

/*
 * If @bs, for which qcow2_can_bsst_guard() was true, is guarded return true
 * and the store's @uuid.
 */
bool GRAPH_RDLOCK qcow2_get_bsst_guard(BlockDriverState *bs, QemuUUID *uuid);

/*
 * Set the guard, or take it away.  It is durable when this returns 0; on
 * failure (-errno) the image may carry it or not.
 */
int coroutine_fn GRAPH_RDLOCK
qcow2_co_set_bsst_guard(BlockDriverState *bs, const QemuUUID *uuid,
                        uint64_t generation);
int coroutine_fn GRAPH_RDLOCK qcow2_co_clear_bsst_guard(BlockDriverState *bs);

#endif /* BSST_QCOW2_GUARD_H */
