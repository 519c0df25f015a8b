/*
 * Policy: which pages leave next
 *
 * What the policy knows of a page stands in its word:
 *   bits 8-9    credit
 *   bits 10-11  of its group, in the word of the group's first page: how often
 *               the hand is to pass it over
 *
 * This work is licensed under the terms of the GNU GPL, version 2 or later.
 * See the COPYING file in the top-level directory.
 */

#include "qemu/osdep.h"
#include "bsst/policy.h"

#define CREDIT_SHIFT    8
#define YOUNG_SHIFT     10

#define CREDIT_WAITED   2
#define YOUNG_COME      1
/* It should not have been a victim. */
#define YOUNG_HIT       3

/* Groups that the hand passes over at a time, at most. */
#define VISITS          1024

static unsigned get_bits(const PageTable *t, uint64_t page, unsigned shift)
{
    return t->word[page] >> shift & 3;
}

static void set_bits(PageTable *t, uint64_t page, unsigned shift,
                     unsigned value)
{
    t->word[page] = (t->word[page] & ~(3ull << shift)) |
                    (uint64_t)value << shift;
}

static void raise_bits(PageTable *t, uint64_t page, unsigned shift,
                       unsigned value)
{
    set_bits(t, page, shift, MAX(value, get_bits(t, page, shift)));
}

/* Returns true if there was something to take. */
static bool lower_bits(PageTable *t, uint64_t page, unsigned shift)
{
    unsigned value = get_bits(t, page, shift);

    if (value) {
        set_bits(t, page, shift, value - 1);
    }
    return value;
}

void policy_init(Policy *policy)
{
    *policy = (Policy) { };
}

void policy_event(Policy *policy, PageTable *t, uint64_t page,
                  PolicyEvent event)
{
    raise_bits(t, page - page % POLICY_GROUP, YOUNG_SHIFT,
               event == POLICY_HIT ? YOUNG_HIT : YOUNG_COME);
    if (event != POLICY_COME) {
        raise_bits(t, page, CREDIT_SHIFT, CREDIT_WAITED);
    }
}

static bool has_resident(const PageTable *t, uint64_t first)
{
    for (unsigned i = 0; i < POLICY_GROUP; i++) {
        if (page_state(t, first + i) == PAGE_RESIDENT) {
            return true;
        }
    }
    return false;
}

uint64_t policy_next_group(Policy *policy, PageTable *t)
{
    uint64_t ngroups = t->npages / POLICY_GROUP, first = 0;

    for (unsigned i = 0; i < VISITS; i++) {
        if (policy->hand >= ngroups) {
            policy->hand = 0;
        }
        first = policy->hand++ * POLICY_GROUP;
        if (!lower_bits(t, first, YOUNG_SHIFT) && has_resident(t, first)) {
            break;
        }
    }
    return first;
}

bool policy_may_leave(Policy *policy, PageTable *t, uint64_t page)
{
    return !lower_bits(t, page, CREDIT_SHIFT);
}
