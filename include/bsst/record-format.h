/*
 * Format of a record: what happened to which page of guest RAM
 *
 * Written by the swapper (x-record=FILE) and by the plugin in tests/policy-sim,
 * read by the simulator there.  All integers are little-endian:
 *
 *   bytes 0-7     "BSSTREC1"
 *   then events of 8 bytes in the order of time:
 *     bits 0-3    kind (RecordKind)
 *     bits 4-31   page
 *     bits 32-63  time in us, CLOCK_MONOTONIC, modulo 2^32
 *
 * This work is licensed under the terms of the GNU GPL, version 2 or later.
 * See the COPYING file in the top-level directory.
 */

#ifndef BSST_RECORD_FORMAT_H
#define BSST_RECORD_FORMAT_H

#define RECORD_MAGIC        "BSSTREC1"
#define RECORD_MAGIC_BYTES  8
#define RECORD_PAGE_MASK    ((1u << 28) - 1)

typedef enum RecordKind {
    RECORD_TOUCH_READ = 0,      /* by a processor; not written by QEMU */
    RECORD_TOUCH_WRITE = 1,
    RECORD_FAULT_READ = 2,      /* of a page in the store */
    RECORD_FAULT_WRITE = 3,
    RECORD_HIT = 4,             /* fault on a victim */
    RECORD_ZERO = 5,            /* fault on a page that reads as zeroes */
    RECORD_EVICT = 6,           /* into the victim cache */
    RECORD_STORE = 7,           /* has been written to the store */
    RECORD_LOAD = 8,            /* came back along with a neighbour */
    RECORD_RESTORE = 9,         /* came back because it was intercepted */
    RECORD_DISK_READ = 10,      /* a disk read goes to the page */
    RECORD_DISK_WRITE = 11,     /* the page is written to a disk */
    RECORD_DISCARD = 12,
} RecordKind;

static inline unsigned record_kind(uint64_t event)
{
    return event & 15;
}

static inline uint64_t record_page(uint64_t event)
{
    return event >> 4 & RECORD_PAGE_MASK;
}

static inline uint32_t record_time_us(uint64_t event)
{
    return event >> 32;
}

static inline uint64_t record_event(uint32_t time_us, uint64_t page,
                                    RecordKind kind)
{
    return (uint64_t)time_us << 32 | (page & RECORD_PAGE_MASK) << 4 | kind;
}

#endif /* BSST_RECORD_FORMAT_H */
