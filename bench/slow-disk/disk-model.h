/*
 * How long a disk with one head takes for a request
 *
 * A request costs
 *
 *     seek(distance) + rotation + bytes / rate
 *
 *     seek(d) = 0                                             if d = 0
 *             = seek_min + (seek_max - seek_min) * sqrt(d / size)   otherwise
 *     rotation = the time until the first byte comes under the head; in the
 *                mean half a turn, 30 s / rpm
 *     distance: from the byte behind the last request to the first one
 *
 * where the square root stands for arms that accelerate and brake (Ruemmler and
 * Wilkes, "An introduction to disk drive modeling", IEEE Computer 27(3), 1994).
 * A track has rate * 60 / rpm bytes everywhere, and byte x is at the angle
 * x modulo that; so rotation follows from the time at which the seek ends.
 *
 * Two things make streams go at full speed, as in every disk:
 *   - what continues exactly where the last request ended needs no seek and no
 *     rotation.  If it is a read, the disk has read ahead since then, for up to
 *     @ahead bytes, so that pauses of the host are not lost either;
 *   - what begins a little further on is waited for, if that is shorter.
 *
 * The profile that DISK_MODEL_DEFAULT has: 100 random reads a second of 4 KiB,
 * all over the disk; 150 MB/s in a stream.
 *
 * Deliberately absent: a write cache (a write that is complete is on the disk,
 * so a flush is free), zones, several segments of read-ahead, bad luck.
 *
 * SPDX-License-Identifier: GPL-2.0-or-later
 */
#ifndef DISK_MODEL_H
#define DISK_MODEL_H

#include <stdbool.h>
#include <stdint.h>

typedef struct DiskParams {
    uint64_t size;              /* bytes; what seek_max is the way across */
    int64_t seek_min_ns;        /* to the next track */
    int64_t seek_max_ns;
    unsigned rpm;
    uint64_t rate;              /* bytes per second */
    uint64_t ahead;             /* bytes */
    bool mean_rotation;         /* always half a turn: for tests */
} DiskParams;

#define DISK_MODEL_DEFAULT {            \
    .seek_min_ns = 1000000,             \
    .seek_max_ns = 10000000,            \
    .rpm = 7200,                        \
    .rate = 150000000,                  \
    .ahead = 8 << 20,                   \
}

typedef struct DiskModel {
    DiskParams p;
    uint64_t head;              /* behind the last request's last byte */
    int64_t free_ns;            /* when that was done */
} DiskModel;

/* Time for a move of the head by @distance bytes. */
int64_t disk_seek_ns(const DiskParams *p, uint64_t distance);

/* Time for a turn. */
int64_t disk_turn_ns(const DiskParams *p);

/*
 * Serve a request that arrives, or is taken from the queue, at @now_ns; never
 * before the last one is done.  Returns the time when it is done.
 */
int64_t disk_serve(DiskModel *d, uint64_t offset, uint64_t bytes,
                   bool is_write, int64_t now_ns);

#endif
