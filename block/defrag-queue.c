/*
 * Defragmentation planner: what was observed waits here to be looked at
 *
 * Requests of the guest tell the planner what happened to blocks.  To account
 * for that costs some 20 ns a block, mostly for memory that is not in the
 * caches: as much as all the rest of a write that becomes indirections.  So an
 * observation is only written down, and is applied when the planner is asked,
 * by who has time.
 *
 * Events are applied in the order in which they were observed, each as of its
 * own time: what the planner answers does not depend on when it catches up (but
 * for what it forgets when there are too many regions).
 * When the queue is full each new event has the oldest applied, so the work
 * stays bounded even if nobody ever asks.
 *
 * This work is licensed under the terms of the GNU GPL, version 2 or later.
 * See the COPYING file in the top-level directory.
 */

#include "qemu/osdep.h"
#include "defrag-plan-int.h"

/* What an event costs beside its blocks, in blocks */
#define EVENT_COST      16
/* What a discard of more than it costs, as most of it is not known */
#define EVENT_MAX_COST  4096

static DefragEvent *queue_at(DefragPlan *p, unsigned i)
{
    return &p->queue[(p->queue_head + i) % DEFRAG_QUEUE_LEN];
}

static unsigned queue_apply_oldest(DefragPlan *p)
{
    const DefragEvent *e = queue_at(p, 0);

    p->queue_head++;
    p->queue_len--;
    defrag_apply(p, e);
    return EVENT_COST + MIN(e->n, EVENT_MAX_COST);
}

/* New entries in a row, at the same time, are one event. */
static bool queue_extend(DefragPlan *p, const DefragEvent *e)
{
    DefragEvent *last;

    if (e->kind != DEFRAG_EVENT_INDIRECTED || !p->queue_len) {
        return false;
    }
    last = queue_at(p, p->queue_len - 1);
    if (last->kind != e->kind || last->block + last->n != e->block ||
        DEFRAG_TICKS(last->now_ns) != DEFRAG_TICKS(e->now_ns)) {
        return false;
    }
    last->n += e->n;
    return true;
}

static void queue_add(DefragPlan *p, DefragEventKind kind, uint64_t block,
                      uint64_t n, int64_t now_ns)
{
    DefragEvent e = {
        .block = block,
        .n = n,
        .now_ns = now_ns,
        .kind = kind,
    };

    if (!n || queue_extend(p, &e)) {
        return;
    }
    if (p->queue_len == DEFRAG_QUEUE_LEN) {
        queue_apply_oldest(p);
    }
    *queue_at(p, p->queue_len++) = e;
}

void defrag_plan_indirected(DefragPlan *p, uint64_t block, uint64_t n,
                            int64_t now_ns)
{
    queue_add(p, DEFRAG_EVENT_INDIRECTED, block, n, now_ns);
}

void defrag_plan_overwritten(DefragPlan *p, uint64_t block, uint64_t n,
                             int64_t now_ns)
{
    queue_add(p, DEFRAG_EVENT_OVERWRITTEN, block, n, now_ns);
}

void defrag_plan_discarded(DefragPlan *p, uint64_t block, uint64_t n,
                           int64_t now_ns)
{
    queue_add(p, DEFRAG_EVENT_DISCARDED, block, n, now_ns);
}

void defrag_plan_read_split(DefragPlan *p, uint64_t block, uint64_t n,
                            int64_t now_ns)
{
    queue_add(p, DEFRAG_EVENT_READ_SPLIT, block, n, now_ns);
}

void defrag_plan_moved(DefragPlan *p, uint64_t block, uint64_t n,
                       int64_t now_ns)
{
    p->watch_end_ns = now_ns + DEFRAG_WATCH_NS;
    queue_add(p, DEFRAG_EVENT_MOVED, block, n, now_ns);
}

bool defrag_plan_watching(const DefragPlan *p, int64_t now_ns)
{
    return p->watch_end_ns > now_ns;
}

bool defrag_plan_catch_up(DefragPlan *p, unsigned blocks)
{
    unsigned spent = 0;

    while (p->queue_len && spent < blocks) {
        spent += queue_apply_oldest(p);
    }
    return !p->queue_len;
}
