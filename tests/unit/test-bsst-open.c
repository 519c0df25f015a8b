/*
 * Open stores that somebody has made up
 *
 * What the corpus of the fuzz target "store" has (BSST_CORPUS=DIR), and what is
 * near it; and random stores.  BSST_TEST_SEED=N repeats a run, BSST_TEST_RUNS=N
 * makes so many random stores.
 *
 * This work is licensed under the terms of the GNU GPL, version 2 or later.
 * See the COPYING file in the top-level directory.
 */

#include "qemu/osdep.h"
#include "bsst-open-store.h"
#include "qapi/error.h"
#include "qemu/bswap.h"
#include "qemu/main-loop.h"
#include "bsst-seed.h"

#define RUNS        20000
#define CHANGES     200
#define MAX_BYTES   4096u

static uint32_t seed;
static unsigned fates[STORE_OPENED + 1];

static StoreFate try_store(const uint8_t *data, size_t size)
{
    /* A copy of exactly that size, so that ASan sees what is read behind it */
    g_autofree uint8_t *copy = g_memdup2(data, size);
    StoreFate fate = open_made_up_store(copy, size);

    fates[fate]++;
    return fate;
}

static void report(void)
{
    g_test_message("%u were opened, %u refused, %u had no superblock",
                   fates[STORE_OPENED], fates[STORE_REFUSED],
                   fates[STORE_NONE]);
    memset(fates, 0, sizeof(fates));
}

static void replay(GRand *rand, const char *name, uint8_t *data, size_t size)
{
    static const char *const word[] = { "no superblock", "refused", "opened" };
    unsigned i;

    g_test_message("%s: %s", name, word[try_store(data, size)]);
    for (i = 0; i < CHANGES && size; i++) {
        uint8_t *at = data + g_rand_int(rand) % size, byte = *at;

        *at = g_rand_int(rand);
        try_store(data, size);
        if (g_rand_boolean(rand)) {
            *at = byte;
        }
    }
}

static void test_corpus(void)
{
    const char *name, *dir = g_getenv("BSST_CORPUS");
    g_autoptr(GError) err = NULL;
    GRand *rand;
    GDir *d;

    if (!dir) {
        g_test_skip("no BSST_CORPUS");
        return;
    }
    d = g_dir_open(dir, 0, &err);
    g_assert_no_error(err);
    rand = g_rand_new_with_seed(seed);
    while ((name = g_dir_read_name(d))) {
        g_autofree char *path = g_build_filename(dir, name, NULL);
        g_autofree char *data = NULL;
        gsize size;

        g_file_get_contents(path, &data, &size, &err);
        g_assert_no_error(err);
        replay(rand, name, (uint8_t *)data, size);
    }
    g_dir_close(d);
    g_rand_free(rand);
    g_assert_cmpuint(fates[STORE_OPENED], >, 0);
    report();
}

/* Random stores: most pieces make sense */

static uint64_t some_number(GRand *rand)
{
    static const uint64_t number[] = {
        0, 1, 2, 3, 5, 255, 256, 65535, 1ULL << 47, (1ULL << 48) - 1,
        UINT32_MAX, UINT64_MAX - 1, UINT64_MAX,
    };
    int i = g_rand_int_range(rand, 0, 2 * ARRAY_SIZE(number));

    return i < ARRAY_SIZE(number) ? number[i] : g_rand_int(rand) % 64;
}

static void add_record(GRand *rand, GByteArray *a)
{
    uint8_t buf[12];

    stq_le_p(buf, some_number(rand));
    stw_le_p(buf + 6, g_rand_int_range(rand, 0, 8) ? g_rand_int(rand) % 16 + 1
                                                   : some_number(rand));
    stl_le_p(buf + 8, g_rand_int_range(rand, 0, 4)
                      ? g_rand_int(rand) % 250
                      : g_rand_int_range(rand, 0, 8) ? UINT32_MAX
                                                     : some_number(rand));
    g_byte_array_append(a, buf, sizeof(buf));
}

static void add_piece(GRand *rand, GByteArray *a)
{
    static const uint8_t whats[] = { 0, 1, 1, 1, 2, 3, 3, 3, 4, 4, 4, 4, 5 };
    uint8_t what = whats[g_rand_int(rand) % ARRAY_SIZE(whats)];
    uint8_t head[4] = { what, g_rand_int(rand) % 16 };
    unsigned start = a->len, n;

    if (what != 3 && what != 4 && g_rand_int_range(rand, 0, 6)) {
        head[0] = what = 1;
    }
    g_byte_array_append(a, head, sizeof(head));
    if (what == 3 || what == 4) {
        uint8_t flags = g_rand_int_range(rand, 0, 6) ? 0
                                                     : g_rand_int(rand) % 8;

        g_byte_array_append(a, &flags, 1);
        for (n = g_rand_int_range(rand, 1, 9); n; n--) {
            add_record(rand, a);
        }
    } else if (what != 1 || !g_rand_int_range(rand, 0, 20)) {
        uint8_t number[8];

        stq_le_p(number, some_number(rand));
        g_byte_array_append(a, number, g_rand_int_range(rand, 1, 9));
    }
    stw_le_p(a->data + start + 2, a->len - start - 4);
}

static void test_random(void)
{
    const char *runs = g_getenv("BSST_TEST_RUNS");
    uint64_t n = runs ? g_ascii_strtoull(runs, NULL, 0) : RUNS;
    GRand *rand = g_rand_new_with_seed(seed);

    for (uint64_t i = 0; i < n; i++) {
        GByteArray *a = g_byte_array_new();
        int pieces = g_rand_int_range(rand, 0, 12);

        while (pieces-- && a->len < MAX_BYTES) {
            add_piece(rand, a);
        }
        try_store(a->data, a->len);
        g_byte_array_unref(a);
    }
    g_rand_free(rand);
    g_assert_cmpuint(fates[STORE_OPENED], >, 0);
    g_assert_cmpuint(fates[STORE_REFUSED], >, 0);
    report();
}

/* A store with one image, and a journal of records of @n blocks */
static GByteArray *long_records(unsigned n, unsigned count, uint64_t step,
                                uint64_t keep)
{
    static const uint8_t entry[4] = { 1 };
    uint8_t head[5] = { 4 }, record[12];
    GByteArray *a = g_byte_array_new();

    g_byte_array_append(a, entry, sizeof(entry));
    stw_le_p(head + 2, 1 + 2 * count * sizeof(record));
    g_byte_array_append(a, head, sizeof(head));
    for (unsigned i = 0; i < 2 * count; i++) {
        bool removal = i >= count;

        stq_le_p(record, i % count * step);
        stw_le_p(record + 6, n);
        stl_le_p(record + 8, removal && i % count >= keep ? UINT32_MAX : 0);
        g_byte_array_append(a, record, sizeof(record));
    }
    return a;
}

/*
 * What has far more indirections than slots on the way is refused, whatever it
 * has in the end; records that replace one another are not counted.
 */
static void test_bound(void)
{
    GByteArray *a = long_records(200, 100, 0, 100);

    g_assert_cmpint(try_store(a->data, a->len), ==, STORE_OPENED);
    g_byte_array_unref(a);
    a = long_records(200, 4, 100000, 1);
    g_assert_cmpint(try_store(a->data, a->len), ==, STORE_OPENED);
    g_byte_array_unref(a);
    a = long_records(200, 100, 100000, 1);
    g_assert_cmpint(try_store(a->data, a->len), ==, STORE_REFUSED);
    g_byte_array_unref(a);
    report();
}

int main(int argc, char **argv)
{
    qemu_init_main_loop(&error_abort);
    g_test_init(&argc, &argv, NULL);
    seed = bsst_test_seed();
    g_test_add_func("/bsst-open/corpus", test_corpus);
    g_test_add_func("/bsst-open/bound", test_bound);
    g_test_add_func("/bsst-open/random", test_random);
    return g_test_run();
}
