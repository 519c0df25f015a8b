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
    policy_init(policy, 1);
    page_table_init(t, PAGES);
    for (uint64_t i = 0; i < PAGES; i++) {
        page_control(t, i, true);
    }
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

/* Groups are aligned, within the table, and chosen about equally often. */
static void test_groups(void)
{
    unsigned seen[GROUPS] = { 0 };
    const unsigned rounds = 1000;
    PageTable t;
    Policy policy;

    setup(&policy, &t);
    for (unsigned i = 0; i < GROUPS * rounds; i++) {
        uint64_t page = policy_next_group(&policy, &t);

        g_assert_cmpuint(page % POLICY_GROUP, ==, 0);
        g_assert_cmpuint(page, <, PAGES);
        seen[page / POLICY_GROUP]++;
    }
    for (unsigned i = 0; i < GROUPS; i++) {
        g_assert_cmpuint(seen[i], >, rounds * 8 / 10);
        g_assert_cmpuint(seen[i], <, rounds * 12 / 10);
    }
    page_table_destroy(&t);
}

/* The same seed chooses the same; a seed of 0 is as good as any. */
static void test_seed(void)
{
    Policy a, b, zero;
    PageTable t;
    uint64_t first;
    bool moved = false;

    setup(&a, &t);
    policy_init(&a, 42);
    policy_init(&b, 42);
    policy_init(&zero, 0);
    first = policy_next_group(&zero, &t);
    for (unsigned i = 0; i < 1000; i++) {
        g_assert_cmpuint(policy_next_group(&a, &t), ==,
                         policy_next_group(&b, &t));
        moved |= policy_next_group(&zero, &t) != first;
    }
    g_assert_true(moved);
    page_table_destroy(&t);
}

/* Who was wanted leaves later, most so who was waited for. */
static void test_credit(void)
{
    Policy policy;
    PageTable t;
    unsigned disk, fault;

    setup(&policy, &t);
    g_assert_cmpuint(chances(&policy, &t, 0), ==, 1);

    policy_event(&policy, &t, 1, POLICY_DISK);
    disk = chances(&policy, &t, 1);
    policy_event(&policy, &t, 2, POLICY_FAULT);
    fault = chances(&policy, &t, 2);
    g_assert_cmpuint(disk, >, 1);
    g_assert_cmpuint(fault, >, disk);

    /* Credit is spent then, does not add up, and is nobody else's. */
    g_assert_cmpuint(chances(&policy, &t, 2), ==, 1);
    for (unsigned i = 0; i < 10; i++) {
        policy_event(&policy, &t, 3, POLICY_FAULT);
        policy_event(&policy, &t, 3, POLICY_DISK);
    }
    g_assert_cmpuint(chances(&policy, &t, 3), ==, fault);
    g_assert_cmpuint(chances(&policy, &t, 4), ==, 1);
    page_table_destroy(&t);
}

/* Credit leaves state, flags and slot alone, and survives coming back. */
static void test_word(void)
{
    Policy policy;
    PageTable t;

    setup(&policy, &t);
    page_evict_begin(&t, 5, 123);
    page_evict_done(&t, 5);
    page_write_begin(&t, 5);
    page_write_done(&t, 5, UINT32_MAX - 1);
    page_set_flag(&t, 5, PAGE_FLAG_INTERCEPTED);
    policy_event(&policy, &t, 5, POLICY_FAULT);
    g_assert_cmpuint(page_state(&t, 5), ==, PAGE_SWAPPED);
    g_assert_cmpuint(page_ref(&t, 5), ==, UINT32_MAX - 1);
    g_assert_true(page_flag(&t, 5, PAGE_FLAG_INTERCEPTED));

    page_install_begin(&t, 5);
    page_install_done(&t, 5);
    g_assert_cmpuint(chances(&policy, &t, 5), >, 1);
    g_assert_cmpuint(page_state(&t, 5), ==, PAGE_RESIDENT);
    page_table_destroy(&t);
}

int main(int argc, char **argv)
{
    g_test_init(&argc, &argv, NULL);
    g_test_add_func("/policy/groups", test_groups);
    g_test_add_func("/policy/seed", test_seed);
    g_test_add_func("/policy/credit", test_credit);
    g_test_add_func("/policy/word", test_word);
    return g_test_run();
}
