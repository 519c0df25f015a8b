/*
 * The seed of a test's random choices
 *
 * This work is licensed under the terms of the GNU GPL, version 2 or later.
 * See the COPYING file in the top-level directory.
 */

#ifndef BSST_SEED_H
#define BSST_SEED_H

/*
 * BSST_TEST_SEED of the environment, else a random one; the log tells it.
 * After g_test_init().
 */
static inline uint32_t bsst_test_seed(void)
{
    const char *env = g_getenv("BSST_TEST_SEED");
    uint32_t seed = env ? g_ascii_strtoull(env, NULL, 0) : g_random_int();

    g_test_message("BSST_TEST_SEED=%u", seed);
    return seed;
}

#endif /* BSST_SEED_H */
