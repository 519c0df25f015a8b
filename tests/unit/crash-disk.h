/*
 * A simulated disk with a volatile write cache, for crash enumeration
 *
 * The unit is a sector, which is never torn.  A write is *in flight* from
 * disk_submit() to disk_complete(), *pending* until a flush has ended that
 * began after it was complete, and durable then.  What a crash leaves of
 * writes that are not durable is any subset of their sectors.
 *
 * The first @nmeta sectors have 512 bytes.  The others hold data that only
 * have to be told apart: 8 bytes.
 *
 * This work is licensed under the terms of the GNU GPL, version 2 or later.
 * See the COPYING file in the top-level directory.
 */

#ifndef CRASH_DISK_H
#define CRASH_DISK_H

#define SECTOR_BYTES    512u
#define STAMP_BYTES     8u
#define BLOCK_SECTORS   8u

typedef struct SimWrite {
    unsigned first, n;          /* sectors */
    uint64_t completed;         /* time, 0 while in flight */
    uint8_t data[];
} SimWrite;

typedef struct SimDisk {
    unsigned nmeta, nsectors;
    uint8_t *base;              /* what is durable */
    uint8_t *cache;             /* what a read returns */
    uint8_t *view;              /* base, or a state after a crash */
    GPtrArray *pending;         /* of SimWrite, in order of completion */
    GPtrArray *inflight;        /* of SimWrite, in order of submission */
    uint64_t clock;
} SimDisk;

void disk_init(SimDisk *d, unsigned nmeta, unsigned nsectors);
void disk_clear(SimDisk *d);

/* Where sector @s lies in @buf, which holds the whole disk */
uint8_t *disk_at(const SimDisk *d, uint8_t *buf, unsigned s);
size_t disk_bytes(const SimDisk *d, unsigned first, unsigned n);

SimWrite *disk_submit(SimDisk *d, unsigned first, unsigned n,
                      const void *data);
void disk_complete(SimDisk *d, SimWrite *w);
/* @w fails; some of its sectors have been written all the same. */
void disk_fail(SimDisk *d, SimWrite *w, GRand *rand);

/* A flush makes durable what was complete at the time it returns. */
uint64_t disk_flush_begin(SimDisk *d);
void disk_flush_end(SimDisk *d, uint64_t time);

/* A sector of which a crash may leave one of several contents */
typedef struct Choice {
    SimDisk *disk;
    unsigned sector;
    unsigned n;                 /* different contents: option[0] is in base */
    const uint8_t **option;
    unsigned nwrites;           /* all writes of it, in order */
    const uint8_t **data;
    unsigned *write;            /* the number of each */
    unsigned chosen;
} Choice;

typedef struct Choices {
    GArray *choices;            /* of Choice */
    unsigned nwrites;           /* in all */
    double *landed;             /* probability of each */
} Choices;

void choices_init(Choices *c, SimDisk **disk, unsigned ndisks);
void choices_clear(Choices *c);
/* The number of different states, or @max if it is more */
uint64_t choices_count(const Choices *c, uint64_t max);
/* Choose state @i of those, or one at random; returns a hash of it. */
uint64_t choices_select(Choices *c, uint64_t i);
uint64_t choices_select_random(Choices *c, GRand *rand);

/* Put the chosen state into the views, or base again. */
void choices_apply(const Choices *c);
void choices_undo(const Choices *c);

/* The chosen state, which is in the view, is what is on disk from now on. */
void disk_power_cut(SimDisk *d);
/* The process dies: some of what is in flight reaches the cache. */
void disk_kill(SimDisk *d, GRand *rand);

#endif /* CRASH_DISK_H */
