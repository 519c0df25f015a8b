/*
 * A disk with a store and a pager that is made up, for tests of the driver
 *
 * Every page of a buffer is present, in a slot, in the swapper's buffer, or
 * zero; the memory of absent pages holds garbage that must not be seen
 * anywhere.  A shadow knows what the disk holds.
 *
 * This work is licensed under the terms of the GNU GPL, version 2 or later.
 * See the COPYING file in the top-level directory.
 */

#ifndef BSST_DRIVER_FIXTURE_H
#define BSST_DRIVER_FIXTURE_H

#include "bsst/bsst-store.h"
#include "system/block-backend.h"

#define PAGES       256
#define DISK_BLOCKS 1024

typedef struct FakePager {
    BsstPager pager;
    BsstStore *store;
    uint8_t *mem;                   /* what the guest's RAM holds */
    uint8_t *content;               /* what the guest would see there */
    BsstPageKind kind[PAGES];
    BsstSlot slot[PAGES];           /* a reference if kind is SLOT */
    unsigned buffers;               /* claimed and not released */
    unsigned admitted;
    unsigned installed;
    unsigned written;
    bool freed;
} FakePager;

typedef struct Fixture {
    char *dir, *image, *store_path;
    BlockBackend *blk;
    BsstStore *store;
    FakePager *p;
    const char *aio;                /* of the store, or NULL */
    const char *defrag;             /* or NULL: off */
    uint8_t shadow[DISK_BLOCKS * BSST_PAGE_SIZE];
} Fixture;

void in_coroutine(void coroutine_fn (*fn)(void *opaque), void *opaque);

uint8_t *page_content(FakePager *p, unsigned i);
/* New content, and a new place for each page; @kind < 0: at random. */
void shuffle(FakePager *p, int kind);
void touch_all(FakePager *p);

/* Open disk and store, and hang the pager on the store. */
void open_disk(Fixture *f, const char *drain);
/* All pages are present.  The disk is all that uses slots then. */
void close_disk(Fixture *f);
void setup(Fixture *f);
void teardown(Fixture *f);

uint64_t slots_in_use(const Fixture *f);
void check_disk(Fixture *f);
/* Write pages [i, i + n) to disk, as a guest would do. */
void write_pages(Fixture *f, unsigned i, unsigned n, unsigned block);

#endif /* BSST_DRIVER_FIXTURE_H */
