/*
 * Open a store that somebody has made up
 *
 * This work is licensed under the terms of the GNU GPL, version 2 or later.
 * See the COPYING file in the top-level directory.
 */

#ifndef BSST_OPEN_STORE_H
#define BSST_OPEN_STORE_H

/* What became of it */
typedef enum StoreFate {
    STORE_NONE,                 /* the superblock was refused already */
    STORE_REFUSED,
    STORE_OPENED,
} StoreFate;

/*
 * Make the store that the @size bytes of @data describe, any bytes, and open
 * it.  Aborts if that breaks a promise of the journal.
 */
StoreFate open_made_up_store(const uint8_t *data, size_t size);

#endif /* BSST_OPEN_STORE_H */
