/*
 * Bound pages: clean pages keep their slot
 *
 * A page that comes back from a slot, and that nobody has asked to write, keeps
 * the slot, and is write-protected by userfaultfd.  At the first write the
 * kernel takes the protection away by itself (UFFD_FEATURE_WP_ASYNC), whoever
 * writes: a processor, QEMU, a system call, or a device, for which the page is
 * pinned.  Nobody waits for us, and we are not told; we look when it matters:
 * when the page is evicted again, or written to a disk, and now and then.
 *
 *   P7   A page is write-protected only if it was installed as bound, and has
 *        not been written since.  So where a page is bound, and protected at
 *        some moment, it has the content of its slot at that moment.
 *   P8   A claim of a bound page counts if the page was protected at a moment
 *        after its slot was referenced, and is bound to that slot still.  (The
 *        reference keeps the slot from being allocated anew, so it has been
 *        bound to it all the time, or was out in it.)
 *   P9   What is evicted is clean if it was protected before the move, and its
 *        checksum is the slot's after it.  The first excludes all writes but
 *        those of the microseconds in between; these the second finds, as the
 *        frame does not change any more.
 *   P10  No write to the store fails for lack of a slot while a page is bound.
 *
 * A binding ends, and its reference is dropped, when
 *   1. the page is found to have been written: at eviction, at a claim, or by
 *      pager_sweep_bound();
 *   2. it is discarded, or its RAM goes away;
 *   3. it is given up, because the store is short of slots (P10);
 *   4. the pager lets go of all pages.
 * If the page leaves clean, the reference goes on to its frame, and from there
 * to the page that is swapped out, or that comes back for a read.  If it comes
 * back for a write, or is filled by a disk read, it goes with the frame.
 * The store never moves a slot that is referenced.
 *
 * Locking: see pager.h.  Without the page lock while the kernel is asked.
 *
 * This work is licensed under the terms of the GNU GPL, version 2 or later.
 * See the COPYING file in the top-level directory.
 */

#include "qemu/osdep.h"
#include "pager.h"
#include "qemu/host-utils.h"
#include "qemu/lockable.h"
#include "uffd.h"

/* Pages whose protection is looked at together, aligned. */
#define LOOK        64
/* Pages that one sweep passes. */
#define SWEEP       1024
/* Pages that are passed under one hold of the page lock. */
#define GIVE_UP     512

unsigned pager_unbind_locked(Pager *p, uint64_t page, BsstSlot *slot)
{
    if (!page_is_bound(&p->pages, page)) {
        return 0;
    }
    *slot = page_unbind(&p->pages, page);
    return 1;
}

/* Claims */

/*
 * P8: settle a claim; @clean: the page was protected.  Puts what is to be
 * dropped into @slot[], and returns the number.
 */
static unsigned confirm_locked(Pager *p, void *addr, BsstPageClaim *c,
                               bool clean, BsstSlot *slot)
{
    uint64_t page;
    bool bound = pager_lookup(p, addr, &page) &&
                 page_is_bound(&p->pages, page) &&
                 page_ref(&p->pages, page) == c->slot;
    unsigned n = 0;

    if (bound && clean) {
        c->kind = BSST_PAGE_SLOT;
        p->n.clean_claims++;
        return 0;
    }
    c->bound = false;
    slot[n++] = c->slot;
    if (bound && page_state(&p->pages, page) == PAGE_RESIDENT) {
        pager_restored_locked(p, page, RESTORE_WRITTEN);
        n += pager_unbind_locked(p, page, &slot[n]);
        p->n.unbound_written++;
    }
    return n;
}

/* The number of pages, from the first on, that one look at memory covers. */
static unsigned look_run(void *const *addr, unsigned n)
{
    unsigned run = 1;

    while (run < MIN(n, LOOK) &&
           addr[run] == addr[0] + (size_t)run * BSST_PAGE_SIZE) {
        run++;
    }
    return run;
}

void pager_confirm_claims(Pager *p, void *const *addr, BsstPageClaim *claim,
                          unsigned n)
{
    BsstSlot slot[2 * LOOK];
    unsigned run;

    for (unsigned i = 0; i < n; i += run) {
        unsigned nslots = 0;
        uint64_t clean;

        run = 1;
        if (!claim[i].bound) {
            continue;
        }
        run = look_run(&addr[i], n - i);
        clean = uffd_swapper_protected(p->pagemap_fd, addr[i], run);
        WITH_QEMU_LOCK_GUARD(&p->lock) {
            for (unsigned k = 0; k < run; k++) {
                if (!claim[i + k].bound) {
                    continue;
                }
                nslots += confirm_locked(p, addr[i + k], &claim[i + k],
                                         clean >> k & 1, &slot[nslots]);
            }
        }
        bsst_slot_unref(p->store, slot, nslots);
    }
}

void pager_count_read_over(Pager *p, void *const *addr, unsigned n)
{
    unsigned run;

    for (unsigned i = 0; i < n; i += run) {
        uint64_t clean, page;

        run = look_run(&addr[i], n - i);
        clean = uffd_swapper_protected(p->pagemap_fd, addr[i], run);
        QEMU_LOCK_GUARD(&p->lock);
        for (unsigned k = 0; k < run; k++) {
            if (pager_lookup(p, addr[i + k], &page) &&
                page_is_bound(&p->pages, page)) {
                pager_restored_locked(p, page, clean >> k & 1
                                               ? RESTORE_READ_OVER
                                               : RESTORE_WRITTEN);
            }
        }
    }
}

/* Sweep */

/* RESIDENT pages among those from @first on that are bound: a bitmap. */
static uint64_t bound_map_locked(const Pager *p, uint64_t first)
{
    uint64_t map = 0;

    for (unsigned i = 0; i < LOOK; i++) {
        map |= (uint64_t)(page_is_bound(&p->pages, first + i) &&
                          !page_in_transit(&p->pages, first + i)) << i;
    }
    return map;
}

/* Let go of what has been written among the pages from @first on. */
static void sweep_some(Pager *p, uint64_t first)
{
    uint64_t map, clean;
    BsstSlot slot[LOOK];
    unsigned low, n, nslots = 0;
    void *addr;

    WITH_QEMU_LOCK_GUARD(&p->lock) {
        map = bound_map_locked(p, first);
        if (!map) {
            return;
        }
        low = ctz64(map);
        n = LOOK - clz64(map) - low;
        addr = pager_addr(p, first + low);
    }
    clean = uffd_swapper_protected(p->pagemap_fd, addr, n) << low;
    WITH_QEMU_LOCK_GUARD(&p->lock) {
        map &= ~clean & bound_map_locked(p, first);
        while (map) {
            uint64_t page = first + ctz64(map);

            pager_restored_locked(p, page, RESTORE_WRITTEN);
            nslots += pager_unbind_locked(p, page, &slot[nslots]);
            map &= map - 1;
        }
        p->n.unbound_written += nslots;
    }
    bsst_slot_unref(p->store, slot, nslots);
}

void pager_sweep_bound(Pager *p)
{
    if (!qatomic_read(&p->pages.nbound)) {
        return;
    }
    /* While armed the number of pages does not change: whole chunks. */
    for (unsigned i = 0; i < SWEEP; i += LOOK) {
        if (p->sweep_at >= p->pages.npages) {
            p->sweep_at = 0;
        }
        sweep_some(p, p->sweep_at);
        p->sweep_at += LOOK;
    }
}

/* Give up */

/* The same for at most @max of the next GIVE_UP pages from *@page on. */
static unsigned give_up_locked(Pager *p, uint64_t *page, BsstSlot *slot,
                               unsigned max)
{
    unsigned n = 0;

    for (unsigned i = 0; i < GIVE_UP && n < max; i++) {
        *page = *page < p->pages.npages ? *page : 0;
        if (page_state(&p->pages, *page) == PAGE_RESIDENT) {
            n += pager_unbind_locked(p, *page, &slot[n]);
        }
        ++*page;
    }
    p->n.unbound_given_up += n;
    return n;
}

unsigned pager_give_up_bound(Pager *p, unsigned want)
{
    uint64_t page, end;
    unsigned total = 0;

    /* The policy's hand goes round: what is before it came first. */
    WITH_QEMU_LOCK_GUARD(&p->lock) {
        page = p->policy.hand * POLICY_GROUP;
        end = p->pages.nbound ? p->pages.npages : 0;
    }
    for (uint64_t passed = 0; passed < end && total < want; passed += GIVE_UP) {
        BsstSlot slot[GIVE_UP];
        unsigned n = 0;

        WITH_QEMU_LOCK_GUARD(&p->lock) {
            n = give_up_locked(p, &page, slot, want - total);
        }
        bsst_slot_unref(p->store, slot, n);
        total += n;
    }
    return total;
}
