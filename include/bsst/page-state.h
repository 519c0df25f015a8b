/*
 * Page states of guest RAM under the swapper's control
 *
 * CORE: no I/O, no locks, no threads.  The caller holds the page lock around
 * every call; the functions here are the only ones that change a state.
 *
 *                  page_evict_begin      page_evict_done
 *        RESIDENT ------------------> EVICTING ----------> VICTIM
 *          ^  ^                          |                 |  ^ |
 *          |  +--------------------------+ page_write_begin|  | |page_write_
 *          |     page_evict_refused                        v  | |    zero
 *          |                                 page_write_ WRITING |
 *          |                                    failed     |     |
 *          | page_install_done                             |     v
 *          |                          page_write_done      |    ZERO
 *      INSTALLING <---------------.                        v     ^
 *          ^  page_install_begin   +----- (any absent) ---- SWAPPED
 *          |                                               |  ^
 *          +--------------------- LOADING <----------------+  |
 *                                    |      page_load_begin   |
 *                                    +------------------------+
 *                                          page_load_failed
 *
 *   page_refill_begin: RESIDENT -> INSTALLING
 *   page_install_bound: VICTIM, LOADING -> INSTALLING, bound
 *   page_clean_out: VICTIM -> SWAPPED
 *   page_bind, page_unbind: RESIDENT stays RESIDENT
 *   page_discard: RESIDENT and every absent state -> ZERO
 *   page_control: NONE -> RESIDENT or ZERO;  page_release: these -> NONE
 *
 * EVICTING and INSTALLING are in transit: an ioctl is under way outside the
 * lock, and only the thread that issued it may change the state.  LOADING is
 * not: the page is absent and its slot intact until somebody, the loader or
 * another, begins to install; whoever does takes the page from the loader.
 *
 * A page that is INSTALLING or RESIDENT may be *bound*: it owns a reference of
 * the slot that it came from.  Whether it still has the content of that slot is
 * not known here.  Only page_unbind() ends that, and who calls it takes the
 * reference over: a bound page cannot leave, be discarded or be released.
 *
 * One page is one 64-bit word:
 *   bits 0-3    state
 *   bit  4      FAULTED: somebody touched it while EVICTING or LOADING
 *   bit  5      INTERCEPTED: written to disk since it left; bound: before it
 *               came back
 *   bit  6      RESTORING: being loaded because it, or a neighbour, was
 *               intercepted; bound: came back so, and nothing is known yet of
 *               what it was good for
 *   bit  7      BOUND: INSTALLING or RESIDENT, and bound; LOADING, and to be
 *               bound, as nobody has asked to write it
 *   bits 8-31   for the policy
 *   bits 32-63  slot (SWAPPED, LOADING; bound) or frame (EVICTING, VICTIM,
 *               WRITING)
 *
 * This work is licensed under the terms of the GNU GPL, version 2 or later.
 * See the COPYING file in the top-level directory.
 */

#ifndef BSST_PAGE_STATE_H
#define BSST_PAGE_STATE_H

#include "bsst/types.h"

typedef enum PageState {
    PAGE_NONE,          /* not under control: present as far as we know */
    PAGE_RESIDENT,
    PAGE_EVICTING,
    PAGE_VICTIM,
    PAGE_WRITING,
    PAGE_SWAPPED,
    PAGE_LOADING,
    PAGE_INSTALLING,
    PAGE_ZERO,
    PAGE_STATE__MAX
} PageState;

#define PAGE_FLAG_FAULTED       (1u << 4)
#define PAGE_FLAG_INTERCEPTED   (1u << 5)
#define PAGE_FLAG_RESTORING     (1u << 6)
#define PAGE_FLAG_BOUND         (1u << 7)

typedef struct PageTable {
    uint64_t npages;
    uint64_t *word;
    uint64_t count[PAGE_STATE__MAX];    /* pages in each state */
    uint64_t nbound;                    /* pages that are bound */
} PageTable;

/* All @npages start as PAGE_NONE. */
void page_table_init(PageTable *t, uint64_t npages);
void page_table_destroy(PageTable *t);

const char *page_state_str(PageState state);

static inline PageState page_state(const PageTable *t, uint64_t page)
{
    return t->word[page] & 0xf;
}

/* Slot or frame of the page with @word, as its state says. */
static inline uint32_t page_word_ref(uint64_t word)
{
    return word >> 32;
}

static inline uint32_t page_ref(const PageTable *t, uint64_t page)
{
    return page_word_ref(t->word[page]);
}

/* Is the content of the page with @word in a slot, and nowhere else? */
static inline bool page_word_in_slot(uint64_t word)
{
    return (1u << PAGE_SWAPPED | 1u << PAGE_LOADING) >> (word & 0xf) & 1;
}

static inline bool page_flag(const PageTable *t, uint64_t page, uint32_t flag)
{
    return t->word[page] & flag;
}

static inline void page_set_flag(PageTable *t, uint64_t page, uint32_t flag)
{
    t->word[page] |= flag;
}

static inline void page_clear_flag(PageTable *t, uint64_t page, uint32_t flag)
{
    t->word[page] &= ~(uint64_t)flag;
}

/* An ioctl on @page is under way: nobody else may change its state. */
static inline bool page_in_transit(const PageTable *t, uint64_t page)
{
    PageState s = page_state(t, page);

    return s == PAGE_EVICTING || s == PAGE_INSTALLING;
}

/* @page is absent and may be installed or discarded by anybody. */
static inline bool page_is_out(const PageTable *t, uint64_t page)
{
    PageState s = page_state(t, page);

    return s >= PAGE_VICTIM && s != PAGE_INSTALLING;
}

static inline bool page_is_bound(const PageTable *t, uint64_t page)
{
    PageState s = page_state(t, page);

    return (s == PAGE_RESIDENT || s == PAGE_INSTALLING) &&
           page_flag(t, page, PAGE_FLAG_BOUND);
}

/* The transitions; each asserts that @page is in a state it may leave. */
void page_control(PageTable *t, uint64_t page, bool present);
void page_release(PageTable *t, uint64_t page);
void page_evict_begin(PageTable *t, uint64_t page, uint32_t frame);
/* Returns true if somebody touched the page meanwhile: bring it back. */
bool page_evict_done(PageTable *t, uint64_t page);
/* @absent: the page was not there.  Returns as page_evict_done(). */
bool page_evict_refused(PageTable *t, uint64_t page, bool absent);
void page_write_begin(PageTable *t, uint64_t page);
void page_write_done(PageTable *t, uint64_t page, BsstSlot slot);
void page_write_failed(PageTable *t, uint64_t page);
void page_write_zero(PageTable *t, uint64_t page);
/* What is in the frame is in @slot, too. */
void page_clean_out(PageTable *t, uint64_t page, BsstSlot slot);
void page_load_begin(PageTable *t, uint64_t page);
void page_load_failed(PageTable *t, uint64_t page);
void page_install_begin(PageTable *t, uint64_t page);
/* The same with the content of @slot, of which @page owns a reference then. */
void page_install_bound(PageTable *t, uint64_t page, BsstSlot slot);
/* RESIDENT, but perhaps gone behind our back: find out. */
void page_refill_begin(PageTable *t, uint64_t page);
void page_install_done(PageTable *t, uint64_t page);
void page_bind(PageTable *t, uint64_t page, BsstSlot slot);
/* Returns the slot. */
BsstSlot page_unbind(PageTable *t, uint64_t page);
void page_discard(PageTable *t, uint64_t page);

#endif /* BSST_PAGE_STATE_H */
