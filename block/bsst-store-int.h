/*
 * The block-swap store: what its files share
 *
 *   bsst-store.c        the open stores: who finds, holds and releases them
 *   bsst-store-open.c   what file can be a store, and where it lies; a new one
 *   bsst-store-start.c  superblock, recovery and clean end
 *   bsst-store-io.c     private I/O: slots with checksums, metadata, flush
 *   bsst-store-slots.c  allocation, references, space of free slots
 *   bsst-store-query.c  statistics
 *
 * This work is licensed under the terms of the GNU GPL, version 2 or later.
 * See the COPYING file in the top-level directory.
 */

#ifndef BSST_STORE_INT_H
#define BSST_STORE_INT_H

#include "bsst/bsst-format.h"
#include "bsst/bsst-journal.h"
#include "bsst/bsst-store.h"
#include "bsst/slot-table.h"
#include "qemu/lockable.h"
#include "qemu/queue.h"
#include "qemu/stats64.h"
#include "qemu/timer.h"
#include "system/block-backend.h"

/*
 * [first, first + n), in pages of the virtual disk, lies at host_offset of the
 * protocol file.
 */
typedef struct StoreExtent {
    uint64_t first;
    uint64_t n;
    uint64_t host_offset;
} StoreExtent;

struct BsstStore {
    /* Set once */
    char *node_name;
    char *filename;
    BlockBackend *blk;
    QemuUUID uuid;
    BlockdevAioOptions aio;
    int fd;
    dev_t dev;
    ino_t ino;
    bool direct;                        /* fd is past the page cache */
    bool read_only;
    GArray *extents;                    /* of StoreExtent, by first */
    uint64_t slots_page;                /* where in the virtual disk they are */
    QEMUTimer *punch_timer;
    BsstSuperblock sb;
    BsstJournalIO journal_io;
    BsstJournal *journal;

    /* Under the BQL */
    unsigned refcnt;
    QLIST_ENTRY(BsstStore) next;

    /* Main thread */
    bool punching;
    uint64_t writes_at_punch;           /* @writes when the timer last fired */

    /* Under @lock, which is a leaf */
    QemuMutex lock;
    SlotTable *slots;
    bool full;                          /* an allocation has failed */

    BsstPager *pager;

    /* Atomic */
    bool armed;                         /* the pager is: a hint */
    bool punch_soon;                    /* the timer is set */

    /* Thread-safe API */
    Stat64 reads, read_bytes, writes, write_bytes, punched_bytes;
    Stat64 checksum_errors, io_errors;
};

/* bsst-store-open.c */

/*
 * Find out whether @bs can be the store @s, whose node it is: protocol,
 * superblock, mapping; open and lock the private descriptor.  *@blank tells
 * that it is to become a store.  Returns false and sets @errp if it cannot.
 */
bool bsst_store_examine(BsstStore *s, BlockDriverState *bs, bool *blank,
                        Error **errp);

/* bsst-store-start.c */

/* Recover what is there, or format what is @blank. */
bool bsst_store_start(BsstStore *s, bool blank, Error **errp);
/* Nobody uses @s any more: end in good order. */
void bsst_store_stop(BsstStore *s);

/* bsst-store-io.c */

/*
 * Find where @slot lies in the host file, and how many of the *@n from it on
 * lie in one piece.
 */
uint64_t bsst_store_slot_offset(const BsstStore *s, BsstSlot slot,
                                uint32_t *n);

/* BsstJournalIO, where @opaque is the store: whole pages, aligned memory */
int coroutine_fn bsst_store_co_meta_read(void *opaque, uint64_t offset,
                                         void *buf, size_t bytes);
int coroutine_fn bsst_store_co_meta_write(void *opaque, uint64_t offset,
                                          const void *buf, size_t bytes);
/* Of all that was written to the descriptor, slots too. */
int coroutine_fn bsst_store_co_flush(void *opaque);

/* bsst-store-slots.c */

/* What the journal needs of slots, where its opaque pointer is the store. */
extern const BsstJournalSlots bsst_store_journal_slots;

/* The timer that gives space of free slots back to the file system */
void bsst_store_punch_timer(void *opaque);
void bsst_store_punch_later(BsstStore *s);
/* Nobody needs the free slots any more: give their space back, bit by bit. */
void bsst_store_forget_free_slots(BsstStore *s);

#endif /* BSST_STORE_INT_H */
