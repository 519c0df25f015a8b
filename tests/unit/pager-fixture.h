/*
 * What the tests of the pager share: memory of our own, a store, patterns
 *
 * Every page carries its number and a generation in every word, so that a
 * page that is lost, stale, torn or somebody else's is told from a good one.
 *
 * A test that hangs is ended, and named, by a watchdog.
 * BSST_TEST_SEED=N repeats the random choices, BSST_TEST_SECONDS=N makes the
 * tests under load longer, BSST_TEST_SLOWER=N allows N times the time.
 *
 * This work is licensed under the terms of the GNU GPL, version 2 or later.
 * See the COPYING file in the top-level directory.
 */

#ifndef PAGER_FIXTURE_H
#define PAGER_FIXTURE_H

#include "hw/swapper/pager.h"

#define PAGES(bytes)    ((bytes) >> BSST_PAGE_BITS)
#define WORDS           (BSST_PAGE_SIZE / sizeof(uint64_t))

extern uint32_t seed;
extern unsigned load_seconds;
extern unsigned slower;

typedef struct Fixture {
    char *dir;
    char *path;
    BlockDriverState *bs;
    BsstStore *store;
    Pager *p;
    uint8_t *mem;
    uint64_t npages;
    uint64_t *gen;          /* of each page's content; 0: zeroes */
    bool expect_errors;     /* of the store */
} Fixture;

typedef struct Setup {
    uint64_t ram_bytes;
    uint64_t store_bytes;
    const char *aio;        /* NULL: threads */
    unsigned shards;        /* 0: 2 */
    unsigned cluster;       /* 0: 8 */
} Setup;

typedef struct Case {
    const char *name;
    void (*run)(Fixture *f);
    Setup setup;
} Case;

/* Run the @n cases; where the kernel lacks something, skip them. */
int pager_test_main(int argc, char **argv, const Case *test_case, size_t n);

void run_main_loop(unsigned ms);
/* Slots that are being punched are neither free nor in use: wait for them. */
void check_slots(const Fixture *f, uint64_t expected);
void bring_all_back(Fixture *f);

/* Patterns */

uint64_t *page_at(const Fixture *f, uint64_t page);
uint64_t word(uint64_t page, uint64_t gen, unsigned i);
void fill(uint64_t *buf, uint64_t page, uint64_t gen);
void check(const uint64_t *buf, uint64_t page, uint64_t gen);
void put(Fixture *f, uint64_t page, uint64_t gen);
void put_all(Fixture *f, uint64_t gen);
void check_all(const Fixture *f);

/* Pages */

bool present(const Fixture *f, uint64_t page);
uint64_t present_pages(const void *mem, uint64_t npages);
uint64_t count(Fixture *f, PageState state);
PageState state_of(Fixture *f, uint64_t page);
PagerCounters counters(Fixture *f);
void evict(Fixture *f, uint64_t page, uint64_t n, bool to_store);
/* As a device or the balloon does it */
void discard(Fixture *f, uint64_t page, uint64_t n);

#endif /* PAGER_FIXTURE_H */
