/*
 * The journal of a block-swap store: what its files share
 *
 *   bsst-journal.c      the order of all metadata writes and flushes
 *   bsst-image.c        which images there are; the journal's own life
 *   bsst-checkpoint.c   composes and writes blocks; no flush, no order
 *   bsst-recover.c      reads them all when a store is opened; a new store
 *
 * Locks, outermost first:
 *
 *   image round_lock, checkpoint_lock, append_lock, table_lock, checksum_lock,
 *   image lock (never across I/O), flush_lock; lock is a leaf.
 *
 * This work is licensed under the terms of the GNU GPL, version 2 or later.
 * See the COPYING file in the top-level directory.
 */

#ifndef BSST_JOURNAL_INT_H
#define BSST_JOURNAL_INT_H

#include "bsst/bsst-journal.h"
#include "qemu/lockable.h"
#include "qemu/queue.h"
#include "qemu/stats64.h"

/* One write or read of metadata has at most this many blocks: 1 MiB. */
#define BSST_JOURNAL_IO_BLOCKS  256u

/* Slots whose checksums are in one block of the table */
#define BSST_CHECKSUMS_PER_BLOCK \
    ((unsigned)(BSST_JOURNAL_BLOCK_BYTES / sizeof(uint64_t)))

/* Between two blocks of the journal */
typedef struct BsstJournalPosition {
    uint64_t block;             /* index in the area of the block behind it */
    uint64_t sequence;          /* that this block has to have */
    uint64_t chain;             /* checksum of the block before it */
    uint64_t generation;        /* of the block before it, or an older one */
} BsstJournalPosition;

/* A flush of the store that somebody waits for */
typedef struct BsstFlushWaiter {
    bool done;
    int ret;
    QSIMPLEQ_ENTRY(BsstFlushWaiter) next;
} BsstFlushWaiter;

/* A commit of one image: what durable_map_prepare() found */
typedef struct BsstCommit {
    BsstImage *image;
    GArray *records;            /* of BsstRecord */
    GArray *checksums;          /* of uint32_t: blocks of the checksum table */
    bool oversize;              /* records has not all, they fit no journal */

    /* Group commit; under append_lock, or lock while it is queued */
    bool done;
    bool no_room;               /* not appended: the journal is full */
    int ret;
    QSIMPLEQ_ENTRY(BsstCommit) next;
} BsstCommit;

struct BsstJournal {
    /* Set once */
    BsstSuperblock sb;
    const BsstJournalIO *io;
    const BsstJournalSlots *slots;
    void *opaque;
    bool read_only;
    BsstDamageFunc *damage;     /* not NULL: read what can be read */
    uint64_t journal_blocks;
    uint64_t checkpoint_blocks; /* of a body at most */

    /* Under checkpoint_lock; checkpoint is changed under append_lock, too */
    CoMutex checkpoint_lock;
    BsstCheckpoint checkpoint;  /* the newest one that is durable */
    unsigned checkpoint_area;   /* where it is */
    bool header_uncertain;      /* a failed one may have its header on disk */

    /* Under append_lock */
    CoMutex append_lock;
    BsstJournalPosition tail;
    uint64_t scrub;             /* blocks behind tail that may be stale (J6) */

    /* Under table_lock */
    CoMutex table_lock;
    BsstImage **table;          /* the owner of each entry, or NULL */
    bool *retired;              /* not to be used yet (J10) */

    /* Around composing and writing a block of the checksum table (J9) */
    CoMutex checksum_lock;

    /* Around a flush of the store */
    CoMutex flush_lock;

    /* Under lock, a leaf */
    QemuMutex lock;
    QLIST_HEAD(, BsstImage) images; /* the main thread changes it */
    QSIMPLEQ_HEAD(, BsstCommit) appends;
    QSIMPLEQ_HEAD(, BsstFlushWaiter) flush_waiters;
    uint64_t weight;            /* of all maps: entries a checkpoint may have */
    uint64_t promised;          /* by bsst_journal_reserve() */

    /* Atomic */
    bool failed;                /* for good */
    bool background;            /* a checkpoint is scheduled or running */
    uint64_t used_blocks;       /* of the journal */

    /* Counters */
    uint64_t recovered_indirections;
    uint64_t recovered_images;
    uint64_t replayed_blocks;
    Stat64 commits, records, recorded_blocks, journal_bytes, checksum_bytes;
    Stat64 checkpoints, checkpoint_bytes, flushes, errors;
};

static inline uint64_t bsst_blocks_for(uint64_t records)
{
    return DIV_ROUND_UP(records, BSST_JOURNAL_RECORDS);
}

static inline bool bsst_journal_is_dead(BsstJournal *j)
{
    return j->read_only || qatomic_read(&j->failed);
}

static inline void bsst_journal_add_weight(BsstJournal *j, uint64_t before,
                                           uint64_t after)
{
    QEMU_LOCK_GUARD(&j->lock);
    j->weight += after - before;
}

/* bsst-checkpoint.c */

/* Encodes blocks one behind the other into an area, and writes them. */
typedef struct BsstBlockWriter {
    BsstJournal *j;
    BsstBlockKind kind;
    uint64_t area;              /* its offset */
    uint64_t area_blocks;
    BsstJournalPosition pos;    /* behind what has been encoded */
    uint8_t *buf;
    unsigned buffered;          /* blocks in buf, which end at pos */
    unsigned buf_blocks;
} BsstBlockWriter;

/* At most @nblocks will be written.  Returns 0 or -ENOMEM. */
int bsst_block_writer_init(BsstBlockWriter *w, BsstJournal *j,
                           BsstBlockKind kind, uint64_t area,
                           uint64_t area_blocks,
                           const BsstJournalPosition *pos, uint64_t nblocks);

/* Add one block of @n records; the area is circular.  Returns 0 or -errno. */
int coroutine_fn bsst_block_writer_co_add(BsstBlockWriter *w, uint32_t image,
                                          const BsstRecord *records,
                                          unsigned n);

/* Write what is buffered, if @ret is 0; free the buffer.  Returns @ret. */
int coroutine_fn bsst_block_writer_co_end(BsstBlockWriter *w, int ret);

/* Overwrite @n blocks of the journal from @pos on with what is no block. */
int coroutine_fn bsst_journal_co_write_scrub(BsstJournal *j,
                                             const BsstJournalPosition *pos,
                                             uint64_t n);

/*
 * Write the body of a checkpoint into @area: of each image the committed
 * state, of @prepared (or NULL) the prepared one.  Fills in the body's fields
 * of @cp.  Under checkpoint_lock.
 *
 * Returns 0 or -errno; -ENOSPC and sets *@overflow if there is more than a
 * checkpoint holds, which can only be if commits were made meanwhile.
 */
int coroutine_fn bsst_checkpoint_co_write_body(BsstJournal *j, unsigned area,
                                               BsstImage *prepared,
                                               BsstCheckpoint *cp,
                                               bool *overflow);

/* Write the header @cp of checkpoint area @area, or a blank one if NULL. */
int coroutine_fn bsst_checkpoint_co_write_header(BsstJournal *j, unsigned area,
                                                 const BsstCheckpoint *cp);

/*
 * Compose and write the blocks @block[] (sorted, each once) of the checksum
 * table.  Takes checksum_lock.
 */
int coroutine_fn bsst_journal_co_write_checksums(BsstJournal *j,
                                                 const uint32_t *block,
                                                 unsigned n);

/*
 * Write the block of the image table that has entry @index: @e there, all
 * other entries as they are.  Under table_lock.
 */
int coroutine_fn bsst_journal_co_write_entry(BsstJournal *j, uint32_t index,
                                             const BsstImageEntry *e);

/* bsst-journal.c */

/* Under append_lock, or when there is nobody else. */
void bsst_journal_publish_used(BsstJournal *j);

/*
 * Let @image's entry be @e, durably; image->entry follows.  Under table_lock.
 * Returns 0 or -errno; what is on disk is not known then.
 */
int coroutine_fn bsst_table_co_write(BsstImage *image, const BsstImageEntry *e);

/*
 * True if all changes of @image are durable.  A commit in progress may carry
 * changes that the caller has to wait for.
 */
bool coroutine_fn bsst_image_is_quiet(BsstImage *image);

/* bsst-image.c */

BsstJournal *bsst_journal_new(const BsstSuperblock *sb,
                              const BsstJournalIO *io,
                              const BsstJournalSlots *slots, void *opaque,
                              bool read_only);
BsstImage *bsst_image_new(BsstJournal *j, const BsstImageEntry *e);
/* Replay ends here, with @c as the newest checkpoint, in @area. */
void bsst_journal_recovered(BsstJournal *j, const BsstCheckpoint *c,
                            unsigned area, const BsstJournalPosition *tail);

#endif /* BSST_JOURNAL_INT_H */
