/*
 * Policy: which pages leave next
 *
 * CORE: no I/O, no locks, no threads.  The caller holds the page lock around
 * every call.
 *
 * Random choice with second chances: a page that was wanted lately has credit,
 * which it loses bit by bit when the choice falls on it.  Wanted are pages
 * that somebody waited for, and pages that the guest has just read from or
 * written to a disk: those it is about to use or to use again.
 *
 * This work is licensed under the terms of the GNU GPL, version 2 or later.
 * See the COPYING file in the top-level directory.
 */

#ifndef BSST_POLICY_H
#define BSST_POLICY_H

#include "bsst/page-state.h"

/* Pages that are chosen together: aligned, so that they come back together. */
#define POLICY_GROUP    8

typedef enum PolicyEvent {
    POLICY_FAULT,       /* somebody waited for the page */
    POLICY_DISK,        /* the page is the memory of a disk request */
} PolicyEvent;

typedef struct Policy {
    uint32_t rng;       /* not 0 */
} Policy;

/* @seed makes the choice repeatable. */
void policy_init(Policy *policy, uint32_t seed);

/* Something happened to @page, which is or is about to be RESIDENT. */
void policy_event(Policy *policy, PageTable *t, uint64_t page,
                  PolicyEvent event);

/* The first page of the group to look at next.  @t has at least one group. */
uint64_t policy_next_group(Policy *policy, const PageTable *t);

/* May @page, which is RESIDENT, leave?  Costs it credit if not. */
bool policy_may_leave(Policy *policy, PageTable *t, uint64_t page);

#endif /* BSST_POLICY_H */
