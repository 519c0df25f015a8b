/*
 * Policy: which pages leave next
 *
 * The credit of a page stands in bits 8 and 9 of its word.  Choosing is
 * memoryless but for that: a page without credit leaves when the choice falls
 * on it, one with credit only after that many choices.
 *
 * This work is licensed under the terms of the GNU GPL, version 2 or later.
 * See the COPYING file in the top-level directory.
 */

#include "qemu/osdep.h"
#include "bsst/policy.h"

#define CREDIT_SHIFT    8
#define CREDIT_MASK     (3ull << CREDIT_SHIFT)

#define CREDIT_FAULT    2
#define CREDIT_DISK     1

static unsigned get_credit(const PageTable *t, uint64_t page)
{
    return (t->word[page] & CREDIT_MASK) >> CREDIT_SHIFT;
}

static void set_credit(PageTable *t, uint64_t page, unsigned credit)
{
    t->word[page] = (t->word[page] & ~CREDIT_MASK) |
                    (uint64_t)credit << CREDIT_SHIFT;
}

void policy_init(Policy *policy, uint32_t seed)
{
    policy->rng = seed ?: 1;
}

void policy_event(Policy *policy, PageTable *t, uint64_t page,
                  PolicyEvent event)
{
    unsigned credit = event == POLICY_FAULT ? CREDIT_FAULT : CREDIT_DISK;

    if (get_credit(t, page) < credit) {
        set_credit(t, page, credit);
    }
}

uint64_t policy_next_group(Policy *policy, const PageTable *t)
{
    uint64_t groups = t->npages / POLICY_GROUP;

    /* xorshift32: Marsaglia, "Xorshift RNGs", 2003 */
    policy->rng ^= policy->rng << 13;
    policy->rng ^= policy->rng >> 17;
    policy->rng ^= policy->rng << 5;
    return ((uint64_t)policy->rng * groups >> 32) * POLICY_GROUP;
}

bool policy_may_leave(Policy *policy, PageTable *t, uint64_t page)
{
    unsigned credit = get_credit(t, page);

    if (credit) {
        set_credit(t, page, credit - 1);
    }
    return !credit;
}
