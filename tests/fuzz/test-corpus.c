/*
 * Replay the corpus of the fuzz targets, and what is near it
 *
 * Each file of corpus/TARGET goes through the target as it is, with each byte
 * of its head changed, and cut short; in this way the targets run without
 * clang, too.  BSST_TEST_SEED=N repeats a run.
 * "test-corpus --write DIR" writes the examples of the format into a corpus.
 *
 * This work is licensed under the terms of the GNU GPL, version 2 or later.
 * See the COPYING file in the top-level directory.
 */

#include "qemu/osdep.h"
#include "examples.h"
#include "targets.h"

#define HEAD_BYTES      200
#define CHANGES         2000

typedef struct Target {
    const char *name;
    FuzzTarget *run;
} Target;

static const Target targets[] = {
    { "superblock", fuzz_superblock },
    { "image-entry", fuzz_image_entry },
    { "journal-block", fuzz_journal_block },
    { "checkpoint", fuzz_checkpoint },
};

static uint32_t seed;

static void replay(const Target *t, uint8_t *data, size_t size)
{
    GRand *rand = g_rand_new_with_seed(seed);
    unsigned i, k;

    t->run(data, size);
    for (i = 0; i < MIN(size, HEAD_BYTES); i++) {
        uint8_t byte = data[i];

        t->run(data, i);
        for (k = 0; k < 8; k++) {
            data[i] = byte ^ 1 << k;
            t->run(data, size);
        }
        data[i] = byte;
    }
    for (i = 0; i < CHANGES && size; i++) {
        data[g_rand_int(rand) % MIN(size, HEAD_BYTES)] = g_rand_int(rand);
        t->run(data, size);
    }
    g_rand_free(rand);
}

static void test_target(gconstpointer opaque)
{
    const Target *t = opaque;
    g_autofree char *dir = g_build_filename(CORPUS_DIR, t->name, NULL);
    g_autoptr(GError) err = NULL;
    const char *name;
    unsigned n = 0;
    GDir *d = g_dir_open(dir, 0, &err);

    g_assert_no_error(err);
    while ((name = g_dir_read_name(d))) {
        g_autofree char *path = g_build_filename(dir, name, NULL);
        g_autofree char *data = NULL;
        gsize size;

        g_file_get_contents(path, &data, &size, &err);
        g_assert_no_error(err);
        replay(t, (uint8_t *)data, size);
        n++;
    }
    g_dir_close(d);
    g_test_message("%u files", n);
    g_assert_cmpuint(n, >, 0);
}

/* The bytes that docs/interop/bsst.rst shows are those of today's code. */
static void test_examples(void)
{
    for (const Example *e = examples; e->path; e++) {
        g_autofree char *path = g_build_filename(CORPUS_DIR, e->path, NULL);
        g_autofree uint8_t *buf = g_malloc(e->bytes);
        g_autofree char *data = NULL;
        g_autoptr(GError) err = NULL;
        gsize size;

        g_file_get_contents(path, &data, &size, &err);
        g_assert_no_error(err);
        e->make(buf);
        g_assert_cmpmem(data, size, buf, e->bytes);
    }
}

static int write_examples(const char *dir)
{
    for (const Example *e = examples; e->path; e++) {
        g_autofree char *path = g_build_filename(dir, e->path, NULL);
        g_autofree uint8_t *buf = g_malloc(e->bytes);
        g_autofree char *parent = g_path_get_dirname(path);
        g_autoptr(GError) err = NULL;

        e->make(buf);
        if (g_mkdir_with_parents(parent, 0777) < 0 ||
            !g_file_set_contents(path, (char *)buf, e->bytes, &err)) {
            fprintf(stderr, "cannot write %s\n", path);
            return 1;
        }
    }
    return 0;
}

int main(int argc, char **argv)
{
    const char *env = g_getenv("BSST_TEST_SEED");

    if (argc == 3 && !strcmp(argv[1], "--write")) {
        return write_examples(argv[2]);
    }
    g_test_init(&argc, &argv, NULL);
    seed = env ? g_ascii_strtoull(env, NULL, 0) : g_random_int();
    g_test_message("BSST_TEST_SEED=%u", seed);

    g_test_add_func("/corpus/examples", test_examples);
    for (unsigned i = 0; i < ARRAY_SIZE(targets); i++) {
        g_autofree char *path = g_strconcat("/corpus/", targets[i].name, NULL);

        g_test_add_data_func(path, &targets[i], test_target);
    }
    return g_test_run();
}
