/*
 * How much defragmentation the foreground can bear
 *
 * CORE: no I/O, no locks, no threads, no clock.  The caller serialises all
 * calls on one DefragLoad.  @now_ns is a monotonic time in nanoseconds.
 *
 * Foreground requests are those of the guest; a *slice* is a piece of
 * background work.  A request is *disturbed* if it was in flight together with
 * a slice.  The rule and its reasons: head of defrag-load.c.
 *
 * This work is licensed under the terms of the GNU GPL, version 2 or later.
 * See the COPYING file in the top-level directory.
 */

#ifndef BSST_DEFRAG_LOAD_H
#define BSST_DEFRAG_LOAD_H

/* A running 99th percentile */
typedef struct DefragQuantile {
    double ns;
    uint64_t n;                 /* samples in all */
    unsigned fresh;             /* since it was looked at */
} DefragQuantile;

typedef struct DefragLoad {
    /* Foreground */
    unsigned in_flight;
    int64_t last_ns;            /* when the last request began or ended */

    /* Slices */
    bool slicing;
    uint64_t slices;            /* begun so far */
    int64_t slice_ns;           /* when this one began */
    bool stopped;               /* it has been told to stop */
    unsigned blocks;            /* how many the next one should move */

    /* How many requests may be disturbed */
    double share;               /* of all */
    double tokens;

    DefragQuantile alone;       /* latency of undisturbed requests */
    DefragQuantile disturbed;
} DefragLoad;

/* One foreground request, owned by the caller */
typedef struct DefragLoadReq {
    int64_t start_ns;
    uint64_t slices;
    bool disturbed;
} DefragLoadReq;

void defrag_load_init(DefragLoad *l, int64_t now_ns);

/*
 * A foreground request begins.  Returns true if the slice in flight has to
 * stop as soon as it can.
 */
bool defrag_load_begin(DefragLoad *l, DefragLoadReq *req, int64_t now_ns);

/*
 * It ends, with success if @ok (the latency of others tells nothing).  Returns
 * whether it was disturbed.
 */
bool defrag_load_end(DefragLoad *l, DefragLoadReq *req, bool ok,
                     int64_t now_ns);

/*
 * May a slice begin?  If not, *@wait_ns is when to ask again: in so many
 * nanoseconds.
 */
bool defrag_load_may_slice(const DefragLoad *l, int64_t now_ns,
                           int64_t *wait_ns);

/*
 * A slice begins, which may_slice() has allowed just now.  Returns how many
 * blocks it should move.
 */
unsigned defrag_load_slice_begin(DefragLoad *l, int64_t now_ns);

/* It ends. */
void defrag_load_slice_end(DefragLoad *l, int64_t now_ns);

/* Nobody has used the disk for a second or more. */
bool defrag_load_is_idle(const DefragLoad *l, int64_t now_ns);

#endif /* BSST_DEFRAG_LOAD_H */
