/*
 * Coming back without being asked for
 *
 * 1. Pages that the guest has just written to its disk while they were out:
 *    it is about to reuse them, and would wait for content that it does not
 *    want.  They come back in the background, and so do neighbours that left
 *    together with them.  These were not written, often because they did not
 *    change since the guest read them: then it reuses them at the same time,
 *    but tells nobody.
 *    What became of them is counted.  Only write protection tells that a page
 *    was used: what was only read is not told from what was not touched.
 * 2. All pages, when the limit is taken away.
 *
 * This work is licensed under the terms of the GNU GPL, version 2 or later.
 * See the COPYING file in the top-level directory.
 */

#include "qemu/osdep.h"
#include "block/aio.h"
#include "pager.h"
#include "qemu/lockable.h"
#include "qemu/timer.h"
#include "trace.h"

/* Loads under way at once while everything comes back. */
#define RELEASE_LOADS   8
/* Pages in frames that come back in one go. */
#define RELEASE_TOUCHES 256
/* Pages that are looked at in one go. */
#define RELEASE_SCAN    (1u << 16)

/* Intercepted pages */

void pager_written(BsstPager *pager, void *const *addr, unsigned n)
{
    Pager *p = container_of(pager, Pager, base);
    uint64_t page;

    QEMU_LOCK_GUARD(&p->lock);
    for (unsigned i = 0; i < n; i++) {
        PagerShard *sh;

        if (!pager_lookup(p, addr[i], &page) ||
            (page_state(&p->pages, page) != PAGE_SWAPPED &&
             page_state(&p->pages, page) != PAGE_VICTIM)) {
            continue;
        }
        sh = pager_shard(p, page);
        g_array_append_val(sh->restore, (uint32_t) { page });
        if (sh->restore->len == 1 && sh->restore_bh) {
            qemu_bh_schedule(sh->restore_bh);
        }
    }
}

/* Start the next restore.  Returns false if there is nothing to do now. */
static bool restore_next_locked(PagerShard *sh)
{
    Pager *p = sh->p;

    while (sh->restore->len && sh->restoring < PAGER_RESTORES) {
        uint32_t page = g_array_index(sh->restore, uint32_t, 0);

        if (!pager_yields_locked(p) &&
            pager_charged_locked(p) + PAGER_WINDOW > p->limit) {
            /* No memory for guesses; a fault will bring what is needed. */
            g_array_set_size(sh->restore, 0);
            return false;
        }
        g_array_remove_index(sh->restore, 0);
        if (!page_flag(&p->pages, page, PAGE_FLAG_INTERCEPTED)) {
            continue;
        }
        if (page_state(&p->pages, page) == PAGE_SWAPPED) {
            pager_load_locked(sh, page, PAGER_WINDOW, true);
            return true;
        }
        if (page_state(&p->pages, page) == PAGE_VICTIM) {
            pager_recall_locked(sh, page);
            return true;
        }
    }
    return false;
}

void pager_restore_bh(void *opaque)
{
    PagerShard *sh = opaque;

    QEMU_LOCK_GUARD(&sh->p->lock);
    while (restore_next_locked(sh)) {
        /* go on */
    }
}

void pager_count_restored_locked(Pager *p, uint32_t flags,
                                 RestoreOutcome outcome)
{
    if (flags & PAGE_FLAG_RESTORING) {
        p->n.restored[!!(flags & PAGE_FLAG_INTERCEPTED)][outcome]++;
    }
}

void pager_restored_locked(Pager *p, uint64_t page, RestoreOutcome outcome)
{
    pager_count_restored_locked(p, p->pages.word[page], outcome);
    page_clear_flag(&p->pages, page, PAGE_FLAG_RESTORING);
}

/* Everything */

/*
 * Bring @page back if it is out and nobody does so yet.  Returns true if a
 * shard was asked to.
 */
static bool release_one_locked(Pager *p, uint64_t page)
{
    PagerShard *sh = pager_shard(p, page);

    switch (page_state(&p->pages, page)) {
    case PAGE_SWAPPED:
        pager_load_locked(sh, page, PAGER_WINDOW, false);
        break;
    case PAGE_VICTIM:
    case PAGE_WRITING:
        pager_touch_locked(p, page);
        return true;
    default:
        break;
    }
    return false;
}

bool pager_release_some(Pager *p)
{
    int64_t now = qemu_clock_get_ns(QEMU_CLOCK_REALTIME);
    const uint64_t *count = p->pages.count;
    unsigned touches = 0;

    QEMU_LOCK_GUARD(&p->lock);
    if (p->read_error && now < p->event_ns + NANOSECONDS_PER_SECOND) {
        return true;
    }
    for (unsigned i = 0; i < RELEASE_SCAN && touches < RELEASE_TOUCHES; i++) {
        uint64_t frames = count[PAGE_VICTIM] + count[PAGE_WRITING];

        if (p->loads >= RELEASE_LOADS || !(count[PAGE_SWAPPED] + frames)) {
            break;
        }
        if (p->release_at >= p->pages.npages) {
            p->release_at = 0;
        }
        touches += release_one_locked(p, p->release_at++);
    }
    return count[PAGE_SWAPPED] + count[PAGE_VICTIM] + count[PAGE_WRITING] +
           count[PAGE_LOADING] + count[PAGE_EVICTING] + p->writes + p->loads;
}
