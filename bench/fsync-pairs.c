/*
 * fsync-pairs: what a write with an fsync takes on two disks, in turns
 *
 * SPDX-License-Identifier: GPL-2.0-or-later
 *
 * Usage: fsync-pairs A B MIB CHUNKS REQUESTS
 *
 * One request, as fio makes it with rw=randwrite, bs=4k, direct=1 and fsync=1,
 * to disk A, one to B, one to B, one to A, and so on, at random places of the
 * first MIB MiB: whatever else slows the disks down is the same for both.
 * After every REQUESTS of each it prints a line: the median of A's in
 * nanoseconds and that of B's.  CHUNKS lines, after one that does not count.
 */
#define _GNU_SOURCE
#include <fcntl.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <time.h>
#include <unistd.h>

#define BYTES   4096u

static uint64_t now_ns(void)
{
    struct timespec t;

    clock_gettime(CLOCK_MONOTONIC, &t);
    return t.tv_sec * 1000000000ull + t.tv_nsec;
}

static void fail(const char *what)
{
    perror(what);
    exit(1);
}

static uint64_t request_ns(int fd, const void *buf, uint64_t blocks)
{
    off_t offset = random() % blocks * BYTES;
    uint64_t start = now_ns();

    if (pwrite(fd, buf, BYTES, offset) != BYTES || fsync(fd)) {
        fail("write");
    }
    return now_ns() - start;
}

static int compare(const void *a, const void *b)
{
    uint64_t x = *(const uint64_t *)a, y = *(const uint64_t *)b;

    return (x > y) - (x < y);
}

static uint64_t median(uint64_t *value, unsigned n)
{
    qsort(value, n, sizeof(*value), compare);
    return (value[(n - 1) / 2] + value[n / 2]) / 2;
}

int main(int argc, char **argv)
{
    uint64_t blocks, *ns[2];
    unsigned chunks, n;
    int fd[2];
    void *buf;

    if (argc != 6) {
        fprintf(stderr, "usage: fsync-pairs A B MIB CHUNKS REQUESTS\n");
        return 1;
    }
    blocks = strtoull(argv[3], NULL, 10) * 1048576 / BYTES;
    chunks = atoi(argv[4]);
    n = atoi(argv[5]);
    if (!blocks || !n || posix_memalign(&buf, BYTES, BYTES)) {
        fail("arguments");
    }
    memset(buf, 0x55, BYTES);
    for (int way = 0; way < 2; way++) {
        fd[way] = open(argv[1 + way], O_RDWR | O_DIRECT);
        ns[way] = calloc(n, sizeof(*ns[way]));
        if (fd[way] < 0 || !ns[way]) {
            fail(argv[1 + way]);
        }
    }
    for (unsigned chunk = 0; chunk <= chunks; chunk++) {
        for (unsigned i = 0; i < 2 * n; i++) {
            int way = (i + 1) / 2 % 2;          /* A B B A */

            ns[way][i / 2] = request_ns(fd[way], buf, blocks);
        }
        if (chunk) {
            printf("pair %llu %llu\n",
                   (unsigned long long)median(ns[0], n),
                   (unsigned long long)median(ns[1], n));
        }
    }
    return 0;
}
