/*
 * Defragmentation planner: what its files share
 *
 *   defrag-life.c      how long entries live
 *   defrag-queue.c     what was observed, and has not been looked at yet
 *   defrag-regions.c   what it says of each region: births, deaths, moves
 *   defrag-plan.c      which blocks next
 *
 * This work is licensed under the terms of the GNU GPL, version 2 or later.
 * See the COPYING file in the top-level directory.
 */

#ifndef BSST_DEFRAG_PLAN_INT_H
#define BSST_DEFRAG_PLAN_INT_H

#include "bsst/defrag-life.h"
#include "bsst/defrag-plan.h"

#define REGION_BLOCKS   DEFRAG_REGION_BLOCKS
#define REGION_WORDS    (REGION_BLOCKS / 64)

/* A block that is moved should outlive this; so long it is watched. */
#define HORIZON         DEFRAG_TICKS(DEFRAG_WATCH_NS)

/* No block is ripe before this age. */
#define MIN_AGE         (DEFRAG_SECOND + 1)

/* A power of two */
#define DEFRAG_QUEUE_LEN 1024

/* Regions that were read split and are looked at first, at most */
#define MAX_SPLIT       64

typedef struct DefragRegion {
    uint64_t index;             /* blocks from index * REGION_BLOCKS on */
    size_t place;               /* in the plan's array */

    int64_t base;               /* tick that since[] counts from */
    int64_t settled;            /* exposure is accounted for up to this tick */
    int64_t fade;               /* as the plan's, when the next two last did */
    double deaths;              /* that were seen here */
    double expected;            /* that would have been, by the common rates */

    /* Disjoint: in the map; moved, and still watched */
    uint64_t live[REGION_WORDS];
    uint64_t moved[REGION_WORDS];
    uint64_t held[REGION_WORDS];        /* of the live: were left alone once */
    uint16_t since[REGION_BLOCKS];      /* when it became live, or was moved */
    int64_t moved_age;          /* of what was moved last, then */

    int64_t not_before;         /* nothing here is ripe before this tick */
    bool split;                 /* was read split since it was looked at */
} DefragRegion;

typedef enum DefragEventKind {
    DEFRAG_EVENT_INDIRECTED,
    DEFRAG_EVENT_OVERWRITTEN,
    DEFRAG_EVENT_DISCARDED,
    DEFRAG_EVENT_MOVED,
    DEFRAG_EVENT_READ_SPLIT,
} DefragEventKind;

/* An observation: see the function of that name in bsst/defrag-plan.h */
typedef struct DefragEvent {
    uint64_t block, n;          /* at least one */
    int64_t now_ns;
    DefragEventKind kind;
} DefragEvent;

struct DefragPlan {
    DefragEvent *queue;         /* a ring of DEFRAG_QUEUE_LEN */
    unsigned queue_head;        /* the oldest; modulo DEFRAG_QUEUE_LEN */
    unsigned queue_len;
    int64_t watch_end_ns;       /* as of the newest event */

    /* All else is as of the oldest */
    GHashTable *regions;        /* of DefragRegion, by &index */
    GPtrArray *array;           /* the same, for going round */
    size_t hand;                /* in the array: what is looked at next */
    size_t max_regions;

    int64_t tick;               /* now */
    int64_t event;              /* tick of the last birth or death */
    int64_t fade;               /* how often counts have faded by now */

    DefragLife life;            /* of all entries of the image */
    int64_t rated;              /* tick of its last update, or earlier */

    uint64_t split[MAX_SPLIT];  /* regions */
    unsigned nsplit;

    DefragStats stats;
};

static inline bool defrag_bit(const uint64_t *bits, unsigned i)
{
    return (bits[i / 64] >> (i % 64)) & 1;
}

static inline void defrag_bit_put(uint64_t *bits, unsigned i, bool value)
{
    uint64_t mask = 1ULL << (i % 64);

    bits[i / 64] = value ? bits[i / 64] | mask : bits[i / 64] & ~mask;
}

/* defrag-regions.c */

/* Account for @e, all before it being accounted for. */
void defrag_apply(DefragPlan *p, const DefragEvent *e);

/* It is @now_ns: let counts fade, and rates be of the last second. */
void defrag_set_now(DefragPlan *p, int64_t now_ns);

/* Region @index, up to date, or NULL if nothing is known of it. */
DefragRegion *defrag_find_region(DefragPlan *p, uint64_t index);

/*
 * Account for the exposure of all blocks up to now, and end the watch over
 * those that were moved longer ago.
 */
void defrag_settle_region(DefragPlan *p, DefragRegion *r);

/*
 * By how much the entries of @r die sooner (above 1) or later than others.
 * 1 for NULL.
 */
double defrag_region_factor(const DefragRegion *r);

#endif /* BSST_DEFRAG_PLAN_INT_H */
