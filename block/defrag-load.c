/*
 * How much defragmentation the foreground can bear
 *
 * The aim: the 99th percentile of the foreground's latency stays within a tenth
 * of what it is without us.  Nobody knows how a disk and what is above it react
 * to our I/O, so the rule does not rely on it.  It limits *how many* requests
 * are disturbed, which is known for certain, and learns how much that hurts.
 *
 *   Budget.  Each request earns @share tokens, each one that is disturbed costs
 *   one.  While the disk is in use a slice begins only if there are tokens for
 *   all requests in flight and two more; it stops when a request comes that
 *   nothing is left for.  So in the long run a fraction of at most @share of the
 *   requests is disturbed.  With share < 1 % the 99th percentile of all is at
 *   most a percentile of the undisturbed that is a little higher (1 - (0.01 -
 *   share) / (1 - share)), however long the disturbed take.
 *
 *   Share.  It begins at MIN_SHARE, 1/256.  Whenever LOOK disturbed and LOOK
 *   undisturbed requests have been seen, the 99th percentiles are compared:
 *
 *      disturbed <= 1.05 alone     share doubles, up to 1
 *      disturbed >  1.10 alone     share falls to a quarter, down to MIN_SHARE
 *
 *   Both are of the same mix of requests.  (A long request is more likely to be
 *   disturbed; that makes us more careful than necessary.)  The percentile is a
 *   running one: a sample above it raises it by a factor of 1 + STEP * 0.99,
 *   one below it lowers it by 1 - STEP * 0.01, so that it stands still where
 *   one in a hundred is above.
 *
 *   Idle.  Without a request in flight a slice may begin if nothing has come
 *   for QUIET_NS and there is a token; and, tokens or not, after LONG_QUIET_NS:
 *   the load has stopped.  The first request of a burst that meets a slice then
 *   goes on the bill: debts are kept up to MAX_DEBT.
 *
 *   Size.  A slice should take TARGET_NS, or an eighth of the time that the
 *   disk has been idle if that is longer, up to MAX_TARGET_NS: whoever comes
 *   waits for what is in flight of it at most.  It doubles if it took less than
 *   half as long, and is halved if it took longer or was stopped.
 *
 * Deliberately absent: rates in bytes; a look at other users of the disk; and
 * what the host's page cache writes after a slice has ended.
 *
 * This work is licensed under the terms of the GNU GPL, version 2 or later.
 * See the COPYING file in the top-level directory.
 */

#include "qemu/osdep.h"
#include "bsst/defrag-load.h"

#define MS                  1000000LL

#define MIN_SHARE           (1.0 / 256)
#define MAX_TOKENS          64.0
#define MAX_DEBT            16.0

/* Samples of either kind between two looks at the share */
#define LOOK                256
#define EASY                1.05
#define HARD                1.10

#define P                   0.99
#define STEP                0.05
/* The percentile begins as the largest of so many samples. */
#define FIRST               16

#define QUIET_NS            (20 * MS)
#define LONG_QUIET_NS       (500 * MS)
#define IDLE_NS             (1000 * MS)
#define AGAIN_NS            (10 * MS)

#define TARGET_NS           (5 * MS)
#define MAX_TARGET_NS       (250 * MS)
#define MIN_BLOCKS          8
#define MAX_BLOCKS          2048

void defrag_load_init(DefragLoad *l, int64_t now_ns)
{
    *l = (DefragLoad) {
        .last_ns = now_ns,
        .blocks = MIN_BLOCKS,
        .share = MIN_SHARE,
        .tokens = 1,
    };
}

static void quantile_add(DefragQuantile *q, double ns)
{
    q->n++;
    q->fresh++;
    if (q->n <= FIRST) {
        q->ns = MAX(q->ns, ns);
    } else if (ns > q->ns) {
        q->ns *= 1 + STEP * P;
    } else {
        q->ns *= 1 - STEP * (1 - P);
    }
}

static void load_adapt(DefragLoad *l)
{
    if (l->alone.fresh < LOOK || l->disturbed.fresh < LOOK) {
        return;
    }
    l->alone.fresh = 0;
    l->disturbed.fresh = 0;
    if (l->disturbed.ns <= EASY * l->alone.ns) {
        l->share = MIN(1, l->share * 2);
    } else if (l->disturbed.ns > HARD * l->alone.ns) {
        l->share = MAX(MIN_SHARE, l->share / 4);
    }
}

static void load_charge(DefragLoad *l, unsigned requests)
{
    l->tokens = MAX(l->tokens - requests, -MAX_DEBT);
}

bool defrag_load_begin(DefragLoad *l, DefragLoadReq *req, int64_t now_ns)
{
    *req = (DefragLoadReq) {
        .start_ns = now_ns,
        .slices = l->slices,
        .disturbed = l->slicing,
    };
    l->in_flight++;
    l->last_ns = now_ns;
    if (!l->slicing) {
        return false;
    }
    load_charge(l, 1);
    l->stopped |= l->tokens < 0;
    return l->stopped;
}

bool defrag_load_end(DefragLoad *l, DefragLoadReq *req, bool ok,
                     int64_t now_ns)
{
    bool disturbed = req->disturbed || l->slices != req->slices;

    assert(l->in_flight > 0);
    l->in_flight--;
    l->last_ns = now_ns;
    l->tokens = MIN(l->tokens + l->share, MAX_TOKENS);
    if (ok) {
        quantile_add(disturbed ? &l->disturbed : &l->alone,
                     MAX(now_ns - req->start_ns, 1));
        load_adapt(l);
    }
    return disturbed;
}

bool defrag_load_may_slice(const DefragLoad *l, int64_t now_ns,
                           int64_t *wait_ns)
{
    int64_t idle = now_ns - l->last_ns;
    int64_t quiet = l->tokens >= 1 ? QUIET_NS : LONG_QUIET_NS;

    assert(!l->slicing);
    *wait_ns = l->in_flight ? AGAIN_NS : MIN(AGAIN_NS, MAX(quiet - idle, 1));
    return l->tokens >= l->in_flight + 2.0 ||
           (!l->in_flight && idle >= quiet);
}

unsigned defrag_load_slice_begin(DefragLoad *l, int64_t now_ns)
{
    assert(!l->slicing);
    l->slicing = true;
    l->stopped = false;
    l->slices++;
    l->slice_ns = now_ns;
    load_charge(l, l->in_flight);
    return l->blocks;
}

void defrag_load_slice_end(DefragLoad *l, int64_t now_ns)
{
    int64_t took = now_ns - l->slice_ns;
    int64_t idle = l->in_flight ? 0 : l->slice_ns - l->last_ns;
    int64_t target = MIN(MAX(TARGET_NS, idle / 8), MAX_TARGET_NS);

    assert(l->slicing);
    l->slicing = false;
    if (l->stopped || took > target) {
        l->blocks = MAX(l->blocks / 2, MIN_BLOCKS);
    } else if (took < target / 2) {
        l->blocks = MIN(l->blocks * 2, MAX_BLOCKS);
    }
}

bool defrag_load_is_idle(const DefragLoad *l, int64_t now_ns)
{
    return !l->in_flight && now_ns - l->last_ns >= IDLE_NS;
}
