/*
 * The journal as the crash test runs it
 *
 * The same source, with few records to a block and to a batch of recovery, so
 * that tiny stores fill many of both; and a decoder that can be told to skip a
 * check.
 *
 * This work is licensed under the terms of the GNU GPL, version 2 or later.
 * See the COPYING file in the top-level directory.
 */

#include "qemu/osdep.h"
#include "crash-world.h"
#include "qemu/bswap.h"

#define CHAIN_OFFSET    32      /* of a block's header */

bool crash_skip_chain_check;

static BsstBlockState decode(const uint8_t *buf, const BsstBlockHeader *e,
                             uint64_t max_generation, uint32_t nslots,
                             uint32_t nimages, BsstBlockHeader *h,
                             BsstRecord *records, unsigned *n,
                             uint64_t *checksum)
{
    BsstBlockHeader expected = *e;

    if (crash_skip_chain_check) {
        expected.chain = ldq_le_p(buf + CHAIN_OFFSET);
    }
    return bsst_block_decode(buf, &expected, max_generation, nslots, nimages,
                             h, records, n, checksum);
}

/* Before any use of it, in bsst-journal-int.h */
#undef BSST_JOURNAL_RECORDS
#define BSST_JOURNAL_RECORDS CRASH_RECORDS
#undef BSST_RECORD_BATCH_BYTES
#define BSST_RECORD_BATCH_BYTES CRASH_BATCH_BYTES
#define bsst_block_decode decode

#include "../../block/bsst-checkpoint.c"
#include "../../block/bsst-image.c"
#include "../../block/bsst-journal.c"
#include "../../block/bsst-recover.c"

bool crash_journal_background(BsstJournal *j)
{
    return j && j->background;
}
