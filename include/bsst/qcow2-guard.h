/*
 * The guard of a qcow2 image whose blocks may be in a block-swap store
 *
 * An incompatible feature bit, and a header extension that names the store,
 * the image and its generation.  While an image carries the bit nobody can use
 * its data but a bsst node: others would take stale content for the image's.
 * What tells the two apart is that a bsst node shares no consistent read (see
 * qcow2_bsst_check_perm).
 *
 * When the bit is taken away the extension stays, as a memory of who the image
 * was.  It has no meaning then but this: if the store still has an entry for
 * the image, without indirections, it can be used again.
 *
 * This work is licensed under the terms of the GNU GPL, version 2 or later.
 * See the COPYING file in the top-level directory.
 */

#ifndef BSST_QCOW2_GUARD_H
#define BSST_QCOW2_GUARD_H

#include "block/block-common.h"
#include "block/graph-lock.h"
#include "qemu/uuid.h"

typedef struct Qcow2BsstGuard {
    bool set;                   /* the feature bit */
    QemuUUID store;
    QemuUUID image;
    uint64_t generation;
} Qcow2BsstGuard;

/* True if @bs is an image that can carry a guard; @errp tells why not. */
bool GRAPH_RDLOCK qcow2_can_bsst_guard(BlockDriverState *bs, Error **errp);

/*
 * Get what the header of @bs, for which qcow2_can_bsst_guard() was true, says.
 * Without a header extension all is 0.
 */
void GRAPH_RDLOCK qcow2_get_bsst_guard(BlockDriverState *bs,
                                       Qcow2BsstGuard *guard);

/*
 * Let the header of @bs say @guard.  It is durable when this returns 0; on
 * failure (-errno) the header is as it was, or as it should be.
 */
int coroutine_fn GRAPH_RDLOCK
qcow2_co_set_bsst_guard(BlockDriverState *bs, const Qcow2BsstGuard *guard);

#endif /* BSST_QCOW2_GUARD_H */
