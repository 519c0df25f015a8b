/*
 * Fuzz target: open a store that somebody has made up
 *
 * Apart from the others, as it needs parts of QEMU.  scripts/fuzz builds it;
 * the unit test test-bsst-open replays the corpus.
 *
 * This work is licensed under the terms of the GNU GPL, version 2 or later.
 * See the COPYING file in the top-level directory.
 */

#include "qemu/osdep.h"
#include "bsst-open-store.h"
#include "qapi/error.h"
#include "qemu/main-loop.h"
#include "targets.h"

int LLVMFuzzerInitialize(int *argc, char ***argv)
{
    qemu_init_main_loop(&error_abort);
    return 0;
}

int LLVMFuzzerTestOneInput(const uint8_t *data, size_t size)
{
    open_made_up_store(data, size);
    return 0;
}
