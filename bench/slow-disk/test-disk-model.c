/*
 * The model of the slow disk: its formula, request by request, and the figures
 * that its profile promises
 *
 * SPDX-License-Identifier: GPL-2.0-or-later
 */
#include <glib.h>
#include <math.h>
#include "disk-model.h"

#define MS      1000000LL
#define SEC     (1000 * MS)
#define MB      1000000LL

/* 1 GB; seeks of 1 to 11 ms; a turn in 10 ms; 100 MB/s, 1 MB a track */
static DiskModel disk_new(bool mean_rotation)
{
    return (DiskModel) {
        .p = {
            .size = 1000 * MB,
            .seek_min_ns = 1 * MS,
            .seek_max_ns = 11 * MS,
            .rpm = 6000,
            .rate = 100 * MB,
            .ahead = 4 * MB,
            .mean_rotation = mean_rotation,
        },
    };
}

static void test_seek(void)
{
    DiskModel d = disk_new(true);

    g_assert_cmpint(disk_turn_ns(&d.p), ==, 10 * MS);
    g_assert_cmpint(disk_seek_ns(&d.p, 0), ==, 0);
    g_assert_cmpint(disk_seek_ns(&d.p, 1000 * MB), ==, 11 * MS);
    g_assert_cmpint(disk_seek_ns(&d.p, 250 * MB), ==, 6 * MS);
    g_assert_cmpint(disk_seek_ns(&d.p, 10 * MB), ==, 2 * MS);
}

/* Seek, half a turn, transfer; requests wait for each other. */
static void test_serve(void)
{
    DiskModel d = disk_new(true);

    g_assert_cmpint(disk_serve(&d, 250 * MB, MB, false, 0), ==,
                    (6 + 5 + 10) * MS);
    /* It came while the other was served; 1 MB behind it is 240 MB back */
    g_assert_cmpint(disk_serve(&d, 11 * MB, MB, true, 5 * MS), >,
                    (21 + 1 + 5 + 10) * MS);
    g_assert_cmpuint(d.head, ==, 12 * MB);
    /* The disk has been idle */
    g_assert_cmpint(disk_serve(&d, 2 * MB, MB, true, SEC), ==,
                    SEC + (2 + 5 + 10) * MS);
}

/* Where the platter is decides how long the rotation takes. */
static void test_rotation(void)
{
    DiskModel d = disk_new(false);

    /* Byte 10.2 MB is 0.2 of a turn on; the seek ends at 2 + a bit ms */
    int64_t seek_ns = disk_seek_ns(&d.p, 10200000);

    g_assert_cmpint(seek_ns, >, 2 * MS);
    g_assert_cmpint(disk_serve(&d, 10200000, 1000, false, 0), ==,
                    12 * MS + 10000);
    /* The same 4 ms later: the place has just passed by */
    d = disk_new(false);
    g_assert_cmpint(disk_serve(&d, 10200000, 1000, false, 4 * MS), ==,
                    12 * MS + 10000);
    d = disk_new(false);
    g_assert_cmpint(disk_serve(&d, 10200000, 1000, false, 11 * MS), ==,
                    22 * MS + 10000);
    /* What is nearer than this is reached by reading over what is between */
    for (unsigned i = 0; i < 1000; i++) {
        int64_t now_ns = i * 777 * MS / 10, ns;
        uint64_t offset = g_random_int_range(2, 900) * MB;

        d = disk_new(false);
        ns = disk_serve(&d, offset, 0, false, now_ns) - now_ns;
        g_assert_cmpint(ns, >=, disk_seek_ns(&d.p, offset));
        g_assert_cmpint(ns, <, disk_seek_ns(&d.p, offset) + 10 * MS);
        /* When it is done the byte is under the head */
        g_assert_cmpint((now_ns + ns) % (10 * MS), ==, 0);
    }
}

/* A stream runs at full speed, whatever the host's pauses. */
static void test_stream(void)
{
    DiskModel d = disk_new(true);
    int64_t now_ns = 0;

    for (unsigned i = 0; i < 1000; i++) {
        int64_t done_ns = disk_serve(&d, i * 100000, 100000, i % 2, now_ns);

        g_assert_cmpint(done_ns - now_ns, <=, MS);
        now_ns = done_ns;
    }
    g_assert_cmpint(now_ns, ==, SEC);

    /* What was read ahead comes at once, but there is not more than 4 MB */
    d = disk_new(true);
    g_assert_cmpint(disk_serve(&d, 0, MB, false, 0), ==, 10 * MS);
    g_assert_cmpint(disk_serve(&d, MB, MB, false, 25 * MS), ==, 25 * MS);
    g_assert_cmpint(disk_serve(&d, 2 * MB, MB, false, 25 * MS), ==, 30 * MS);
    g_assert_cmpint(disk_serve(&d, 3 * MB, 10 * MB, false, SEC), ==,
                    SEC + (100 - 40) * MS);
    /* Not so for writes */
    g_assert_cmpint(disk_serve(&d, 13 * MB, MB, true, 2 * SEC), ==,
                    2 * SEC + 10 * MS);
}

/* A little further on: the head waits for it to come by. */
static void test_gap(void)
{
    DiskModel d = disk_new(true);

    g_assert_cmpint(disk_serve(&d, 200000, 100000, false, 0), ==, 3 * MS);
    /* Back is not so easy */
    g_assert_cmpint(disk_serve(&d, 200000, 100000, false, 3 * MS), >,
                    (3 + 1 + 5 + 1) * MS);
}

/* What disk-model.h says of its default profile */
static void test_profile(void)
{
    DiskModel d = { .p = DISK_MODEL_DEFAULT };
    GRand *rand = g_rand_new_with_seed(1);
    int64_t now_ns = 0, begin_ns;
    const unsigned n = 20000;
    double iops;

    d.p.size = 8LL << 30;
    for (unsigned i = 0; i < n; i++) {
        uint64_t block = g_rand_int_range(rand, 0, d.p.size >> 12);

        now_ns = disk_serve(&d, block << 12, 4096, i % 2, now_ns);
    }
    iops = n / (now_ns / 1e9);
    g_test_message("%.1f random requests a second", iops);
    g_assert_cmpfloat(fabs(iops - 100), <, 2);

    begin_ns = now_ns;
    for (unsigned i = 0; i < 1024; i++) {
        now_ns = disk_serve(&d, i << 20, 1 << 20, false, now_ns);
    }
    g_assert_cmpfloat(fabs((1 << 30) / ((now_ns - begin_ns) / 1e9) / 150e6 -
                           1), <, 0.005);
    g_rand_free(rand);
}

int main(int argc, char **argv)
{
    g_test_init(&argc, &argv, NULL);
    g_test_add_func("/disk-model/seek", test_seek);
    g_test_add_func("/disk-model/serve", test_serve);
    g_test_add_func("/disk-model/rotation", test_rotation);
    g_test_add_func("/disk-model/stream", test_stream);
    g_test_add_func("/disk-model/gap", test_gap);
    g_test_add_func("/disk-model/profile", test_profile);
    return g_test_run();
}
