/*
 * Defragmentation planner: which indirections of one image to undo next
 *
 * CORE: no I/O, no locks, no threads, no clock.  The caller serialises all
 * calls on one plan, those that take an IndirectMap together with the map's
 * (in the driver: under the image's lock).  @now_ns is a monotonic time in
 * nanoseconds, from any start that is not negative; one that runs backwards
 * counts as unchanged.
 *
 * What the planner is told (the driver's request path).  It is written down, and
 * looked at when the planner is asked: O(1), or what it takes to look at one
 * other event if a thousand are waiting.
 *
 *   defrag_plan_indirected()   blocks got a slot
 *   defrag_plan_overwritten()  the guest wrote blocks into the image
 *   defrag_plan_discarded()    the guest discarded, zeroed or cut off blocks
 *   defrag_plan_read_split()   a read had to be split
 *   defrag_plan_moved()        the job wrote blocks back into the image
 *   defrag_plan_relaid()       the job gave blocks other slots
 *
 * What it answers: which run to move next, of those that will probably stay.
 * The rule and where it comes from: head of defrag-plan.c.
 *
 * Entries of the map that the planner was never told of (recovered from the
 * store, say) count as old: they are moved.
 *
 * This work is licensed under the terms of the GNU GPL, version 2 or later.
 * See the COPYING file in the top-level directory.
 */

#ifndef BSST_DEFRAG_PLAN_H
#define BSST_DEFRAG_PLAN_H

#include "bsst/indirect-map.h"

typedef struct DefragPlan DefragPlan;

/* A run covers at most this many blocks, and never two regions: 1 MiB. */
#define DEFRAG_REGION_BLOCKS    256

/*
 * Moved blocks are watched for so long: a guest that overwrites or discards
 * them meanwhile has had them moved in vain.
 */
#define DEFRAG_WATCH_NS         (10 * 1000000000LL)

/* Regions that a plan keeps in mind by default: 16 GiB of disk, 11 MiB of RAM */
#define DEFRAG_MAX_REGIONS      16384

/*
 * Create a plan that keeps at most @max_regions regions in mind (0: the
 * default), of less than 800 bytes each, beside 32 KiB for itself; a region is
 * made when something of it is indirected or read split.  Blocks of further
 * regions are treated as old.  Never fails.
 */
DefragPlan *defrag_plan_new(size_t max_regions);
/* NULL is allowed. */
void defrag_plan_free(DefragPlan *p);

/* Observations */

/*
 * The @n blocks from @block on have got new slots.  Those that had one before
 * were overwritten, which the planner knows by itself.
 */
void defrag_plan_indirected(DefragPlan *p, uint64_t block, uint64_t n,
                            int64_t now_ns);

/*
 * The guest has overwritten the @n blocks from @block on, and none of them is
 * indirected any more.  Whether they were before does not matter.
 *
 * Needed for each write that removes entries, a copy-up for a partial write
 * included; and, while defrag_plan_watching(), for each other write.
 */
void defrag_plan_overwritten(DefragPlan *p, uint64_t block, uint64_t n,
                             int64_t now_ns);

/* The same for discards, zeroing and truncation. */
void defrag_plan_discarded(DefragPlan *p, uint64_t block, uint64_t n,
                           int64_t now_ns);

/*
 * A read of the guest that touched the @n blocks from @block on had to be split
 * between image and store, or between slots that are not consecutive.
 */
void defrag_plan_read_split(DefragPlan *p, uint64_t block, uint64_t n,
                            int64_t now_ns);

/*
 * The indirected ones of the @n blocks from @block on were written into the
 * image by a defragmentation and have left the map.  Call this before
 * anything else is told of these blocks.  Blocks that the plan does not know
 * as indirected are taken as such: so tell of runs without gaps.
 */
void defrag_plan_moved(DefragPlan *p, uint64_t block, uint64_t n,
                       int64_t now_ns);

/* @slots blocks were given other slots, mode=store. */
void defrag_plan_relaid(DefragPlan *p, uint64_t slots);

/* Are there blocks that were moved within DEFRAG_WATCH_NS?  O(1). */
bool defrag_plan_watching(const DefragPlan *p, int64_t now_ns);

/*
 * Look at what was observed, about @blocks of it, and return if that was all.
 * The planner does so itself when it is asked for a run.
 */
bool defrag_plan_catch_up(DefragPlan *p, unsigned blocks);

/* Which blocks next */

typedef enum DefragVerdict {
    DEFRAG_RUN,         /* there is a run */
    DEFRAG_AGAIN,       /* none so far; call again, there is more to look at */
    DEFRAG_WAIT,        /* none now; call again at @wait_ns */
    DEFRAG_NONE,        /* nothing of that kind is left in the map */
} DefragVerdict;

/*
 * Where a job's search is.  All zeroes to begin with; the job may look at
 * @sweeps only.  Not valid for another mode or map.
 */
typedef struct DefragCursor {
    uint64_t block;     /* the search goes on here, upwards, and wraps */
    uint64_t sweeps;    /* how often it has wrapped */

    uint64_t barren_from;       /* since here nothing has been found ... */
    bool barren;                /* ... if this is set, */
    bool barren_wrapped;        /* and the search has wrapped since */
    bool held;                  /* something was left alone since */
    int64_t wake_ns;            /* the soonest of it may be ripe then */
} DefragCursor;

typedef struct DefragRun {
    uint64_t block;
    /*
     * All blocks of the map in [@block, @block + @n) are meant; the first and
     * the last of them are in the map.  @n <= DEFRAG_REGION_BLOCKS, and the
     * range lies in one aligned region.
     */
    unsigned n;
    unsigned mapped;    /* how many blocks are meant */
    /*
     * mode=store: into how many pieces of consecutive slots they fall.  They
     * need @mapped fresh consecutive slots, to be used in the order of blocks.
     */
    unsigned pieces;
} DefragRun;

/*
 * mode=guest: find the next run to move into the image.
 *
 * Runs come in the order of blocks from @cursor on (an elevator that jumps back
 * to the start), but first from regions that were read split since they were
 * looked at last.  @gap is how many blocks that are not in the map may lie
 * between two of a run (0: none); they are never moved.  @max: of @n, 1 to
 * DEFRAG_REGION_BLOCKS.
 *
 * With @force every entry is moved, however young: a job that does what it is
 * told to.  Entries that the guest adds meanwhile are found, too; a job that
 * wants to end may stop after cursor.sweeps has grown by two.
 *
 * Looks at a few events and regions in one call, so that a lock need not be
 * held for long: then DEFRAG_AGAIN.  DEFRAG_WAIT never with @force; *@wait_ns is
 * at least 100 ms and at most DEFRAG_WATCH_NS away.
 */
DefragVerdict defrag_plan_next_guest(DefragPlan *p, const IndirectMap *map,
                                     DefragCursor *cursor, bool force,
                                     unsigned gap, unsigned max,
                                     int64_t now_ns, DefragRun *run,
                                     int64_t *wait_ns);

/*
 * mode=store: find the next run whose slots do not follow each other in the
 * order of blocks (gaps between blocks do not matter: what is read together
 * should lie together).  As above otherwise.
 *
 * Without @force only runs of more than one piece, and one more for each 64
 * blocks, are worth it, unless they were read split.  After a run has been
 * re-laid it is not found again.
 */
DefragVerdict defrag_plan_next_store(DefragPlan *p, const IndirectMap *map,
                                     DefragCursor *cursor, bool force,
                                     int64_t now_ns, DefragRun *run,
                                     int64_t *wait_ns);

/*
 * Compaction: find the next run of blocks with slots at or above @limit.  They
 * (not what lies between them: @n is for locking, ask the map) are to get
 * slots below it.  @run->mapped is how many there are in the run.
 *
 * With @limit = slots in use (slot_table_size() - slot_table_nfree() - those
 * being punched) there are always enough free slots below it, as those used by
 * others (pages of the swapper) lie on one side or the other, too.  Slots that
 * no block of this map has stay where they are.  A store of several images is
 * compacted image by image with one limit.
 *
 * Returns DEFRAG_RUN, DEFRAG_AGAIN or DEFRAG_NONE.
 */
DefragVerdict defrag_plan_next_compact(DefragPlan *p, const IndirectMap *map,
                                       DefragCursor *cursor, BsstSlot limit,
                                       DefragRun *run);

/*
 * Statistics, in blocks unless said otherwise; they only grow.  As of what has
 * been looked at: defrag_plan_catch_up().
 */
typedef struct DefragStats {
    uint64_t indirected;
    uint64_t overwritten;       /* of the indirected: by the guest ... */
    uint64_t discarded;         /* ... in which way */
    uint64_t moved;             /* into the image */
    uint64_t relaid;            /* inside the store */
    uint64_t wasted_1s;         /* of the moved: overwritten or discarded */
    uint64_t wasted_10s;        /* within that time, 1s included */
    /* Left alone at least once, then overwritten or discarded */
    uint64_t spared;
    uint64_t split_reads;       /* calls */
    uint64_t untracked;         /* no room for their region */
} DefragStats;

/* What the planner has on its mind now. */
typedef struct DefragState {
    size_t regions;
    size_t bytes;               /* of memory, the plan itself included */
    /* Of 1000 new entries, so many are expected to last for 1 s, 10 s, 60 s */
    unsigned last_1s, last_10s, last_60s;
} DefragState;

void defrag_plan_stats(const DefragPlan *p, DefragStats *stats);
void defrag_plan_state(const DefragPlan *p, DefragState *state);

#endif /* BSST_DEFRAG_PLAN_H */
