/*
 * Life table: how long indirections live before the guest makes them needless
 *
 * CORE: no I/O, no locks, no threads, no clock.  The caller serialises all
 * calls.  Ages and times are in ticks.
 *
 * An entry is *born* when its block is indirected and *dies* when the guest
 * overwrites or discards the block.  Ages fall into bins that double in width.
 * For each bin j the table counts deaths D[j], and exposure E[j]: for how long
 * entries were seen alive at that age, in sum.
 *
 * This work is licensed under the terms of the GNU GPL, version 2 or later.
 * See the COPYING file in the top-level directory.
 */

#ifndef BSST_DEFRAG_LIFE_H
#define BSST_DEFRAG_LIFE_H

/* A tick has 2^24 ns, 16.8 ms. */
#define DEFRAG_TICK_BITS        24
#define DEFRAG_TICKS(ns)        ((int64_t)(ns) >> DEFRAG_TICK_BITS)
#define DEFRAG_SECOND           DEFRAG_TICKS(1000000000)        /* 0.99 s */

/* Bin 0 is [0, 16) ticks, bin j is [2^(j + 3), 2^(j + 4)), the last is open. */
#define DEFRAG_BINS             12
/* What has reached the last bin is *old*: 275 s. */
#define DEFRAG_OLD_AGE          (1 << (DEFRAG_BINS + 2))

typedef struct DefragLife {
    double deaths[DEFRAG_BINS];         /* D */
    double exposure[DEFRAG_BINS];       /* E */
    double passed[DEFRAG_BINS];         /* entries seen alive at its end */

    /* Of defrag_life_update() */
    double rate[DEFRAG_BINS];           /* deaths per entry and tick */
    double hazard[DEFRAG_BINS];         /* its integral up to the bin's start */
    bool known[DEFRAG_BINS];            /* enough entries have seen it */
    bool dirty;                         /* D or E have changed since */
} DefragLife;

/* An empty table: nothing is known, rates are assumed. */
void defrag_life_init(DefragLife *life);

/* @n entries were seen alive from age @from to age @to (none if not greater). */
void defrag_life_expose(DefragLife *life, int64_t from, int64_t to, unsigned n);

/* An entry has died at @age. */
void defrag_life_die(DefragLife *life, int64_t age);

/* Let all counts fade to a half. */
void defrag_life_halve(DefragLife *life);

/* Calculate the rates from the counts, if these have changed. */
void defrag_life_update(DefragLife *life);

/*
 * H(@age): the rate of dying, integrated from 0 to @age, by the last update.
 * exp(-H) is the share of entries that live to see that age.
 */
double defrag_life_hazard(const DefragLife *life, int64_t age);

/*
 * In which bins will an entry probably outlive the next @horizon ticks, if the
 * rates in its region are @factor times the common ones?  As a bitmap; the
 * last bin is always in it.  A bin's entries are all judged by its start.
 */
unsigned defrag_life_ripe(const DefragLife *life, double factor,
                          int64_t horizon);

unsigned defrag_life_bin(int64_t age);
/* Age at which bin @bin begins. */
int64_t defrag_life_bin_start(unsigned bin);

#endif /* BSST_DEFRAG_LIFE_H */
