/*
 * Page states of guest RAM under the swapper's control
 *
 * The diagram is in the header.  A transition that it does not show is a bug
 * of ours, never the guest's, and asserts.
 *
 * This work is licensed under the terms of the GNU GPL, version 2 or later.
 * See the COPYING file in the top-level directory.
 */

#include "qemu/osdep.h"
#include "bsst/page-state.h"

#define IN(state)   (1u << PAGE_##state)

/* States in which a page is absent and nobody's ioctl is under way. */
#define IN_OUT      (IN(VICTIM) | IN(WRITING) | IN(SWAPPED) | IN(LOADING) | \
                     IN(ZERO))

/* What is known of a page that is bound */
#define OF_BOUND    (PAGE_FLAG_BOUND | PAGE_FLAG_INTERCEPTED | \
                     PAGE_FLAG_RESTORING)

void page_table_init(PageTable *t, uint64_t npages)
{
    *t = (PageTable) {
        .npages = npages,
        .word = g_new0(uint64_t, npages),
        .count[PAGE_NONE] = npages,
    };
}

void page_table_destroy(PageTable *t)
{
    g_free(t->word);
    t->word = NULL;
}

const char *page_state_str(PageState state)
{
    static const char *const name[PAGE_STATE__MAX] = {
        [PAGE_NONE] = "none",
        [PAGE_RESIDENT] = "resident",
        [PAGE_EVICTING] = "evicting",
        [PAGE_VICTIM] = "victim",
        [PAGE_WRITING] = "writing",
        [PAGE_SWAPPED] = "swapped",
        [PAGE_LOADING] = "loading",
        [PAGE_INSTALLING] = "installing",
        [PAGE_ZERO] = "zero",
    };

    return state < PAGE_STATE__MAX ? name[state] : "?";
}

/* The one place that changes a state.  Flags in @keep survive. */
static void change(PageTable *t, uint64_t page, unsigned from, PageState to,
                   uint32_t ref, uint32_t keep)
{
    PageState old = page_state(t, page);

    g_assert(from & (1u << old));
    t->count[old]--;
    t->count[to]++;
    t->word[page] = (t->word[page] & (0xffffff00u | keep)) | to |
                    (uint64_t)ref << 32;
}

void page_control(PageTable *t, uint64_t page, bool present)
{
    change(t, page, IN(NONE), present ? PAGE_RESIDENT : PAGE_ZERO, 0, 0);
}

void page_release(PageTable *t, uint64_t page)
{
    g_assert(!page_is_bound(t, page));
    change(t, page, IN(RESIDENT) | IN(ZERO), PAGE_NONE, 0, 0);
}

void page_evict_begin(PageTable *t, uint64_t page, uint32_t frame)
{
    g_assert(!page_is_bound(t, page));
    change(t, page, IN(RESIDENT), PAGE_EVICTING, frame, 0);
}

bool page_evict_done(PageTable *t, uint64_t page)
{
    bool faulted = page_flag(t, page, PAGE_FLAG_FAULTED);

    change(t, page, IN(EVICTING), PAGE_VICTIM, page_ref(t, page), 0);
    return faulted;
}

bool page_evict_refused(PageTable *t, uint64_t page, bool absent)
{
    bool faulted = page_flag(t, page, PAGE_FLAG_FAULTED);

    change(t, page, IN(EVICTING), absent ? PAGE_ZERO : PAGE_RESIDENT, 0, 0);
    return faulted;
}

void page_write_begin(PageTable *t, uint64_t page)
{
    change(t, page, IN(VICTIM), PAGE_WRITING, page_ref(t, page),
           PAGE_FLAG_INTERCEPTED);
}

void page_write_done(PageTable *t, uint64_t page, BsstSlot slot)
{
    change(t, page, IN(WRITING), PAGE_SWAPPED, slot, PAGE_FLAG_INTERCEPTED);
}

void page_write_failed(PageTable *t, uint64_t page)
{
    change(t, page, IN(WRITING), PAGE_VICTIM, page_ref(t, page),
           PAGE_FLAG_INTERCEPTED);
}

void page_write_zero(PageTable *t, uint64_t page)
{
    change(t, page, IN(VICTIM) | IN(WRITING), PAGE_ZERO, 0, 0);
}

void page_clean_out(PageTable *t, uint64_t page, BsstSlot slot)
{
    change(t, page, IN(VICTIM), PAGE_SWAPPED, slot, PAGE_FLAG_INTERCEPTED);
}

void page_load_begin(PageTable *t, uint64_t page)
{
    change(t, page, IN(SWAPPED), PAGE_LOADING, page_ref(t, page),
           PAGE_FLAG_INTERCEPTED);
}

void page_load_failed(PageTable *t, uint64_t page)
{
    change(t, page, IN(LOADING), PAGE_SWAPPED, page_ref(t, page),
           PAGE_FLAG_INTERCEPTED);
}

void page_install_begin(PageTable *t, uint64_t page)
{
    change(t, page, IN_OUT, PAGE_INSTALLING, 0, 0);
}

void page_install_bound(PageTable *t, uint64_t page, BsstSlot slot)
{
    change(t, page, IN(VICTIM) | IN(LOADING), PAGE_INSTALLING, slot,
           PAGE_FLAG_INTERCEPTED | PAGE_FLAG_RESTORING);
    page_set_flag(t, page, PAGE_FLAG_BOUND);
    t->nbound++;
}

void page_refill_begin(PageTable *t, uint64_t page)
{
    change(t, page, IN(RESIDENT), PAGE_INSTALLING, page_ref(t, page),
           OF_BOUND);
}

void page_install_done(PageTable *t, uint64_t page)
{
    change(t, page, IN(INSTALLING), PAGE_RESIDENT, page_ref(t, page),
           OF_BOUND);
}

void page_bind(PageTable *t, uint64_t page, BsstSlot slot)
{
    g_assert(!page_is_bound(t, page));
    change(t, page, IN(RESIDENT), PAGE_RESIDENT, slot, 0);
    page_set_flag(t, page, PAGE_FLAG_BOUND);
    t->nbound++;
}

BsstSlot page_unbind(PageTable *t, uint64_t page)
{
    BsstSlot slot = page_ref(t, page);

    g_assert(page_is_bound(t, page));
    change(t, page, IN(RESIDENT), PAGE_RESIDENT, 0, 0);
    t->nbound--;
    return slot;
}

void page_discard(PageTable *t, uint64_t page)
{
    g_assert(!page_is_bound(t, page));
    change(t, page, IN(RESIDENT) | IN_OUT, PAGE_ZERO, 0, 0);
}
