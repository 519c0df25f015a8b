/*
 * Record: what happens to which page, for the study of policies
 *
 * Events are collected in memory under the page lock and written by the
 * writer thread, so that the file never makes a fault wait.
 *
 * This work is licensed under the terms of the GNU GPL, version 2 or later.
 * See the COPYING file in the top-level directory.
 */

#include "qemu/osdep.h"
#include "qapi/error.h"
#include "qemu/error-report.h"
#include "qemu/timer.h"
#include "record.h"

struct Record {
    /* Set once */
    int fd;

    /* Under the page lock */
    GArray *events;             /* of uint64_t, little-endian */

    /* Writer thread */
    bool failed;
};

Record *record_new(const char *path, Error **errp)
{
    Record *r;
    int fd = qemu_create(path, O_WRONLY | O_TRUNC, 0600, errp);

    if (fd < 0) {
        return NULL;
    }
    if (qemu_write_full(fd, RECORD_MAGIC, RECORD_MAGIC_BYTES) !=
        RECORD_MAGIC_BYTES) {
        error_setg_errno(errp, errno, "Could not write '%s'", path);
        close(fd);
        return NULL;
    }
    r = g_new(Record, 1);
    *r = (Record) {
        .fd = fd,
        .events = g_array_new(false, false, sizeof(uint64_t)),
    };
    return r;
}

void record_free(Record *r)
{
    if (r) {
        record_write(r, r->events);
        close(r->fd);
        g_free(r);
    }
}

void record_event_locked(Record *r, uint64_t page, RecordKind kind)
{
    if (r) {
        uint64_t event = cpu_to_le64(record_event(get_clock() / SCALE_US,
                                                  page, kind));

        g_array_append_val(r->events, event);
    }
}

GArray *record_take_locked(Record *r)
{
    GArray *events = NULL;

    if (r && r->events->len) {
        events = r->events;
        r->events = g_array_new(false, false, sizeof(uint64_t));
    }
    return events;
}

void record_write(Record *r, GArray *events)
{
    size_t bytes = (size_t)events->len * sizeof(uint64_t);

    if (!r->failed && qemu_write_full(r->fd, events->data, bytes) != bytes) {
        r->failed = true;
        warn_report("host-swapper: the record is incomplete: %s",
                    strerror(errno));
    }
    g_array_unref(events);
}
