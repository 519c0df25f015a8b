/*
 * How long a disk with one head takes for a request: see disk-model.h
 *
 * SPDX-License-Identifier: GPL-2.0-or-later
 */
#include <math.h>
#include "disk-model.h"

#define NS_PER_S        1000000000

static int64_t max_ns(int64_t a, int64_t b)
{
    return a > b ? a : b;
}

int64_t disk_turn_ns(const DiskParams *p)
{
    return 60 * (int64_t)NS_PER_S / p->rpm;
}

int64_t disk_seek_ns(const DiskParams *p, uint64_t distance)
{
    double part = (double)distance / p->size;

    return distance ? p->seek_min_ns +
                      (p->seek_max_ns - p->seek_min_ns) * sqrt(part)
                    : 0;
}

static int64_t transfer_ns(const DiskParams *p, uint64_t bytes)
{
    return (double)bytes * NS_PER_S / p->rate;
}

/* How long after @now_ns the byte at @offset comes under the head. */
static int64_t rotation_ns(const DiskParams *p, uint64_t offset,
                           int64_t now_ns)
{
    int64_t turn_ns = disk_turn_ns(p), wait_ns;

    if (p->mean_rotation) {
        return turn_ns / 2;
    }
    wait_ns = (transfer_ns(p, offset) - now_ns) % turn_ns;
    return wait_ns < 0 ? wait_ns + turn_ns : wait_ns;
}

/* Time from @start_ns on until the head is over @offset. */
static int64_t position_ns(const DiskModel *d, uint64_t offset,
                           int64_t start_ns)
{
    const DiskParams *p = &d->p;
    uint64_t distance = offset > d->head ? offset - d->head : d->head - offset;
    int64_t ns = disk_seek_ns(p, distance);

    ns += rotation_ns(p, offset, start_ns + ns);
    if (offset > d->head && transfer_ns(p, distance) < ns) {
        ns = transfer_ns(p, distance);
    }
    return ns;
}

int64_t disk_serve(DiskModel *d, uint64_t offset, uint64_t bytes,
                   bool is_write, int64_t now_ns)
{
    int64_t start_ns = max_ns(now_ns, d->free_ns);
    int64_t ahead_ns = transfer_ns(&d->p, d->p.ahead), done_ns;

    if (offset != d->head) {
        start_ns += position_ns(d, offset, start_ns);
    } else if (!is_write) {
        start_ns = max_ns(d->free_ns, now_ns - ahead_ns);
    }
    done_ns = start_ns + transfer_ns(&d->p, bytes);
    d->head = offset + bytes;
    d->free_ns = done_ns;
    return max_ns(done_ns, now_ns);
}
