/*
 * Record: what happens to which page, for the study of policies
 *
 * This work is licensed under the terms of the GNU GPL, version 2 or later.
 * See the COPYING file in the top-level directory.
 */

#ifndef HW_SWAPPER_RECORD_H
#define HW_SWAPPER_RECORD_H

#include "bsst/record-format.h"

typedef struct Record Record;

/* Creates the file @path. */
Record *record_new(const char *path, Error **errp);
/* What is left is written first.  @r may be NULL. */
void record_free(Record *r);

/* Under the page lock.  @r may be NULL. */
void record_event_locked(Record *r, uint64_t page, RecordKind kind);
/* Under the page lock: events that record_write() is to write, or NULL. */
GArray *record_take_locked(Record *r);
/* Writes @events to the file and frees them.  Without the lock. */
void record_write(Record *r, GArray *events);
#endif /* HW_SWAPPER_RECORD_H */
