/*
 * Fuzz targets: what a store's metadata may look like
 *
 * Each takes any bytes, decodes them as they are and with the checksum put
 * right, and aborts if what comes out breaks a promise of the decoder.  Linked
 * with libFuzzer (make fuzz), and with a program that replays the corpus under
 * ASan in make check-core.
 *
 * This work is licensed under the terms of the GNU GPL, version 2 or later.
 * See the COPYING file in the top-level directory.
 */

#ifndef BSST_FUZZ_TARGETS_H
#define BSST_FUZZ_TARGETS_H

typedef void FuzzTarget(const uint8_t *data, size_t size);

FuzzTarget fuzz_superblock;
FuzzTarget fuzz_image_entry;
FuzzTarget fuzz_journal_block;
FuzzTarget fuzz_checkpoint;

/* What libFuzzer calls */
int LLVMFuzzerInitialize(int *argc, char ***argv);
int LLVMFuzzerTestOneInput(const uint8_t *data, size_t size);

#endif /* BSST_FUZZ_TARGETS_H */
