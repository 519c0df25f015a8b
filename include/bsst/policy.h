/*
 * Policy: which pages leave next
 *
 * CORE: no I/O, no locks, no threads.  The caller holds the page lock around
 * every call.
 *
 * A clock: a hand goes round all memory in the order of addresses, a group of
 * pages at a time, and lets go what it meets.  A group that something came
 * back to is young, and is passed over once, so that memory leaves between
 * one and two rounds after it came, in about the order in which it came.  A
 * page that somebody waited for has credit, and stays in its group's place
 * until that is spent.
 *
 * What a processor does with resident memory is not seen, so it does not
 * count.  Disk requests are seen, and do not count either: a guest kernel
 * that is short of memory goes through all of it in a loop, and what it read
 * from a disk last is what it will need last.  tests/policy-sim shows how
 * this compares.
 *
 * This work is licensed under the terms of the GNU GPL, version 2 or later.
 * See the COPYING file in the top-level directory.
 */

#ifndef BSST_POLICY_H
#define BSST_POLICY_H

#include "bsst/page-state.h"

/* Pages that are chosen together: aligned, so that they come back together. */
#define POLICY_GROUP    8

/* A page that was out is about to be RESIDENT: */
typedef enum PolicyEvent {
    POLICY_FAULT,       /* somebody waited for it, and for the store */
    POLICY_HIT,         /* somebody waited for it: it was a victim */
    POLICY_COME,        /* for another reason */
} PolicyEvent;

typedef struct Policy {
    uint64_t hand;      /* group that is looked at next */
} Policy;

void policy_init(Policy *policy);

/* @page comes back. */
void policy_event(Policy *policy, PageTable *t, uint64_t page,
                  PolicyEvent event);

/*
 * The first page of the group that should leave next.  Takes a bounded time;
 * @t has at least one group.
 */
uint64_t policy_next_group(Policy *policy, PageTable *t);

/* May @page, which is RESIDENT, leave?  Costs it credit if not. */
bool policy_may_leave(Policy *policy, PageTable *t, uint64_t page);

#endif /* BSST_POLICY_H */
