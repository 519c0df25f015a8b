/*
 * What the block driver may ask of the swapper
 *
 * The swapper (hw/swapper/) implements this table and hangs it on the store;
 * the block driver (block/bsst.c) calls it.  Neither includes the other.
 *
 * Addresses are host virtual addresses, aligned to BSST_PAGE_SIZE.  An address
 * that is not guest RAM under the swapper's control, as NULL is not, counts as
 * present.
 *
 * All calls may come from any thread and take only the pager's own page lock,
 * which is never held across I/O or an ioctl.
 *
 * This work is licensed under the terms of the GNU GPL, version 2 or later.
 * See the COPYING file in the top-level directory.
 */

#ifndef BSST_PAGER_H
#define BSST_PAGER_H

#include "bsst/types.h"
#include "qemu/coroutine-core.h"

typedef enum BsstPageKind {
    /* Use the memory itself (a touch waits for one device read at most). */
    BSST_PAGE_PRESENT,
    /* @slot holds the content and a reference on it was taken. */
    BSST_PAGE_SLOT,
    /* Absent; @buf holds the content until the claim is released. */
    BSST_PAGE_BUFFER,
    /* Absent and all zeroes. */
    BSST_PAGE_ZERO,
} BsstPageKind;

typedef struct BsstPageClaim {
    BsstPageKind kind;
    BsstSlot slot;              /* BSST_PAGE_SLOT */
    const void *buf;            /* BSST_PAGE_BUFFER */
    bool bound;                 /* BSST_PAGE_SLOT: the page is there, too */
} BsstPageClaim;

typedef struct BsstPager BsstPager;

typedef struct BsstPagerOps {
    /*
     * Claim the content of @n pages as it is now, for a write to disk.  "Is
     * it in a slot? then take a reference" is one atomic step.  A page that is
     * there may have been claimed as it was at any time during the call.
     */
    void (*claim)(BsstPager *pager, void *const *page, BsstPageClaim *claim,
                  unsigned n);

    /*
     * The same, but only if all the pages are absent and in slots: these
     * are in @slot then, with a reference of each.  Returns false if not, and
     * nothing was claimed.
     */
    bool (*claim_slots)(BsstPager *pager, void *const *page, BsstSlot *slot,
                        unsigned n);

    /*
     * Give up the claimed buffers.  A slot's reference belongs to the caller,
     * who may keep or drop it.
     */
    void (*release)(BsstPager *pager, const BsstPageClaim *claim, unsigned n);

    /*
     * Tell for each of @n pages whether it is absent, so that a disk read
     * which covers it should go to a private buffer and then be installed.
     */
    void (*absent)(BsstPager *pager, void *const *page, bool *absent,
                   unsigned n);

    /*
     * Wait until there is memory below the limit for pages to be installed.
     * Waits for the swapper's own writes only.
     */
    void coroutine_fn (*co_admit)(BsstPager *pager);

    /*
     * Make @buf the content of @page without reading its old content.
     *
     * Returns true if done; false if the page is present, so that the caller
     * must copy into it.
     */
    bool (*install)(BsstPager *pager, void *page, const void *buf);

    /*
     * @n pages, claimed as BSST_PAGE_SLOT, have been written to disk.  The
     * guest is likely to touch them soon: bring them back in the background.
     */
    void (*written)(BsstPager *pager, void *const *page, unsigned n);

    /* Space has returned to the store, which was full.  Any thread. */
    void (*space)(BsstPager *pager);

    /* The last reference went away: free @pager. */
    void (*free)(BsstPager *pager);
} BsstPagerOps;

struct BsstPager {
    /* Set once */
    const BsstPagerOps *ops;

    /* Atomic */
    unsigned refcnt;
    bool armed;         /* some pages may be absent */
    bool tesseract;     /* false: no claims, absent pages are swapped in */
};

#endif /* BSST_PAGER_H */
