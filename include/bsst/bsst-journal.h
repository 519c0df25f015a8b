/*
 * The journal of a block-swap store: what makes indirections survive
 *
 * This is the only code that orders metadata writes and flushes.  It knows
 * nothing of the block layer: I/O goes through BsstJournalIO, slots through
 * BsstJournalSlots, so that tests run it on a simulated disk.
 *
 * A *journal* belongs to one open store.  Each image that has, or may get,
 * blocks in the store is a BsstImage, whether its disk is attached or not.
 *
 * All coroutine_fn functions are thread-safe unless they say otherwise.
 *
 * Locks, outermost first: an image's round_lock, the journal's locks, an
 * image's map lock.  No I/O under a map lock.
 *
 * This work is licensed under the terms of the GNU GPL, version 2 or later.
 * See the COPYING file in the top-level directory.
 */

#ifndef BSST_JOURNAL_H
#define BSST_JOURNAL_H

#include "bsst/bsst-format.h"
#include "bsst/durable-map.h"
#include "qemu/coroutine.h"

/*
 * The store's metadata: offsets are those of the virtual disk; offsets, sizes
 * and buffers are multiples of BSST_PAGE_SIZE.  All return 0 or -errno.  A
 * write is durable after a flush that began after the write had ended.
 */
typedef struct BsstJournalIO {
    int coroutine_fn (*co_read)(void *opaque, uint64_t offset, void *buf,
                                size_t bytes);
    int coroutine_fn (*co_write)(void *opaque, uint64_t offset,
                                 const void *buf, size_t bytes);
    /* Makes everything durable that was written to the store, slots too. */
    int coroutine_fn (*co_flush)(void *opaque);
    /* After a failed flush nobody knows what is durable: never try again. */
    bool flush_errors_are_final;
} BsstJournalIO;

/* What the journal needs of the slot table.  Thread-safe, no I/O. */
typedef struct BsstJournalSlots {
    /* Drop one reference of each. */
    void (*unref)(void *opaque, const BsstSlot *slot, unsigned n);
    /* The checksums of @n slots, 0 for a slot that is free. */
    void (*get_checksums)(void *opaque, BsstSlot first, unsigned n,
                          uint64_t *sum);
} BsstJournalSlots;

typedef struct BsstJournal BsstJournal;

typedef struct BsstImage {
    BsstJournal *journal;
    BsstImageEntry entry;       /* in_use once it is in the image table */
    uint32_t index;             /* in the table, if in_use */
    bool attached;              /* a node uses it; BQL */

    CoMutex lock;               /* protects map, innermost */
    DurableMap *map;            /* changed by bsst_image_set_locked() only */

    /* The rest is private to bsst-journal.c */
    bool failed;                /* a flush has more to do than changes; lock */
    bool entry_in_doubt;        /* it may be gone; the journal's table_lock */
    CoMutex round_lock;
    uint64_t rounds_begun;      /* written under round_lock, read atomically */
    uint64_t round_done;        /* the last one that succeeded; round_lock */
    int round_ret;              /* of the last one; round_lock */
    QLIST_ENTRY(BsstImage) next;
} BsstImage;

/* What recovery found, and what has been done since */
typedef struct BsstJournalStats {
    uint64_t recovered_indirections;
    uint64_t recovered_images;
    uint64_t replayed_blocks;
    uint64_t commits;
    uint64_t records;
    uint64_t recorded_blocks;   /* that the records cover */
    uint64_t journal_bytes;
    uint64_t checksum_bytes;
    uint64_t checkpoints;
    uint64_t checkpoint_bytes;
    uint64_t flushes;
    uint64_t errors;
    uint64_t used_bytes;        /* of the journal, since the last checkpoint */
} BsstJournalStats;

/*
 * Write image table, checkpoint and journal of a new store, durably, everything
 * but the superblock.  The caller has written one that says "unfinished",
 * durably, and writes the real one next.  Returns 0 or -errno.
 */
int coroutine_fn bsst_journal_co_format(const BsstSuperblock *sb,
                                        const BsstJournalIO *io, void *opaque);

/*
 * Open the journal of the store @sb: read the image table and the newest
 * checkpoint, replay the journal.  Writes nothing.  To write later,
 * @sb->generation has to be larger than any before.  The caller then writes
 * the superblock with it and flushes the store, before anything else is
 * written, slots included: what has been read here is durable then, too.
 *
 * The references of the slots that the maps name are the caller's business.
 *
 * Returns NULL and sets @errp if the store is damaged or cannot be read.
 */
BsstJournal *coroutine_fn
bsst_journal_co_open(const BsstSuperblock *sb, const BsstJournalIO *io,
                     const BsstJournalSlots *slots, void *opaque,
                     bool read_only, Error **errp);

/*
 * Told of damage: which rule for a checker (docs/interop/bsst.rst) is broken,
 * or 0 if something could not be read, and @message says it in words.
 */
typedef void BsstDamageFunc(void *opaque, unsigned rule, const char *message);

/*
 * Open the journal of a store that may be damaged, to look at what is left of
 * it: read only.  @damage is told, with @opaque, of all that would have made
 * bsst_journal_co_open() fail, and also of blocks behind the journal's end that
 * must have been part of it; what can be read in spite of it is.  Entries of
 * the image table that are damaged become images with a UUID of zeroes and a
 * name that says which entry it is.
 *
 * Without damage the result is that of bsst_journal_co_open().  Returns NULL
 * and sets @errp if there is no memory.
 */
BsstJournal *coroutine_fn
bsst_journal_co_salvage(const BsstSuperblock *sb, const BsstJournalIO *io,
                        void *opaque, BsstDamageFunc *damage, Error **errp);

/*
 * The checkpoint that a journal which was just opened begins with, and in which
 * of the two areas it is.  NULL if there is none (in a damaged store).
 */
const BsstCheckpoint *bsst_journal_checkpoint(BsstJournal *j, unsigned *area);

/*
 * Nothing is in flight any more, but a checkpoint in the background, perhaps:
 * waits for it.  Main thread.
 */
void bsst_journal_free(BsstJournal *j);

/*
 * Read the checksums of @n slots from @first on, a multiple of 512, from disk.
 * They mean something for slots that a map names.  Returns 0 or -errno.
 */
int coroutine_fn bsst_journal_co_read_checksums(BsstJournal *j, BsstSlot first,
                                                unsigned n, uint64_t *sum);

/* Iterate over all images: NULL starts and ends.  Main thread. */
BsstImage *bsst_journal_next_image(BsstJournal *j, BsstImage *image);

/* Find an image by UUID, or return NULL.  Main thread. */
BsstImage *bsst_journal_find_image(BsstJournal *j, const uint8_t uuid[16]);

/* A new image that is not in the table yet.  Main thread. */
BsstImage *bsst_journal_add_image(BsstJournal *j, const uint8_t uuid[16],
                                  bool raw, const char *name, uint64_t bytes);

/*
 * Begin to use @image for writing: its entry announces generation + 1,
 * durably, in a new place of the table if it has none.  The caller then makes
 * the image's own header say so, and calls bsst_journal_co_attached().
 *
 * Returns 0 or -errno; -ENOSPC if the image table is full.
 */
int coroutine_fn bsst_journal_co_announce(BsstImage *image);
int coroutine_fn bsst_journal_co_attached(BsstImage *image);

/*
 * Remove @image, which has no entries and is not in use, from the table (its
 * header names us no more, or it is gone for good), or with @discard forget its
 * entries with it.  It is freed.  Returns 0 or -errno.
 */
int coroutine_fn bsst_journal_co_remove_image(BsstImage *image, bool discard);

/*
 * May @n more blocks be indirected?  False if no checkpoint could hold them, or
 * after an error that has made the store read-only for good.  A hint that
 * reserves: true adds @n to what is promised, until bsst_journal_unreserve().
 */
bool bsst_journal_reserve(BsstJournal *j, unsigned n);
void bsst_journal_unreserve(BsstJournal *j, unsigned n);

/*
 * durable_map_set() on @image's map, whose lock the caller holds.  Whoever
 * adds entries has reserved them.
 */
unsigned bsst_image_set_locked(BsstImage *image, uint64_t block,
                               const BsstSlot *slot, unsigned n, BsstSlot *old,
                               BsstSlot *drop);

/* Flushes the image's own data.  Returns 0 or -errno. */
typedef int coroutine_fn BsstDataFlush(void *opaque);

/*
 * Make everything durable that completed on @image before the call: its data,
 * through @flush, and where they are.  Without changes of the map this is
 * @flush and nothing else.  Returns 0 or -errno.
 */
int coroutine_fn bsst_image_co_flush(BsstImage *image, BsstDataFlush *flush,
                                     void *opaque);

/*
 * Write a checkpoint now, so that the next open is quick.  Returns 0 or -errno.
 */
int coroutine_fn bsst_journal_co_checkpoint(BsstJournal *j);

void bsst_journal_get_stats(BsstJournal *j, BsstJournalStats *stats);

#endif /* BSST_JOURNAL_H */
