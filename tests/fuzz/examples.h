/*
 * Examples of a store's metadata: those of docs/interop/bsst.rst
 *
 * They are in the corpus, too, from where "xxd" prints them for the document.
 *
 * This work is licensed under the terms of the GNU GPL, version 2 or later.
 * See the COPYING file in the top-level directory.
 */

#ifndef BSST_FUZZ_EXAMPLES_H
#define BSST_FUZZ_EXAMPLES_H

typedef struct Example {
    const char *path;           /* below corpus/ */
    size_t bytes;
    void (*make)(uint8_t *buf); /* fills in @bytes */
} Example;

/* Ends with a path of NULL. */
extern const Example examples[];

#endif /* BSST_FUZZ_EXAMPLES_H */
