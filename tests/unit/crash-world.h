/*
 * A small world around the journal, for crash enumeration
 *
 * A store and some guest disks on simulated disks, the real slot table, durable
 * maps and journal, and a driver and a swapper that obey the same rules as the
 * real ones (block/bsst-int.h: B2 to B5), but do nothing else.  Beside it a
 * model knows for each sector of each guest disk what it may hold after a
 * crash: what it held when the last flush began that has succeeded, or anything
 * that was written since.
 *
 * Contents are stamps: each write by the guest and each content of a page has
 * a number of its own, and each sector the number and its place in the block.
 *
 * All I/O waits in a queue until world_step() ends one of the requests, so that
 * everything that the coroutines may do in between happens in some order.
 *
 * This work is licensed under the terms of the GNU GPL, version 2 or later.
 * See the COPYING file in the top-level directory.
 */

#ifndef CRASH_WORLD_H
#define CRASH_WORLD_H

#include "bsst/bsst-journal.h"
#include "bsst/slot-table.h"
#include "crash-disk.h"

/* Records of a block of the journal in these tests */
#define CRASH_RECORDS   2
/* Recovery applies records when there are three or more. */
#define CRASH_BATCH_BYTES 48

#define MAX_IMAGES      3
#define MAX_PAGES       24
#define MAX_BLOCKS      64
#define MAX_CANDIDATES  40

/*
 * Ways to be wrong.  All are outside the code under test, where it can be
 * deceived: a flush that does nothing, a write that is lost, a driver that does
 * things too early.
 */
typedef enum Bug {
    BUG_NONE,
    BUG_RECORD_BEFORE_SLOT,     /* no flush of slots before the records */
    BUG_RECORD_BEFORE_IMAGE,    /* no flush of the image before the records */
    BUG_NO_FLUSH_OF_RECORDS,    /* none after them */
    BUG_SLOT_REUSED_EARLY,      /* before its removal is durable */
    BUG_HEADER_BEFORE_BODY,     /* no flush between them */
    BUG_JOURNAL_RELEASED_EARLY, /* no flush of the header */
    BUG_NO_CHAIN_CHECK,         /* recovery takes blocks of an older life */
    BUG_NO_SCRUB,               /* no removal of what a failed append left */
    BUG_NO_FLUSH_AT_OPEN,       /* what recovery has read may not be durable */
    BUG_FLUSH_JOINS_OLDER,      /* a flush shares one that began before it */
    BUG_ENTRY_REMOVED_EARLY,    /* before the image has the new data */
    BUG_NO_CHECKSUMS,           /* are not written */
    BUG_MOVE_REMOVED_EARLY,     /* a run, when one block of it is written */
    BUG_RELAY_NAMED_EARLY,      /* new slots, before they are written */
    BUG__MAX,
} Bug;

extern const char *const bug_name[BUG__MAX];
extern bool crash_skip_chain_check;
bool crash_journal_background(BsstJournal *j);

typedef struct Params {
    unsigned nimages, nblocks, npages, nslots, nplaces, journal_blocks;
    bool final_flush_errors;
    bool tight;                 /* a checkpoint may not fit: flushes may fail */
    Bug bug;
} Params;

typedef enum OpKind {
    OP_WRITE, OP_PARTIAL, OP_DISCARD, OP_DRAIN, OP_MOVE_OUT, OP_RELAY,
    OP_FLUSH, OP_EVICT, OP_TOUCH, OP_SWAP_IN, OP_CHECKPOINT, OP_CHECK,
    OP_DETACH, OP_FORGET, OP_ERROR, OP_KILL, OP_POWER_CUT, OP_REOPEN,
    OP__MAX,
} OpKind;

extern const char *const op_name[OP__MAX];

/* What happens next; what cannot happen is skipped. */
typedef struct Op {
    OpKind kind;
    unsigned image;
    unsigned at, n, page;       /* blocks (or sectors); the first page */
    unsigned steps;             /* of I/O until the next one */
    uint32_t seed;              /* for what else is random about it */
} Op;

/* What a sector may hold: one of them, the last one that was written last */
typedef struct Candidate {
    uint64_t stamp;
    uint64_t done;              /* when the write had succeeded, or NOT_DONE */
} Candidate;

#define NOT_DONE UINT64_MAX

typedef struct Sector {
    unsigned n;
    Candidate c[MAX_CANDIDATES];
} Sector;

typedef struct GuestDisk {
    SimDisk disk;               /* the last sector is the header */
    Sector *model;
    BsstImage *image;           /* or NULL */
    bool guarded;               /* since the last open */
    CoMutex guard_lock;
    unsigned ops;               /* in flight */
    bool exclusive;
    bool busy[MAX_BLOCKS];
    unsigned flushing;          /* for BUG_FLUSH_JOINS_OLDER */
    CoQueue flushed;
} GuestDisk;

typedef struct Page {
    uint64_t content;
    bool out, busy;
    BsstSlot slot;
} Page;

typedef enum Fault {
    FAULT_STORE_WRITE, FAULT_STORE_FLUSH, FAULT_IMAGE_WRITE, FAULT_IMAGE_FLUSH,
    FAULT_APPEND_WRITE, FAULT_APPEND_FLUSH, /* of the journal only */
    FAULT__MAX,
} Fault;

typedef struct World {
    Params params;
    BsstSuperblock sb;
    BsstJournalIO io;

    /* What survives */
    SimDisk store;
    GuestDisk guest[MAX_IMAGES];
    SimDisk *disks[MAX_IMAGES + 1];
    uint64_t next_content;
    uint64_t clock;

    /* What does not */
    BsstJournal *journal;
    SlotTable *slots;
    Page page[MAX_PAGES];
    GPtrArray *ios;
    unsigned fault[FAULT__MAX];
    bool dead;                  /* all I/O fails, nothing counts any more */
    bool opening;

    GRand *rand;                /* of the op */
    uint64_t version;           /* grows when a crash may leave something new */
    char *violation;

    /* What has been done, in all lives */
    BsstJournalStats total;
    unsigned lives;
} World;

World *world_new(const Params *params);
void world_free(World *w);

/* A new store, and the first open */
void world_begin(World *w);
/*
 * Open the store after the last run has ended, one way or the other; w->opening
 * until that is done.
 */
void world_reopen(World *w, bool power_cut);

/* Begin an op that is neither of the last three. */
void world_op(World *w, const Op *op);
/* End one I/O request; false if there is none. */
bool world_step(World *w);
/* A write to the journal, or its flush, is in flight. */
bool world_appends(const World *w);
/* Nothing that is in flight matters any more; close. */
void world_die(World *w);
/* Nothing is in flight: flush all, and count references. */
void world_check_references(World *w);

/* Recover from what is in the views, and compare. */
void world_verify(World *w);

#endif /* CRASH_WORLD_H */
