/*
 * fault-touch: how long a guest waits for memory that its host has taken
 *
 * SPDX-License-Identifier: GPL-2.0-or-later
 *
 * Usage: fault-touch MIB THREADS ROUNDS
 *
 * An area of MIB MiB is filled.  For each round it is read from begin to end,
 * so that all of it is there; then "FAULT ready" is printed and a line awaited,
 * while the host takes the area away.  One page of each window of 32 is touched
 * then, in random order: what comes along with a page is never touched, so each
 * touch is a fault.  THREADS share the windows.  A line tells of each round:
 *
 *   FAULT round=N touches=N wall_ns=N errors=N p50_ns=N p99_ns=N ...
 *
 * Exit status: 0, 1 if a page did not have what was written, 2 when it cannot
 * run.
 */
#include <inttypes.h>
#include <pthread.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "load.h"

#define PAGE_WORDS (4096 / sizeof(uint64_t))
#define MIB_PAGES 256
#define WINDOW_PAGES 32

typedef struct Toucher {
    pthread_t thread;
    uint64_t first, step;       /* of the order */
    uint64_t errors;
    Latencies latencies;
} Toucher;

/* Set once */
static uint64_t *area;
static uint64_t nr_pages, nr_windows, nr_threads;

/* Set before each round */
static uint64_t *order;         /* page of each window */

static uint64_t word_of(uint64_t page)
{
    return mix64(page + 1);
}

static void fill(void)
{
    for (uint64_t page = 0; page < nr_pages; page++) {
        for (unsigned i = 0; i < PAGE_WORDS; i++) {
            area[page * PAGE_WORDS + i] = word_of(page) + i;
        }
    }
}

static uint64_t read_page(uint64_t page)
{
    return ((volatile uint64_t *)area)[page * PAGE_WORDS] != word_of(page);
}

static void shuffle(uint64_t *rng)
{
    for (uint64_t i = 0; i < nr_windows; i++) {
        order[i] = i * WINDOW_PAGES + random_below(rng, WINDOW_PAGES);
    }
    for (uint64_t n = nr_windows; n > 1; n--) {
        uint64_t i = random_below(rng, n), page = order[i];

        order[i] = order[n - 1];
        order[n - 1] = page;
    }
}

static void *touch(void *opaque)
{
    Toucher *t = opaque;

    memset(&t->latencies, 0, sizeof(t->latencies));
    for (uint64_t i = t->first; i < nr_windows; i += t->step) {
        uint64_t begin_ns = now_ns();

        t->errors += read_page(order[i]);
        latencies_add(&t->latencies, now_ns() - begin_ns);
    }
    return NULL;
}

static uint64_t run_round(Toucher *toucher, uint64_t round)
{
    static Latencies all;
    uint64_t errors = 0, begin_ns = now_ns();

    for (uint64_t i = 0; i < nr_threads; i++) {
        if (pthread_create(&toucher[i].thread, NULL, touch, &toucher[i])) {
            fprintf(stderr, "fault-touch: cannot create a thread\n");
            exit(2);
        }
    }
    memset(&all, 0, sizeof(all));
    for (uint64_t i = 0; i < nr_threads; i++) {
        pthread_join(toucher[i].thread, NULL);
        latencies_merge(&all, &toucher[i].latencies);
        errors += toucher[i].errors;
    }
    printf("FAULT round=%" PRIu64 " touches=%" PRIu64 " wall_ns=%" PRIu64
           " errors=%" PRIu64 " ", round, all.count, now_ns() - begin_ns,
           errors);
    latencies_print(&all);
    return errors;
}

int main(int argc, char **argv)
{
    uint64_t rounds, rng = 1, errors = 0;
    Toucher *toucher;
    char line[16];

    if (argc != 4) {
        fprintf(stderr, "usage: fault-touch MIB THREADS ROUNDS\n");
        return 2;
    }
    nr_pages = strtoull(argv[1], NULL, 10) * MIB_PAGES;
    nr_threads = strtoull(argv[2], NULL, 10);
    rounds = strtoull(argv[3], NULL, 10);
    nr_windows = nr_pages / WINDOW_PAGES;
    if (!nr_windows || !nr_threads) {
        fprintf(stderr, "fault-touch: nothing to do\n");
        return 2;
    }
    area = map_or_die(nr_pages * PAGE_WORDS * sizeof(*area));
    order = map_locked_or_die(nr_windows * sizeof(*order));
    toucher = map_locked_or_die(nr_threads * sizeof(*toucher));
    for (uint64_t i = 0; i < nr_threads; i++) {
        toucher[i].first = i;
        toucher[i].step = nr_threads;
    }
    setvbuf(stdout, NULL, _IOLBF, 0);
    fill();
    for (uint64_t round = 1; round <= rounds; round++) {
        for (uint64_t page = 0; page < nr_pages; page++) {
            errors += read_page(page);
        }
        shuffle(&rng);
        printf("FAULT ready\n");
        if (!fgets(line, sizeof(line), stdin)) {
            return 2;
        }
        errors += run_round(toucher, round);
    }
    return errors ? 1 : 0;
}
