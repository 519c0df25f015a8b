/*
 * Tests of the policy: which pages leave next
 *
 * This work is licensed under the terms of the GNU GPL, version 2 or later.
 * See the COPYING file in the top-level directory.
 */

#include "qemu/osdep.h"
#include "bsst/policy.h"

#define GROUPS  64
#define PAGES   (GROUPS * POLICY_GROUP)

static void setup(Policy *policy, PageTable *t)
{
    policy_init(policy);
    page_table_init(t, PAGES);
    for (uint64_t i = 0; i < PAGES; i++) {
        page_control(t, i, true);
    }
}

static void page_out(PageTable *t, uint64_t page)
{
    page_evict_begin(t, page, 0);
    page_evict_done(t, page);
}

static void page_in(Policy *policy, PageTable *t, uint64_t page,
                    PolicyEvent event)
{
    policy_event(policy, t, page, event);
    page_install_begin(t, page);
    page_install_done(t, page);
}

/* The hand takes all groups in turn, and begins anew. */
static void test_round(void)
{
    PageTable t;
    Policy policy;

    setup(&policy, &t);
    for (unsigned i = 0; i < 3 * GROUPS; i++) {
        g_assert_cmpuint(policy_next_group(&policy, &t), ==,
                         i % GROUPS * POLICY_GROUP);
    }
    page_table_destroy(&t);
}

/* Groups of which nothing is resident are passed over; one page is enough. */
static void test_empty(void)
{
    PageTable t;
    Policy policy;

    setup(&policy, &t);
    for (uint64_t i = 0; i < PAGES; i++) {
        if (i != 5 * POLICY_GROUP + 7 && i != 9 * POLICY_GROUP) {
            page_out(&t, i);
        }
    }
    for (unsigned i = 0; i < 3; i++) {
        g_assert_cmpuint(policy_next_group(&policy, &t), ==, 5 * POLICY_GROUP);
        g_assert_cmpuint(policy_next_group(&policy, &t), ==, 9 * POLICY_GROUP);
    }

    /* It ends although there is nothing to find. */
    page_out(&t, 5 * POLICY_GROUP + 7);
    page_out(&t, 9 * POLICY_GROUP);
    g_assert_cmpuint(policy_next_group(&policy, &t), <, PAGES);
    page_table_destroy(&t);
}

/* How many rounds the hand passes the group of @page over. */
static unsigned passed_over(Policy *policy, PageTable *t, uint64_t page)
{
    uint64_t group = page / POLICY_GROUP;
    unsigned n = 0;

    policy->hand = group;
    while (policy_next_group(policy, t) != group * POLICY_GROUP) {
        g_assert_cmpuint(++n, <, 100);
        policy->hand = group;
    }
    return n;
}

/* What came back stays for a round; what was wrongly chosen, for more. */
static void test_young(void)
{
    unsigned none, come, fault, hit;
    PageTable t;
    Policy policy;

    setup(&policy, &t);
    none = passed_over(&policy, &t, 3);
    g_assert_cmpuint(none, ==, 0);
    page_out(&t, 3);
    page_in(&policy, &t, 3, POLICY_COME);
    come = passed_over(&policy, &t, 3);
    page_out(&t, 3);
    page_in(&policy, &t, 3, POLICY_FAULT);
    fault = passed_over(&policy, &t, 3);
    page_out(&t, 3);
    page_in(&policy, &t, 3, POLICY_HIT);
    hit = passed_over(&policy, &t, 3);
    g_assert_cmpuint(come, >, none);
    g_assert_cmpuint(fault, ==, come);
    g_assert_cmpuint(hit, >, come);

    /* It does not add up, and what comes later does not make it less. */
    page_out(&t, 3);
    page_in(&policy, &t, 3, POLICY_HIT);
    page_out(&t, 4);
    page_in(&policy, &t, 4, POLICY_HIT);
    page_out(&t, 5);
    page_in(&policy, &t, 5, POLICY_COME);
    g_assert_cmpuint(passed_over(&policy, &t, 3), ==, hit);
    g_assert_cmpuint(passed_over(&policy, &t, 3), ==, 0);
    page_table_destroy(&t);
}

/* How often the choice falls on @page until it may leave. */
static unsigned chances(Policy *policy, PageTable *t, uint64_t page)
{
    unsigned n = 1;

    while (!policy_may_leave(policy, t, page)) {
        g_assert_cmpuint(++n, <, 100);
    }
    return n;
}

/* Who was waited for leaves later than its neighbours. */
static void test_credit(void)
{
    unsigned fault;
    Policy policy;
    PageTable t;

    setup(&policy, &t);
    policy_event(&policy, &t, 1, POLICY_FAULT);
    fault = chances(&policy, &t, 1);
    g_assert_cmpuint(fault, >, 1);
    g_assert_cmpuint(chances(&policy, &t, 0), ==, 1);
    g_assert_cmpuint(chances(&policy, &t, 2), ==, 1);

    /* Credit is spent then, and does not add up. */
    g_assert_cmpuint(chances(&policy, &t, 1), ==, 1);
    for (unsigned i = 0; i < 10; i++) {
        policy_event(&policy, &t, 1, POLICY_FAULT);
        policy_event(&policy, &t, 1, POLICY_HIT);
    }
    g_assert_cmpuint(chances(&policy, &t, 1), ==, fault);

    /* Nobody waited. */
    policy_event(&policy, &t, 1, POLICY_COME);
    g_assert_cmpuint(chances(&policy, &t, 1), ==, 1);
    page_table_destroy(&t);
}

/* What is noted leaves state, flags and slot alone, and survives coming back. */
static void test_word(void)
{
    unsigned hit;
    Policy policy;
    PageTable t;

    setup(&policy, &t);
    policy_event(&policy, &t, 17, POLICY_HIT);
    hit = passed_over(&policy, &t, 17);
    page_out(&t, 8);
    page_write_begin(&t, 8);
    page_write_done(&t, 8, UINT32_MAX - 1);
    page_set_flag(&t, 8, PAGE_FLAG_INTERCEPTED);
    policy_event(&policy, &t, 8, POLICY_HIT);
    g_assert_cmpuint(page_state(&t, 8), ==, PAGE_SWAPPED);
    g_assert_cmpuint(page_ref(&t, 8), ==, UINT32_MAX - 1);
    g_assert_true(page_flag(&t, 8, PAGE_FLAG_INTERCEPTED));

    page_install_begin(&t, 8);
    page_install_done(&t, 8);
    g_assert_cmpuint(page_state(&t, 8), ==, PAGE_RESIDENT);
    g_assert_cmpuint(chances(&policy, &t, 8), >, 1);
    g_assert_cmpuint(passed_over(&policy, &t, 8), ==, hit);
    page_table_destroy(&t);
}

int main(int argc, char **argv)
{
    g_test_init(&argc, &argv, NULL);
    g_test_add_func("/policy/round", test_round);
    g_test_add_func("/policy/empty", test_empty);
    g_test_add_func("/policy/young", test_young);
    g_test_add_func("/policy/credit", test_credit);
    g_test_add_func("/policy/word", test_word);
    return g_test_run();
}
